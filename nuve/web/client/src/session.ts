/**
 * One client's standing with the EC, across as many sockets as it takes.
 *
 * To protoo's `Peer` this is a transport that never breaks: when a socket is lost, the session finds out where the room is,
 * opens a new one, says `resume`, hands on what was missed and sends the unanswered requests again (the server knows them by
 * their ids and does nothing twice). Only when the server no longer knows us, or the resume time is over, does it end.
 */

import { backoff } from './backoff.js';
import { Emitter } from './emitter.js';
import { type Env, sleep, within } from './env.js';
import { HttpError, locate } from './http.js';
import { type Admission, ErrorCode, type Message, type Opened, RequestError, type Resumed } from './types.js';

/** ms; must agree with the server's resume time, after which it has let go of us. */
const RESUME_WINDOW = 30_000;
/** ms for the socket to open and the first answer to come. Below the 15 s the server may take: a new try is cheaper. */
const HANDSHAKE_TIMEOUT = 8_000;
/** ms for which a first opening is tried, when the server refuses for the moment (429, 503 before the upgrade). */
const OPEN_WINDOW = 12_000;
/** Requests kept for repetition while there is no socket; more than a call ever has in flight. */
const MAX_UNANSWERED = 256;
/** protoo draws its ids from 0 to 10⁷; ours lie above and count up, so that no answer is mistaken for another. */
const FIRST_HANDSHAKE_ID = 10_000_001;

const SUB_PROTOCOL = 'protoo';
/** The only close code the server calls final; its reason says why. */
const CLOSED_FOR_GOOD = 4000;

export type EndReason =
  /** We left. */
  | 'left'
  /** The server forgot us or the resume time is over: a new token is needed, and will do. */
  | 'gone'
  /** `kicked`, `room closed`, `replaced`, `bad token`, …: coming back is not wanted. */
  | { final: string };

type SessionEvents = {
  /** protoo's own events. */
  open: [];
  disconnected: [];
  failed: [attempt: number];
  close: [];
  message: [message: Message];
  /** The socket is lost; we are on our way back. */
  broken: [];
  /** One attempt to come back has failed; the next is `delay` ms away. */
  retrying: [attempt: number, delay: number];
  resumed: [answer: Resumed];
  ended: [reason: EndReason];
};

class Closed extends Error {
  constructor(
    readonly code: number,
    readonly reason: string,
    readonly wasOpen: boolean,
  ) {
    super(`the connection was closed (${code}${reason ? ` ${reason}` : ''})`);
  }
}

class Forgotten extends Error {}

export class Session extends Emitter<SessionEvents> {
  readonly #env: Env;
  readonly #admission: Admission;
  #wsUrl: string;
  #locateUrl: string;
  #opened: Opened | undefined;
  #socket: WebSocket | undefined;
  /** Whether `socket` has passed `token` or `resume`. */
  #live = false;
  #coming = false;
  #ended = false;
  #since = 0;
  #handshakeId = FIRST_HANDSHAKE_ID;
  readonly #unanswered = new Map<number, Message>();
  /** What came on this socket before it was live. */
  #early: Message[] = [];
  #wake: (() => void) | undefined;

  constructor(env: Env, admission: Admission) {
    super();
    this.#env = env;
    this.#admission = admission;
    this.#wsUrl = admission.wsUrl;
    this.#locateUrl = admission.locateUrl;
  }

  /** protoo asks this of a transport. */
  get closed(): boolean {
    return this.#ended;
  }

  /** The highest version seen; what `resume` asks to continue from. */
  get since(): number {
    return this.#since;
  }

  get live(): boolean {
    return this.#live;
  }

