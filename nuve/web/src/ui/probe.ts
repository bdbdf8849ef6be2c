/** `window.__roomlog`: what tests and the curious may look at. It observes; the page does not depend on it. */

import type { Remote, RoomClient } from 'roomlog-client';

/** ms between looks for a first decoded frame: the precision of the measurement. */
const LOOK = 10;
/** ms after which a frame that has not come is not waited for. */
const LOOK_FOR = 20_000;

export interface InboundStats {
  id: string;
  peerId: string;
  kind: 'audio' | 'video';
  source: string;
  paused: boolean;
  framesDecoded: number;
  framesDropped: number;
  freezeCount: number;
  frameWidth: number;
  frameHeight: number;
  bytesReceived: number;
  packetsReceived: number;
  packetsLost: number;
  totalAudioEnergy: number;
}

export class RoomProbe {
  client: RoomClient | undefined;
  joined = false;
  leftByUser = false;
  /** `performance.now()` of: the wish to join, being joined, and the first decoded frame of each peer; and who was there before us. */
  marks = freshMarks();
  /** Everything that happened, newest last. */
  readonly log: { at: number; event: string; data?: unknown }[] = [];

  start(client: RoomClient): void {
    this.client = client;
    this.joined = false;
    this.leftByUser = false;
    this.marks = { ...freshMarks(), started: performance.now() };
    client.on('status', (status) => {
      this.#note('status', status);
      if (status !== 'joined' || this.joined) return;
      this.joined = true;
      this.marks.joined = performance.now();
      this.marks.present = [...client.peers.keys()];
    });
    client.on('closed', (reason) => {
      this.leftByUser = reason.kind === 'left';
      this.#note('closed', reason.kind === 'error' ? reason.error.message : reason);
    });
    client.on('peerJoined', ({ id, displayName }) => this.#note('peerJoined', { id, displayName }));
    client.on('peerLeft', ({ id }) => this.#note('peerLeft', { id }));
    client.on('moving', (moving) => this.#note('moving', moving));
    client.on('connection', (direction, state) => this.#note('connection', { direction, state }));
    client.on('publishFailed', (source, error) => this.#note('publishFailed', `${source}: ${error.message}`));
    client.on('remoteRemoved', ({ id }, why) => this.#note('remoteRemoved', { id, why }));
    client.on('remoteAdded', (remote) => {
      this.#note('remoteAdded', { id: remote.id, peerId: remote.peerId, kind: remote.kind });
      if (remote.kind === 'video') void this.#awaitFrame(remote);
    });
  }

  get peers(): { id: string; displayName: string }[] {
    return [...(this.client?.peers.values() ?? [])].map(({ id, displayName }) => ({ id, displayName }));
  }

  /** What arrives, track by track. */
  async stats(): Promise<InboundStats[]> {
    return Promise.all([...(this.client?.remotes.values() ?? [])].map((remote) => inbound(remote)));
  }

  /** Drops the socket without a good-bye, as a cut cable would. */
  breakSocket(): void {
    this.client?.connectionLost();
  }

  async #awaitFrame(remote: Remote): Promise<void> {
    const until = performance.now() + LOOK_FOR;
    while (performance.now() < until && !remote.consumer.closed) {
      if ((await inbound(remote)).framesDecoded > 0) {
        this.marks.firstFrame[remote.peerId] ??= performance.now();
        return this.#note('firstFrame', { id: remote.id });
      }
      await new Promise((resolve) => setTimeout(resolve, LOOK));
    }
  }

  #note(event: string, data?: unknown): void {
    this.log.push({ at: performance.now(), event, data });
    if (this.log.length > 2_000) this.log.shift();
  }
}

const freshMarks = () => ({ started: 0, joined: 0, present: [] as string[], firstFrame: {} as Record<string, number> });

async function inbound(remote: Remote): Promise<InboundStats> {
  const result: InboundStats = {
    id: remote.id,
    peerId: remote.peerId,
    kind: remote.kind,
    source: remote.source,
    paused: remote.paused,
    framesDecoded: 0,
    framesDropped: 0,
    freezeCount: 0,
    frameWidth: 0,
    frameHeight: 0,
    bytesReceived: 0,
    packetsReceived: 0,
    packetsLost: 0,
    totalAudioEnergy: 0,
  };
  if (remote.consumer.closed) return result;
  const report = await remote.consumer.getStats().catch(() => undefined);
  report?.forEach((entry: Record<string, unknown>) => {
    if (entry['type'] !== 'inbound-rtp') return;
    for (const key of Object.keys(result) as (keyof InboundStats)[]) {
      if (typeof result[key] === 'number' && typeof entry[key] === 'number') (result as unknown as Record<string, unknown>)[key] = entry[key];
    }
  });
  return result;
}
