/** Camera and microphone, and, when there are none, why: in words that tell the reader what to do. */

export interface VideoWish {
  width: number;
  height: number;
  frameRate: number;
}

export const DEFAULT_VIDEO: VideoWish = { width: 1280, height: 720, frameRate: 30 };

/** `320x240@15` */
export function parseVideoWish(text: string | null): VideoWish | undefined {
  const match = /^(\d+)x(\d+)(?:@(\d+))?$/.exec(text ?? '');
  return match ? { width: Number(match[1]), height: Number(match[2]), frameRate: Number(match[3] ?? 30) } : undefined;
}

export type DeviceKind = 'mic' | 'camera';
export interface Chosen {
  mic: string | undefined;
  camera: string | undefined;
  speaker: string | undefined;
}

export type Opened = { track: MediaStreamTrack } | { problem: string };

const NAMES: Record<DeviceKind, string> = { mic: 'microphone', camera: 'camera' };

/** Why no device can be had at all on this page, or nothing. */
export function pageProblem(): string | undefined {
  if (!window.isSecureContext) {
    return (
      `Browsers give camera and microphone only to pages opened over HTTPS or on localhost, and this one came from ${location.origin}. ` +
      'You can still join, watch and listen. To be seen and heard, open the page over HTTPS.'
    );
  }
  if (!navigator.mediaDevices?.getUserMedia) return 'This browser has no access to camera and microphone. You can still join, watch and listen.';
  return undefined;
}

function explain(kind: DeviceKind, error: DOMException): string {
  const name = NAMES[kind];
  switch (error.name) {
    case 'NotAllowedError':
      return `The ${name} is blocked for this page. Allow it through the icon beside the address, then switch it on here.`;
    case 'NotFoundError':
      return `No ${name} was found. Plug one in and switch it on here, or join without.`;
    case 'NotReadableError':
    case 'AbortError':
      return `The ${name} is in use by another program. Close that one, then switch it on here.`;
    case 'OverconstrainedError':
      return `The chosen ${name} is no longer there. Choose another one in the settings.`;
    default:
      return `The ${name} cannot be opened: ${error.message || error.name}.`;
  }
}

/** What is wrong with both, said once where it is the same. */
export function problemsInWords(camera: string | undefined, mic: string | undefined): string[] {
  if (camera && mic && camera.replaceAll('camera', 'microphone') === mic) {
    return [camera.replace('The camera is', 'Camera and microphone are').replace('No camera was', 'No camera and no microphone were').replace(/ it on here/u, ' them on here')];
  }
  return [camera, mic].filter((problem) => problem !== undefined);
}

export async function openDevice(kind: DeviceKind, deviceId: string | undefined, video: VideoWish): Promise<Opened> {
  const problem = pageProblem();
  if (problem) return { problem };
  const device = deviceId ? { deviceId: { exact: deviceId } } : {};
  const constraints: MediaStreamConstraints =
    kind === 'mic'
      ? { audio: { ...device, echoCancellation: true, noiseSuppression: true, autoGainControl: true } }
      : { video: { ...device, width: { ideal: video.width }, height: { ideal: video.height }, frameRate: { ideal: video.frameRate } } };
  try {
    const stream = await navigator.mediaDevices.getUserMedia(constraints);
    const track = stream.getTracks()[0];
    return track ? { track } : { problem: `The ${NAMES[kind]} gave no picture or sound.` };
  } catch (error) {
    // A remembered device that has been unplugged: any other will do.
    if ((error as DOMException).name === 'OverconstrainedError' && deviceId) return openDevice(kind, undefined, video);
    return { problem: explain(kind, error as DOMException) };
  }
}

export async function listDevices(): Promise<Record<keyof Chosen, MediaDeviceInfo[]>> {
  const all = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  const of = (kind: MediaDeviceKind) => all.filter((device) => device.kind === kind && device.deviceId !== '');
  return { mic: of('audioinput'), camera: of('videoinput'), speaker: of('audiooutput') };
}

/** Opens a screen, window or tab; undefined when the user thought better of it. */
export async function openScreen(): Promise<MediaStreamTrack | undefined> {
  try {
    const stream = await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: { ideal: 15, max: 30 } }, audio: false });
    const track = stream.getVideoTracks()[0];
    // Text must stay sharp; motion may suffer.
    if (track) track.contentHint = 'detail';
    return track;
  } catch (error) {
    if ((error as DOMException).name === 'NotAllowedError') return undefined;
    throw error;
  }
}

export const canShareScreen = (): boolean => typeof navigator.mediaDevices?.getDisplayMedia === 'function';
