/** NUVE's HTTP calls that a browser needs: the demo service, a token, where a room is. */

import type { Admission, Location } from './types.js';
import { type Env, within } from './env.js';

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

export interface DemoService {
  publishableKey: string;
  service: string;
}

export const fetchDemoService = (env: Env, baseUrl: string): Promise<DemoService> =>
  call(env, 'asking for the demo service', `${baseUrl}/v1/demo`);

export interface TokenRequest {
  publishableKey: string;
  /** A room id, or `name:` and the room's name. */
  room: string;
  user: string;
  role?: string;
  create?: boolean;
}

/** `name:` plus the name as one path segment. */
export const roomByName = (name: string): string => `name:${encodeURIComponent(name)}`;

export const fetchToken = (env: Env, baseUrl: string, request: TokenRequest): Promise<Admission> =>
  call(env, 'asking for a token', `${baseUrl}/v1/rooms/${request.room}/tokens`, {
    method: 'POST',
    headers: { authorization: `Bearer ${request.publishableKey}`, 'content-type': 'application/json' },
    body: JSON.stringify({ user: request.user, role: request.role ?? 'presenter', create: request.create ?? true }),
  });

export const locate = (env: Env, locateUrl: string): Promise<Location> =>
  call(env, 'asking where the room is', locateUrl);
