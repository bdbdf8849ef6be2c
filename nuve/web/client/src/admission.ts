/** What `admit` returned, looked at before it is used: it comes from code of the page's author, often straight from a server of theirs. */

import type { Admission } from './types.js';

/** Characters of a wrong answer that its error shows: enough to recognise a problem document by. */
const SHOWN = 200;

/** Returns `answer` when a client can be admitted with it; otherwise throws what is missing and what there was instead. */
export function checkAdmission(answer: unknown): Admission {
  const fields = (typeof answer === 'object' && answer !== null ? answer : {}) as Record<string, unknown>;
  const wrong = (['wsUrl', 'locateUrl', 'token', 'roomId', 'clientId'] as const).find((name) => typeof fields[name] !== 'string' || fields[name] === '');
  if (wrong) throw new Error(`admit: what it returned is no token answer (it has no ${wrong}): ${shown(answer)}`);
  const badUrl = (['wsUrl', 'locateUrl'] as const).find((name) => !isUrl(String(fields[name]), name === 'wsUrl' ? 'ws' : 'http'));
  if (badUrl) throw new Error(`admit: what it returned is no token answer (its ${badUrl} is no absolute address): ${shown(answer)}`);
  return answer as Admission;
}

function isUrl(text: string, scheme: 'ws' | 'http'): boolean {
  try {
    return new RegExp(`^${scheme}s?:$`).test(new URL(text).protocol);
  } catch {
    return false;
  }
}

function shown(answer: unknown): string {
  if (typeof (answer as { json?: unknown } | null | undefined)?.json === 'function') return 'a Response; return what its json() gives';
  let text: string | undefined;
  try {
    // A token admits whoever has it: errors get into logs.
    text = JSON.stringify(answer, (key, value: unknown) => (key === 'token' ? '…' : value));
  } catch {
    // What has no JSON is named as what it is.
  }
  text ??= String(answer);
  return text.length > SHOWN ? `${text.slice(0, SHOWN)}…` : text;
}
