/** Our own camera and microphone: open, on or off, which device, what is wrong. Knows nothing of rooms. */

import { Emitter } from 'roomlog-client';
import { type Chosen, type DeviceKind, openDevice, type VideoWish } from './devices.js';
import { savePrefs } from './prefs.js';

export class LocalMedia extends Emitter<{ changed: [kind: DeviceKind] }> {
  readonly tracks: Record<DeviceKind, MediaStreamTrack | undefined> = { mic: undefined, camera: undefined };
  readonly problems: Record<DeviceKind, string | undefined> = { mic: undefined, camera: undefined };
  readonly #busy: Record<DeviceKind, Promise<void>> = { mic: Promise.resolve(), camera: Promise.resolve() };

  constructor(
    readonly chosen: Chosen,
    readonly video: VideoWish,
  ) {
    super();
  }

  isOn(kind: DeviceKind): boolean {
    const track = this.tracks[kind];
    return track !== undefined && track.enabled && track.readyState === 'live';
  }

  /** Switches on or off. Off lets go of the camera, so that its light goes out; the microphone is only silenced, to be quick. */
  switch(kind: DeviceKind, on: boolean): Promise<void> {
    return (this.#busy[kind] = this.#busy[kind].then(() => (on ? this.#switchOn(kind) : this.#switchOff(kind))));
  }

  choose(kind: DeviceKind, deviceId: string): Promise<void> {
    this.chosen[kind] = deviceId;
    savePrefs({ [kind]: deviceId });
    const wasOn = this.isOn(kind);
    return (this.#busy[kind] = this.#busy[kind].then(async () => {
      this.#drop(kind);
      if (wasOn) await this.#switchOn(kind);
    }));
  }

  stop(): void {
    this.#drop('mic');
    this.#drop('camera');
  }

  async #switchOn(kind: DeviceKind): Promise<void> {
    const known = this.tracks[kind];
    if (known?.readyState === 'live') {
      known.enabled = true;
      return this.emit('changed', kind);
    }
    const opened = await openDevice(kind, this.chosen[kind], this.video);
    if ('problem' in opened) {
      this.problems[kind] = opened.problem;
    } else {
      this.problems[kind] = undefined;
      this.tracks[kind] = opened.track;
      opened.track.addEventListener('ended', () => {
        if (this.tracks[kind] !== opened.track) return;
        this.tracks[kind] = undefined;
        this.problems[kind] = `The ${kind === 'mic' ? 'microphone' : 'camera'} was unplugged or taken away.`;
        this.emit('changed', kind);
      });
    }
    this.emit('changed', kind);
  }

  async #switchOff(kind: DeviceKind): Promise<void> {
    const track = this.tracks[kind];
    if (track && kind === 'mic') track.enabled = false;
    else this.#drop(kind);
    this.emit('changed', kind);
  }

  #drop(kind: DeviceKind): void {
    const track = this.tracks[kind];
    this.tracks[kind] = undefined;
    track?.stop();
  }
}
