/** What the client takes from the outside world, so that tests can bring their own clock, sockets and dice. */

export interface Env {
  /** Milliseconds; only differences are used. */
  now(): number;
  /** Uniform in [0, 1). */
  random(): number;
  fetch(url: string, init?: RequestInit): Promise<Response>;
  openSocket(url: string, protocol: string): WebSocket;
}

/** The browser's own. */
export const browserEnv = (): Env => ({
  // Date, not performance.now(): the latter stands still while some laptops sleep, and the resume time does not.
  now: () => Date.now(),
  random: () => Math.random(),
  fetch: (url, init) => fetch(url, init),
  openSocket: (url, protocol) => new WebSocket(url, protocol),
});

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Rejects with `message` when the promise takes longer than `ms`. */
export function within<T>(ms: number, message: string, promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`${message} (no answer within ${ms} ms)`)), ms);
    promise.then(
      (value) => (clearTimeout(timer), resolve(value)),
      (error: unknown) => (clearTimeout(timer), reject(error as Error)),
    );
  });
}
