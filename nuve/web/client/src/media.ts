/**
 * The transports of one media epoch: a device, one transport to send and one to receive. When the room's media moves to
 * another worker the whole plane is thrown away and a new one is built; nothing in it is carried over but the tracks.
 */

import { Device, type types as mediasoup } from 'mediasoup-client';
import { sleep } from './env.js';
import type { NewConsumer, Source } from './types.js';

/** ms a connection may be `disconnected` before ICE is restarted: a short radio gap mends itself. */
const ICE_GRACE = 2_000;
/** ms between ICE restarts that did not help, at most. */
const ICE_RESTART_CAP = 8_000;
/** kbit/s at which the browser starts to send video; its own default of 300 stays blurred for seconds. */
const START_BITRATE = 1_000;

export type Request = (method: string, data?: unknown) => Promise<unknown>;
export type MakeDevice = () => Promise<Device>;

/** A local track to be sent, kept over every rebuild. */
export interface Outgoing {
  source: Source;
  track: MediaStreamTrack | null;
  paused: boolean;
  encodings?: mediasoup.RtpEncodingParameters[] | undefined;
  appData?: Record<string, unknown> | undefined;
  producer?: mediasoup.Producer | undefined;
}

export interface PlaneHooks {
  connectionState(direction: 'send' | 'recv', state: string): void;
}

interface TransportAnswer extends mediasoup.TransportOptions {
  sctpParameters?: never;
}

export class MediaPlane {
  #closed = false;

  private constructor(
    readonly device: Device,
    readonly send: mediasoup.Transport,
    readonly recv: mediasoup.Transport,
    private readonly request: Request,
  ) {}

  static async build(request: Request, makeDevice: MakeDevice, hooks: PlaneHooks): Promise<MediaPlane> {
    const routerRtpCapabilities = (await request('getRouterRtpCapabilities')) as mediasoup.RtpCapabilities;
    const ask = (producing: boolean) =>
      request('createWebRtcTransport', { forceTcp: false, producing, consuming: !producing }) as Promise<TransportAnswer>;
    // Both transports are asked for while the browser inspects its codecs.
    const [device, sendAnswer, recvAnswer] = await Promise.all([
      makeDevice().then(async (made) => (await made.load({ routerRtpCapabilities }), made)),
      ask(true),
      ask(false),
    ]);
    const plane = new MediaPlane(device, device.createSendTransport(sendAnswer), device.createRecvTransport(recvAnswer), request);
    plane.#wire('send', plane.send, hooks);
    plane.#wire('recv', plane.recv, hooks);
    return plane;
  }

  get closed(): boolean {
    return this.#closed;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.send.close();
    this.recv.close();
  }

  async produce(out: Outgoing): Promise<void> {
    if (!out.track || !this.device.canProduce(out.track.kind as 'audio' | 'video')) return;
    const producer = await this.send.produce({
      track: out.track,
      // The track is ours: it outlives the producer, because the next plane sends it again.
      stopTracks: false,
      encodings: out.encodings ? out.encodings.map((encoding) => ({ ...encoding })) : [],
      codecOptions: out.track.kind === 'audio' ? { opusDtx: true, opusFec: true, opusStereo: false } : { videoGoogleStartBitrate: START_BITRATE },
      appData: { ...out.appData, source: out.source },
    });
    out.producer = producer;
    if (out.paused) {
      producer.pause();
      await this.request('pauseProducer', { producerId: producer.id });
    }
  }

  consume(offer: NewConsumer): Promise<mediasoup.Consumer> {
    return this.recv.consume({
      id: offer.id,
      producerId: offer.producerId,
      kind: offer.kind,
      rtpParameters: offer.rtpParameters,
      // Streams of one id are lip-synced by the browser: a peer's microphone and camera, but not its screen.
      streamId: `${offer.peerId}-${offer.appData?.['source'] === 'screen' ? 'screen' : 'main'}`,
      appData: { ...offer.appData, peerId: offer.peerId },
    });
  }

  #wire(direction: 'send' | 'recv', transport: mediasoup.Transport, hooks: PlaneHooks): void {
    transport.on('connect', ({ dtlsParameters }, done, failed) => {
      this.request('connectWebRtcTransport', { transportId: transport.id, dtlsParameters }).then(done, failed);
    });
    if (direction === 'send') {
      transport.on('produce', ({ kind, rtpParameters, appData }, done, failed) => {
        this.request('produce', { transportId: transport.id, kind, rtpParameters, appData }).then((answer) => done(answer as { id: string }), failed);
      });
    }
    let restarting = false;
    transport.on('connectionstatechange', (state) => {
      hooks.connectionState(direction, state);
      if (state !== 'failed' && state !== 'disconnected') return;
      if (restarting) return;
      restarting = true;
      void this.#restartIce(transport, state === 'failed' ? 0 : ICE_GRACE).finally(() => (restarting = false));
    });
  }

  /** Restarts ICE until the transport is connected or gone. */
  async #restartIce(transport: mediasoup.Transport, grace: number): Promise<void> {
    const unwell = () => !this.#closed && !transport.closed && transport.connectionState !== 'connected';
    for (let wait = grace; ; wait = Math.min(ICE_RESTART_CAP, Math.max(ICE_GRACE, wait * 2))) {
      await sleep(wait);
      if (!unwell()) return;
      try {
        const iceParameters = (await this.request('restartIce', { transportId: transport.id })) as mediasoup.IceParameters;
        if (unwell()) await transport.restartIce({ iceParameters });
      } catch {
        // No connection to the server, or it is moving us: the next round, or the next plane, settles it.
      }
    }
  }
}

export const defaultDevice: MakeDevice = () => Device.factory();
