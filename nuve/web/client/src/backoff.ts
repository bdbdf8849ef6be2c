/** How long to wait before trying again: doubling, capped, and jittered so that a room's clients do not return in one wave. */

export interface BackoffSettings {
  /** First step, ms. 250: a dropped socket is usually back at once. */
  readonly base: number;
  /** Longest step, ms. 4000: several tries still fit into the 30 s a server keeps us. */
  readonly cap: number;
}

export const RECONNECT: BackoffSettings = { base: 250, cap: 4_000 };

/** For a server that has been away for long: nobody is kept waiting by a slower pace. */
export const REJOIN: BackoffSettings = { base: 1_000, cap: 10_000 };

/**
 * Wait in ms before attempt `attempt` (0 is the first). The step is `base · 2^attempt`, at most `cap`; the wait is drawn
 * from its upper half. Attempt 0 waits at most one `base`: long enough to spread a herd, too short to notice.
 */
export function backoff(attempt: number, random: number, { base, cap }: BackoffSettings = RECONNECT): number {
  if (attempt <= 0) return Math.round(base * random);
  const step = Math.min(cap, base * 2 ** Math.min(attempt, 30));
  return Math.round(step / 2 + (step / 2) * random);
}
