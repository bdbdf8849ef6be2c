/** NUVE's HTTP calls that a page needs: the demo service, a token, where a room is. */

import type { Admission, Location } from './types.js';
import { browserEnv, type Env, within } from './env.js';

/** ms; a browser would wait minutes for a host that swallows packets. */
const HTTP_TIMEOUT = 6_000;

/** A refusal by NUVE (RFC 9457), or no answer at all (`status` 0). */
export class HttpError extends Error {
  constructor(
    readonly status: number,
    message: string,
    /** Milliseconds to wait, when the server said so. */
    readonly retryAfter?: number,
  ) {
    super(message);
    this.name = 'HttpError';
  }

  /** Whether the same call may succeed a little later. */
  get retryable(): boolean {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

async function call<T>(env: Env, what: string, url: string, init?: RequestInit): Promise<T> {
  let response: Response;
  try {
    response = await within(HTTP_TIMEOUT, what, env.fetch(url, init));
  } catch (error) {
    throw new HttpError(0, `${what}: the server cannot be reached (${(error as Error).message})`);
  }
  const text = await response.text();
  let body: unknown;
  try {
    body = text === '' ? undefined : JSON.parse(text);
  } catch {
    body = undefined;
  }
  if (response.ok && body !== undefined) return body as T;
  const problem = (body ?? {}) as { title?: string; detail?: string };
  const seconds = Number(response.headers.get('retry-after') ?? Number.NaN);
  throw new HttpError(
    response.ok ? 502 : response.status,
    `${what}: ${problem.detail ?? problem.title ?? (response.ok ? 'the answer is not JSON' : `HTTP ${response.status}`)}`,
    Number.isFinite(seconds) ? seconds * 1000 : undefined,
  );
}

/** A service that every server has for trying things out, unless it was switched off. */
export interface DemoService {
  publishableKey: string;
  service: string;
}

/** Asks the NUVE at `server` (such as `https://rooms.example`) for its demo service; status 404 where there is none. */
export const fetchDemoService = (server: string, env: Env = browserEnv()): Promise<DemoService> =>
  call(env, 'asking for the demo service', `${base(server)}/v1/demo`);

export interface TokenRequest {
  /** The service's publishable key, `pk_…`. The secret key has no place in a page. */
  publishableKey: string;
  /** The room's name. */
  room: string;
  /** The user's name, 1 to 128 characters. */
  user: string;
  /** `viewer` may only receive. `presenter` unless given. */
  role?: 'presenter' | 'viewer';
  /** Makes the room if there is none of that name, where the service lets its publishable key do so. True unless given. */
  create?: boolean;
}

/** Asks the NUVE at `server` for a token, which admits one client once. Where your own server hands tokens out, ask that instead. */
export const fetchToken = (server: string, request: TokenRequest, env: Env = browserEnv()): Promise<Admission> =>
  call(env, 'asking for a token', `${base(server)}/v1/rooms/name:${encodeURIComponent(request.room)}/tokens`, {
    method: 'POST',
    headers: { authorization: `Bearer ${request.publishableKey}`, 'content-type': 'application/json' },
    body: JSON.stringify({ user: request.user, role: request.role ?? 'presenter', create: request.create ?? true }),
  });

const base = (server: string): string => server.replace(/\/+$/, '');

export const locate = (env: Env, locateUrl: string): Promise<Location> =>
  call(env, 'asking where the room is', locateUrl);
