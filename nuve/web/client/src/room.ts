/**
 * A room as seen by one of its clients: who is in it, what they send, what we send. Comes back by itself: after a broken
 * socket (`resume`), after its media moved (`mediaMoved`), and, when the server has forgotten it, with a new token.
 */

import { Peer } from 'protoo-client';
import type { types as mediasoup } from 'mediasoup-client';
import { checkAdmission } from './admission.js';
import { backoff, REJOIN } from './backoff.js';
import { Emitter } from './emitter.js';
import { browserEnv, type Env, sleep, within } from './env.js';
import { HttpError } from './http.js';
import { defaultDevice, type MakeDevice, MediaPlane, type Outgoing } from './media.js';
import { type EndReason, Session } from './session.js';
import {
  type Admission,
  type DeviceInfo,
  ErrorCode,
  type MediaPlace,
  type NewConsumer,
  type Opened,
  type PeerInfo,
  type Placement,
  RequestError,
  type Resumed,
  type RoomState,
  type Source,
} from './types.js';

/** ms in which a live server answers anything; over it, a connection that looks open is taken for dead. */
const PROBE_TIMEOUT = 5_000;
/** ms to keep trying to join anew after the server forgot us, before giving up and saying so. */
const REJOIN_WINDOW = 10 * 60_000;

export interface RoomOptions {
  /**
   * Fetches a token: at the first join, and whenever the old standing is lost. What it returns is checked before anything is
   * done with it. What it throws ends the first `join`; afterwards it is asked again for up to ten minutes, unless it threw
   * an `HttpError` that is not `retryable`.
   */
  admit: () => Promise<Admission>;
  /** What the others see. Nobody vouches for it; where it is blank they see the `user` of the token. */
  displayName: string;
  /** What the others are told of our browser. */
  device?: DeviceInfo;
  /** Clock, dice, fetch and sockets; the browser's own unless given. */
  env?: Env;
  /** @internal */
  makeDevice?: MakeDevice;
}

export type RoomStatus =
  | 'idle'
  | 'joining'
  /** In the room, signalling connected. */
  | 'joined'
  /** The connection is lost and being rebuilt; media may well still flow. */
  | 'reconnecting'
  | 'closed';

/** Somebody else's track. */
export interface Remote {
  readonly id: string;
  readonly peerId: string;
  readonly producerId: string;
  readonly kind: 'audio' | 'video';
  readonly source: Source;
  readonly track: MediaStreamTrack;
  readonly consumer: mediasoup.Consumer;
  /** The sender has paused it. */
  paused: boolean;
  /** 0 to 10, as the server rates it; undefined until it does. */
  score: number | undefined;
}

export type CloseReason = { kind: 'left' } | { kind: 'refused'; reason: string } | { kind: 'error'; error: Error };

export type RoomEvents = {
  status: [status: RoomStatus];
  /** All that was known about the others is void; the peers follow anew. */
  reset: [];
  peerJoined: [peer: PeerInfo];
  peerLeft: [peer: PeerInfo];
  peerRenamed: [peer: PeerInfo];
  remoteAdded: [remote: Remote];
  /** `moving`: the media is being rebuilt and will be back under another id. */
  remoteRemoved: [remote: Remote, why: 'closed' | 'moving'];
  remoteChanged: [remote: Remote];
  activeSpeaker: [peerId: string | null, volume: number | undefined];
  /** The room's media moves to another worker (true), or has arrived (false). */
  moving: [moving: boolean];
  /** Which nodes serve us: on entering, and whenever that changes. */
  placed: [placement: Placement];
  /** One of our own tracks is not being sent. */
  publishFailed: [source: Source, error: Error];
  connection: [direction: 'send' | 'recv', state: string];
  /** The server cannot write its log for now: calls go on, changes must wait. */
  suspended: [];
  notification: [method: string, data: Record<string, unknown>];
  closed: [reason: CloseReason];
};