  /** Opens the first socket and is admitted. Throws what the server said when it is final. */
  async open(): Promise<Opened> {
    const deadline = this.#env.now() + OPEN_WINDOW;
    for (let attempt = 0; ; attempt++) {
      try {
        const token = this.#admission.token;
        const opened = (await this.#connect(withQuery(this.#wsUrl, 'token', token), 'token', { token })) as unknown as Opened;
        this.#opened = opened;
        if (opened.locateUrl) this.#locateUrl = this.#atNuve(opened.locateUrl);
        this.#seen(opened.v);
        this.#enliven();
        this.emit('open');
        this.#catchUp();
        return opened;
      } catch (error) {
        const retryable = error instanceof Closed ? error.code !== CLOSED_FOR_GOOD : !(error instanceof RequestError) || error.code === ErrorCode.retryLater;
        if (this.#ended || !retryable || this.#env.now() > deadline) {
          this.#dropSocket(1000);
          throw error instanceof Closed && error.reason ? new RequestError(error.code, error.reason, 'token') : error;
        }
        await sleep(backoff(attempt + 1, this.#env.random()));
      }
    }
  }

  /** protoo's way out: nothing is lost by a break, except answers, which the server asks for again. */
  async send(message: Message): Promise<void> {
    if (this.#ended) throw new Error('the session is over');
    if (message.request && message.id !== undefined) {
      if (this.#unanswered.size >= MAX_UNANSWERED) throw new Error('too many requests are waiting for the connection to come back');
      this.#unanswered.set(message.id, message);
    }
    if (this.#live) this.#socket?.send(JSON.stringify(message));
  }

  /** Leaves: the server lets go of us at once (close code 1000). */
  close(): void {
    this.#end('left');
  }

  /** Treats the socket as lost, without waiting for the browser to notice. */
  breakSocket(): void {
    if (!this.#live) return;
    this.#dropSocket();
    void this.#comeBack(true);
  }

  /** Cuts a wait short, for example when the browser says the network is back. */
  retryNow(): void {
    this.#wake?.();
  }

  /** The room is said to have moved, or its EC to be cut off: go where NUVE says, stay if that is here. */
  async follow(locateUrl?: string): Promise<void> {
    if (locateUrl) this.#locateUrl = this.#atNuve(locateUrl);
    try {
      const { wsUrl } = await locate(this.#env, this.#locateUrl);
      if (!this.#live || wsUrl === this.#wsUrl) return;
      this.#wsUrl = wsUrl;
    } catch {
      return; // Nobody knows better: the socket we have is the best we know.
    }
    this.breakSocket();
  }

  /** An EC does not know at which address NUVE was asked, so it names a path there; the page may come from elsewhere. */
  #atNuve(url: string): string {
    return new URL(url, this.#admission.locateUrl).toString();
  }

  /** One socket and its first request. Resolves once that is answered; the socket is then ours. */
  #connect(url: string, method: string, data: Record<string, unknown>): Promise<Record<string, unknown>> {
    const id = this.#handshakeId++;
    const socket = this.#env.openSocket(url, SUB_PROTOCOL);
    this.#socket = socket;
    this.#early = [];
    let wasOpen = false;
    const answer = new Promise<Record<string, unknown>>((resolve, reject) => {
      socket.onopen = () => {
        wasOpen = true;
        socket.send(JSON.stringify({ request: true, id, method, data }));
      };
      socket.onmessage = (event: MessageEvent) => {
        if (this.#socket !== socket) return;
        const message = parse(event.data);
        if (!message) return;
        if (message.response && message.id === id) {
          if (message.ok) resolve(message.data ?? {});
          else reject(new RequestError(message.errorCode, message.errorReason, method));
        } else if (this.#live) {
          this.#receive(message);
        } else {
          this.#early.push(message);
        }
      };
      socket.onerror = () => {}; // The close event that follows says more.
      socket.onclose = (event: CloseEvent) => {
        if (this.#socket !== socket) return;
        const closed = new Closed(event.code, event.reason, wasOpen);
        reject(closed);
        if (this.#live) this.#lost(closed);
      };
    });
    return within(HANDSHAKE_TIMEOUT, `opening the connection with "${method}"`, answer).catch((error: unknown) => {
      if (this.#socket === socket) this.#dropSocket();
      throw error;
    });
  }

  #receive(message: Message): void {
    if (message.response && message.id !== undefined) this.#unanswered.delete(message.id);
    this.emit('message', message);
    // After the listeners: a version counts as seen once what it told has been handed on.
    if (!message.response) this.#seen(message.data?.['v']);
  }

  #seen(version: unknown): void {
    if (typeof version === 'number' && version > this.#since) this.#since = version;
  }

  /** The socket has passed its first request: everything unanswered goes out (again), in the order it was asked. */
  #enliven(): void {
    this.#live = true;
    for (const message of this.#unanswered.values()) this.#socket?.send(JSON.stringify(message));
  }

  #lost(closed: Closed): void {
    this.#live = false;
    this.#socket = undefined;
    if (this.#ended) return;
    if (closed.code === CLOSED_FOR_GOOD) {
      if (closed.reason !== 'moved') return this.#end({ final: closed.reason || 'closed by the server' });
    } else if (closed.code === 1000) {
      return this.#end('gone'); // By the protocol a 1000 is a leave: there is nothing to resume.
    }
    void this.#comeBack(true);
  }

  async #comeBack(first: boolean): Promise<void> {
    if (this.#coming || this.#ended) return;
    this.#coming = true;
    this.#live = false;
    if (first) this.emit('broken');
    const deadline = this.#env.now() + RESUME_WINDOW;
    try {
      for (let attempt = 0; !this.#ended; attempt++) {
        const delay = backoff(attempt, this.#env.random());
        this.emit('retrying', attempt, delay);
        await this.#waitOrWake(delay);
        if (this.#ended) return;
        try {
          const answer = await this.#resumeOnce();
          if (this.#ended) return this.#dropSocket(1000);
          this.#coming = false;
          this.#replay(answer);
          return;
        } catch (error) {
          if (error instanceof Forgotten) return this.#end('gone');
          if (error instanceof Closed && error.code === CLOSED_FOR_GOOD && error.reason !== 'moved') {
            const forgotten = error.reason === 'bad token' || error.reason === 'used token';
            return this.#end(forgotten ? 'gone' : { final: error.reason || 'closed by the server' });
          }
          if (error instanceof HttpError && error.retryAfter) await this.#waitOrWake(Math.min(error.retryAfter, 5_000) * this.#env.random());
        }
        // Looked at after a try, never before one: whoever wakes from a long sleep still gets one.
        if (this.#env.now() > deadline) return this.#end('gone');
      }
    } finally {
      this.#coming = false;
    }
  }

  async #resumeOnce(): Promise<Resumed> {
    try {
      this.#wsUrl = (await locate(this.#env, this.#locateUrl)).wsUrl;
    } catch (error) {
      if (error instanceof HttpError && error.status === 404) throw new Forgotten('the room is gone');
      // 503: it is being placed, so the old place is certainly wrong. Otherwise NUVE itself is away, and the old place our best guess.
      if (error instanceof HttpError && error.status === 503) throw error;
    }
    const opened = this.#opened;
    if (!opened) throw new Forgotten('never admitted');
    try {
      const { clientId, roomId, resumeKey } = opened;
      const url = withQuery(this.#wsUrl, 'resume', '1');
      return (await this.#connect(url, 'resume', { clientId, roomId, resumeKey, since: this.#since })) as unknown as Resumed;
    } catch (error) {
      if (error instanceof RequestError) {
        const gone: (number | undefined)[] = [ErrorCode.noRoom, ErrorCode.unknownClient, ErrorCode.noSuchClientOnEa, ErrorCode.forbidden];
        if (gone.includes(error.code)) throw new Forgotten(error.message);
      }
      throw error;
    }
  }

  /** Hands on what was missed, in order, then says we are back, then repeats what nobody answered. */
  #replay(answer: Resumed): void {
    for (const { method, data } of answer.events ?? []) this.#receive({ notification: true, method, data: data ?? {} });
    this.#seen(answer.v);
    this.#enliven();
    this.emit('resumed', answer);
    this.#catchUp();
  }

  /** Hands on what came on the heels of the first answer: not before what that answer tells, and not before we could answer it. */
  #catchUp(): void {
    const early = this.#early;
    this.#early = [];
    if (!this.#live) return;
    for (const message of early) this.#receive(message);
  }

  #waitOrWake(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const done = () => (clearTimeout(timer), (this.#wake = undefined), resolve());
      const timer = setTimeout(done, ms);
      this.#wake = done;
    });
  }

  #dropSocket(code?: number): void {
    const socket = this.#socket;
    this.#socket = undefined;
    this.#live = false;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    try {
      // 1000 means leaving. Any other number in the range open to pages is, to the server, an abnormal loss.
      socket.close(code ?? 4900);
    } catch {
      // A socket that cannot be closed is closed.
    }
  }

  #end(reason: EndReason): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#dropSocket(1000);
    this.#unanswered.clear();
    this.#wake?.();
    this.emit('ended', reason);
    this.emit('close');
  }
}

function parse(raw: unknown): Message | undefined {
  try {
    const value: unknown = JSON.parse(String(raw));
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Message) : undefined;
  } catch {
    return undefined;
  }
}

function withQuery(url: string, key: string, value: string): string {
  const parsed = new URL(url);
  parsed.searchParams.set(key, value);
  return parsed.toString();
}