export class RoomClient extends Emitter<RoomEvents> {
  readonly #options: RoomOptions;
  readonly #env: Env;
  readonly peers = new Map<string, PeerInfo>();
  readonly remotes = new Map<string, Remote>();
  readonly #outgoing = new Map<Source, Outgoing>();
  /** Sources paused or resumed before they were published. */
  readonly #pausedAhead = new Map<Source, boolean>();
  #status: RoomStatus = 'idle';
  #admission: Admission | undefined;
  #opened: Opened | undefined;
  #placement: Placement | undefined;
  #session: Session | undefined;
  #peer: Peer | undefined;
  #plane: MediaPlane | undefined;
  #planeReady = deferred<MediaPlane>();
  #mediaEpoch = 0;
  /** What changes the media, one after the other. */
  #queue: Promise<unknown> = Promise.resolve();
  /** Consumers being made; an offer repeated meanwhile gets the same answer. */
  readonly #making = new Map<string, { offer: NewConsumer; taken: Promise<boolean> }>();
  /** Those of them that were closed before they were done. */
  readonly #closedEarly = new Set<string>();
  #displayName: string;

  constructor(options: RoomOptions) {
    super();
    this.#options = options;
    this.#env = options.env ?? browserEnv();
    this.#displayName = options.displayName;
  }

  get status(): RoomStatus {
    return this.#status;
  }

  get clientId(): string | undefined {
    return this.#opened?.clientId ?? this.#admission?.clientId;
  }

  get roomId(): string | undefined {
    return this.#opened?.roomId ?? this.#admission?.roomId;
  }

  get displayName(): string {
    return this.#displayName;
  }

  get mediaEpoch(): number {
    return this.#mediaEpoch;
  }

  /** Which nodes serve us, as far as the server has said; undefined before it let us in. */
  get placement(): Placement | undefined {
    return this.#placement;
  }

  /** @internal */
  get session(): Session | undefined {
    return this.#session;
  }

  /** @internal */
  get plane(): MediaPlane | undefined {
    return this.#plane;
  }

  outgoing(source: Source): Outgoing | undefined {
    return this.#outgoing.get(source);
  }

  /** Enters the room. Tracks published before are sent as soon as it is entered. */
  async join(): Promise<void> {
    if (this.#status !== 'idle') throw new Error(`join: this client is ${this.#status}; make a new one`);
    this.#setStatus('joining');
    try {
      await this.#enter();
    } catch (error) {
      this.#close({ kind: 'error', error: error as Error });
      throw error;
    }
  }

  leave(): void {
    this.#close({ kind: 'left' });
  }

  /** Sends a track, or takes its place in what is being sent for the same source. */
  async publish(source: Source, track: MediaStreamTrack, settings: Pick<Outgoing, 'encodings' | 'appData'> = {}): Promise<void> {
    await this.#enqueue(async () => {
      const known = this.#outgoing.get(source);
      if (known?.producer && !known.producer.closed) {
        known.track = track;
        await known.producer.replaceTrack({ track });
        return;
      }
      const out: Outgoing = { source, track, paused: known?.paused ?? this.#pausedAhead.get(source) ?? false, ...settings };
      this.#pausedAhead.delete(source);
      this.#outgoing.set(source, out);
      await this.#produce(out);
    });
  }

  async unpublish(source: Source): Promise<void> {
    const producerId = await this.#enqueue(async () => {
      const producer = this.#outgoing.get(source)?.producer;
      this.#outgoing.delete(source);
      if (!producer || producer.closed) return undefined;
      producer.close();
      return producer.id;
    });
    // Outside the queue: an answer that is slow in coming must not hold up the next change.
    if (producerId) await this.#request('closeProducer', { producerId });
  }

  /**
   * Mutes or unmutes; before `publish` this is remembered until then. A `track` of null lets go of the device while paused; give
   * the new one when resuming.
   */
  async setPaused(source: Source, paused: boolean, track?: MediaStreamTrack | null): Promise<void> {
    const producerId = await this.#enqueue(async () => {
      const out = this.#outgoing.get(source);
      if (!out) {
        if (track) throw new Error(`setPaused: no ${source} is published whose track could be exchanged; publish the track`);
        this.#pausedAhead.set(source, paused);
        return undefined;
      }
      out.paused = paused;
      if (track !== undefined) out.track = track;
      const producer = out.producer;
      if (!producer || producer.closed) {
        await this.#produce(out);
        return undefined;
      }
      if (track !== undefined) await producer.replaceTrack({ track });
      if (paused) producer.pause();
      else producer.resume();
      return producer.id;
    });
    if (producerId) await this.#request(paused ? 'pauseProducer' : 'resumeProducer', { producerId });
  }

  async rename(displayName: string): Promise<void> {
    await this.#request('changeDisplayName', { displayName });
    this.#displayName = displayName;
  }

  async setPreferredLayers(remoteId: string, spatialLayer: number, temporalLayer: number): Promise<void> {
    await this.#request('setConsumerPreferredLayers', { consumerId: remoteId, spatialLayer, temporalLayer });
  }

  /** Stops (or restarts) receiving one track; the sender does not notice. */
  async setReceiving(remoteId: string, receiving: boolean): Promise<void> {
    await this.#request(receiving ? 'resumeConsumer' : 'pauseConsumer', { consumerId: remoteId });
  }

  /** What the server counts of a track we receive, of its way to us and of its way from the sender, in mediasoup's words. */
  async serverStats(remoteId: string): Promise<Record<string, unknown>[]> {
    return (await this.#request('getConsumerStats', { consumerId: remoteId })) as Record<string, unknown>[];
  }

  /** The browser says the network is back, or the user is impatient. */
  retryNow(): void {
    this.#session?.retryNow();
  }

  /** The browser says the network is gone: do not wait for the socket to find out. */
  connectionLost(): void {
    this.#session?.breakSocket();
  }

  // ---- entering -------------------------------------------------------------------------------------------------------

  async #enter(): Promise<void> {
    const admission = checkAdmission(await this.#options.admit());
    this.#abortIfClosed();
    this.#admission = admission;
    const session = new Session(this.#env, admission);
    const peer = new Peer(session);
    this.#session = session;
    this.#peer = peer;
    this.#listen(session, peer);
    try {
      this.#opened = await session.open();
      const epoch = this.#opened.media?.mediaEpoch ?? 0;
      this.#mediaEpoch = epoch;
      this.#place(this.#opened.ec, this.#opened.media);
      const plane = await this.#buildPlane();
      const { peers } = (await this.#request('join', {
        displayName: this.#displayName,
        device: this.#options.device ?? {},
        rtpCapabilities: plane.device.recvRtpCapabilities,
      })) as { peers: PeerInfo[] };
      if (this.status === 'closed') plane.close();
      this.#abortIfClosed();
      for (const info of peers ?? []) this.#addPeer(info);
      this.#adoptPlane(plane);
      this.#setStatus('joined');
      // Told while we were joining that the media moved: what we have just built is already void.
      if (this.#mediaEpoch !== epoch) this.#rebuild(this.#mediaEpoch);
      else void this.#enqueue(() => this.#produceAll(false));
    } catch (error) {
      if (this.#session === session) this.#session = undefined;
      session.close();
      throw error;
    }
  }

  #listen(session: Session, peer: Peer): void {
    const ours = () => this.#session === session && this.#status !== 'closed';
    peer.on('request', (request, accept, reject) => {
      if (!ours()) return;
      if (request.method !== 'newConsumer') return reject(403, `this client does not serve "${request.method}"`);
      this.#onNewConsumer(request.data as unknown as NewConsumer).then(
        (taken) => (taken ? accept() : reject(403, 'not wanted any more')),
        (error: Error) => reject(500, error.message),
      );
    });
    peer.on('notification', ({ method, data }) => {
      if (ours()) this.#onNotification(method, data);
    });
    session.on('broken', () => {
      if (ours() && this.#status === 'joined') this.#setStatus('reconnecting');
    });
    session.on('resumed', (answer) => {
      if (ours()) this.#onResumed(answer);
    });
    session.on('ended', (reason) => {
      // protoo lets requests wait out their time when its transport closes, but not when it is closed itself.
      peer.close();
      if (ours()) this.#onEnded(reason);
    });
  }

  #onResumed(answer: Resumed): void {
    this.#place(answer.ec, answer.media);
    if (answer.state) this.#adoptState(answer.state);
    if ((answer.mediaEpoch ?? 0) > this.#mediaEpoch) this.#onMediaMoved(answer.mediaEpoch ?? 0);
    if (this.#status === 'reconnecting') this.#setStatus('joined');
  }

  #onEnded(reason: EndReason): void {
    if (reason === 'left') return;
    // While joining, the one who waits for `join` hears of it.
    if (this.#status === 'joining') return;
    if (typeof reason === 'object') return this.#close({ kind: 'refused', reason: reason.final });
    void this.#enterAgain();
  }

  /** The server knows us no more: in with a new token, as often as it takes. */
  async #enterAgain(): Promise<void> {
    this.#setStatus('reconnecting');
    const deadline = this.#env.now() + REJOIN_WINDOW;
    for (let attempt = 0; ; attempt++) {
      await sleep(backoff(attempt, this.#env.random(), REJOIN));
      if (this.#status === 'closed') return;
      this.#forgetEverybody();
      try {
        return await this.#enter();
      } catch (error) {
        if ((this.#status as RoomStatus) === 'closed') return;
        const final = error instanceof HttpError ? !error.retryable : error instanceof RequestError && error.code === 403;
        if (final || this.#env.now() > deadline) return this.#close({ kind: 'error', error: error as Error });
      }
    }
  }

  #forgetEverybody(): void {
    this.#dropPlane('closed');
    this.#placement = undefined;
    this.peers.clear();
    this.emit('reset');
  }

  // ---- media ----------------------------------------------------------------------------------------------------------

  #buildPlane(): Promise<MediaPlane> {
    return MediaPlane.build((method, data) => this.#request(method, data), this.#options.makeDevice ?? defaultDevice, {
      connectionState: (direction, state) => {
        this.emit('connection', direction, state);
        if (state === 'disconnected' || state === 'failed') void this.#probe();
      },
    });
  }

  #adoptPlane(plane: MediaPlane): void {
    this.#plane = plane;
    this.#planeReady.resolve(plane);
  }

  #dropPlane(why: 'closed' | 'moving'): void {
    const remotes = [...this.remotes.values()];
    this.remotes.clear();
    this.#plane?.close();
    if (this.#plane) this.#planeReady = deferred();
    this.#plane = undefined;
    for (const out of this.#outgoing.values()) out.producer = undefined;
    for (const remote of remotes) this.emit('remoteRemoved', remote, why);
  }

  /** Transports anew, on whatever worker the room is now, and everything we send again. */
  #onMediaMoved(epoch: number): void {
    if (epoch <= this.#mediaEpoch) return;
    this.#mediaEpoch = epoch;
    // While entering there is nothing to drop yet; `#enter` looks at the epoch when it is done.
    if (this.#plane) this.#rebuild(epoch);
  }

  #rebuild(epoch: number): void {
    this.#dropPlane('moving');
    this.emit('moving', true);
    const session = this.#session;
    const stale = () => this.#mediaEpoch !== epoch || this.#session !== session || this.#status === 'closed';
    void this.#enqueue(async () => {
      for (let attempt = 0; !stale(); attempt++) {
        try {
          const plane = await this.#buildPlane();
          if (stale()) return plane.close();
          this.#adoptPlane(plane);
          await this.#produceAll(true);
          break;
        } catch (error) {
          if (stale()) return;
          console.warn('roomlog: the media could not be rebuilt yet', error);
          this.#dropPlane('moving');
          await sleep(backoff(attempt, this.#env.random()));
        }
      }
      if (!stale()) this.emit('moving', false);
    });
  }

  /** Sends all we have. What the server refuses is reported; with `strict`, anything else that goes wrong is thrown. */
  async #produceAll(strict: boolean): Promise<void> {
    // Voice first: it is what a call cannot do without.
    const order: Source[] = ['mic', 'camera', 'screen'];
    for (const source of order) {
      const out = this.#outgoing.get(source);
      if (!out) continue;
      try {
        await this.#produce(out);
      } catch (error) {
        const refused = error instanceof RequestError && error.code === ErrorCode.forbidden;
        if (strict && !refused) throw error;
        this.emit('publishFailed', source, error as Error);
      }
    }
  }

  async #produce(out: Outgoing): Promise<void> {
    const plane = this.#plane;
    if (!plane || plane.closed || (out.producer && !out.producer.closed)) return;
    if (out.track?.readyState === 'ended') return;
    await plane.produce(out);
  }

  /** True when the consumer stands; false when it is not wanted any more. */
  #onNewConsumer(offer: NewConsumer): Promise<boolean> {
    // Asked again, because our first answer was lost with the socket.
    if (this.remotes.has(offer.id)) return Promise.resolve(true);
    const known = this.#making.get(offer.id);
    if (known) return known.taken;
    const taken = this.#makeRemote(offer).finally(() => {
      this.#making.delete(offer.id);
      this.#closedEarly.delete(offer.id);
    });
    this.#making.set(offer.id, { offer, taken });
    return taken;
  }

  async #makeRemote(offer: NewConsumer): Promise<boolean> {
    if (offer.mediaEpoch !== undefined && offer.mediaEpoch < this.#mediaEpoch) return false;
    for (;;) {
      const plane = await this.#planeReady.promise;
      let consumer: mediasoup.Consumer;
      try {
        consumer = await plane.consume(offer);
      } catch (error) {
        if (!plane.closed) throw error;
        // The media moved under us. An offer that names its epoch will come again under the new one.
        if (offer.mediaEpoch !== undefined) return false;
        if (this.#status === 'closed') return false;
        continue;
      }
      if (plane.closed || this.#closedEarly.has(offer.id)) {
        consumer.close();
        return false;
      }
      const remote: Remote = {
        id: offer.id,
        peerId: offer.peerId,
        producerId: offer.producerId,
        kind: offer.kind,
        source: sourceOf(offer),
        track: consumer.track,
        consumer,
        paused: offer.producerPaused ?? false,
        score: undefined,
      };
      this.remotes.set(remote.id, remote);
      this.emit('remoteAdded', remote);
      return true;
    }
  }

  #removeRemote(id: string): void {
    const remote = this.remotes.get(id);
    if (!remote) {
      if (this.#making.has(id)) this.#closedEarly.add(id);
      return;
    }
    this.remotes.delete(id);
    remote.consumer.close();
    this.emit('remoteRemoved', remote, 'closed');
  }

  #setRemotePaused(id: string, paused: boolean): void {
    const making = this.#making.get(id);
    if (making) making.offer.producerPaused = paused;
    this.#changeRemote(id, (remote) => (remote.paused = paused));
  }

  #changeRemote(id: unknown, change: (remote: Remote) => void): void {
    const remote = this.remotes.get(String(id));
    if (!remote) return;
    change(remote);
    this.emit('remoteChanged', remote);
  }

  // ---- what the server tells ------------------------------------------------------------------------------------------

  #onNotification(method: string, data: Record<string, unknown>): void {
    this.emit('notification', method, data);
    switch (method) {
      case 'newPeer':
        return this.#addPeer(data as unknown as PeerInfo);
      case 'peerClosed':
        return this.#removePeer(String(data['peerId']));
      case 'peerDisplayNameChanged': {
        const peer = this.peers.get(String(data['peerId']));
        if (!peer) return;
        peer.displayName = String(data['displayName']);
        return this.emit('peerRenamed', peer);
      }
      case 'consumerClosed':
        return this.#removeRemote(String(data['consumerId']));
      case 'consumerPaused':
        return this.#setRemotePaused(String(data['consumerId']), true);
      case 'consumerResumed':
        return this.#setRemotePaused(String(data['consumerId']), false);
      case 'consumerScore':
        return this.#changeRemote(data['consumerId'], (remote) => (remote.score = (data['score'] as { score?: number } | undefined)?.score));
      case 'activeSpeaker':
        return this.emit('activeSpeaker', (data['peerId'] as string | null) ?? null, data['volume'] as number | undefined);
      case 'mediaMoved':
        this.#place(this.#placement?.ec, data as MediaPlace);
        return this.#onMediaMoved(Number(data['mediaEpoch'] ?? this.#mediaEpoch + 1));
      case 'roomMoved':
        return void this.#session?.follow(data['locateUrl'] as string | undefined);
      case 'suspended':
        this.emit('suspended');
        return void this.#session?.follow();
    }
  }

  /** An answer that is older than what we know of the media changes the EC only. */
  #place(ec: string | undefined, media: MediaPlace | undefined): void {
    const known = this.#placement;
    const epoch = media?.mediaEpoch ?? this.#mediaEpoch;
    const newer = known === undefined || epoch >= known.mediaEpoch;
    const next: Placement = newer
      ? { ec, ea: media?.ea ?? undefined, worker: media?.worker ?? undefined, mediaEpoch: epoch }
      : { ...known, ec };
    if (known && (['ec', 'ea', 'worker', 'mediaEpoch'] as const).every((key) => known[key] === next[key])) return;
    this.#placement = next;
    this.emit('placed', next);
  }

  #addPeer(info: PeerInfo): void {
    if (info.id === this.clientId) return;
    const known = this.peers.get(info.id);
    if (known) {
      if (known.displayName === info.displayName) return;
      known.displayName = info.displayName;
      return this.emit('peerRenamed', known);
    }
    // Only what is declared: the notification carries a room version as well, the list of peers does not.
    const { id, displayName, device } = info;
    const peer: PeerInfo = device ? { id, displayName, device } : { id, displayName };
    this.peers.set(peer.id, peer);
    this.emit('peerJoined', peer);
  }

  #removePeer(id: string): void {
    const peer = this.peers.get(id);
    for (const remote of [...this.remotes.values()]) if (remote.peerId === id) this.#removeRemote(remote.id);
    for (const [consumerId, { offer }] of this.#making) if (offer.peerId === id) this.#closedEarly.add(consumerId);
    if (!peer) return;
    this.peers.delete(id);
    this.emit('peerLeft', peer);
  }

  /** Too much was missed to be told: the difference to what is now is the news. */
  #adoptState(state: RoomState): void {
    const present = new Set(state.peers.map((peer) => peer.id));
    for (const id of [...this.peers.keys()]) if (!present.has(id)) this.#removePeer(id);
    for (const info of state.peers) this.#addPeer(info);
    if (!state.consumers) return;
    const standing = new Set(state.consumers.map((consumer) => consumer.id));
    for (const id of [...this.remotes.keys()]) if (!standing.has(id)) this.#removeRemote(id);
  }

  // ---- small print ----------------------------------------------------------------------------------------------------

  async #request(method: string, data?: unknown): Promise<unknown> {
    const peer = this.#peer;
    if (!peer || peer.closed) throw new Error(`${method}: not connected to the room`);
    try {
      return await peer.request(method, data);
    } catch (error) {
      const { code, message } = error as Error & { code?: number };
      throw code === undefined ? new Error(`${method}: ${message}`) : new RequestError(code, message, method);
    }
  }

  /** Media is unwell: is the socket dead too? Any answer, even a refusal, shows that it is not. */
  async #probe(): Promise<void> {
    const session = this.#session;
    if (!session?.live) return;
    try {
      await within(PROBE_TIMEOUT, 'asking whether the connection lives', this.#request('getTransportStats', { transportId: this.#plane?.recv.id }));
    } catch (error) {
      if (!(error instanceof RequestError)) session.breakSocket();
    }
  }

  #enqueue<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#queue.then(work, work);
    this.#queue = turn.catch(() => {});
    return turn;
  }

  #setStatus(status: RoomStatus): void {
    if (this.#status === status || this.#status === 'closed') return;
    this.#status = status;
    this.emit('status', status);
  }

  #abortIfClosed(): void {
    if (this.#status === 'closed') throw new Error('left while joining');
  }

  #close(reason: CloseReason): void {
    if (this.#status === 'closed') return;
    this.#setStatus('closed');
    const session = this.#session;
    this.#session = undefined;
    session?.close();
    this.#dropPlane('closed');
    this.peers.clear();
    this.emit('closed', reason);
  }
}

function sourceOf(offer: NewConsumer): Source {
  if (offer.kind === 'audio') return 'mic';
  const source = String(offer.appData?.['source'] ?? '');
  // mediasoup's own demo says "screensharing" and sets `share`.
  return source.startsWith('screen') || offer.appData?.['share'] === true ? 'screen' : 'camera';
}

function deferred<T>(): { promise: Promise<T>; resolve: (value: T) => void } {
  let resolve!: (value: T) => void;
  const promise = new Promise<T>((r) => (resolve = r));
  return { promise, resolve };
}
