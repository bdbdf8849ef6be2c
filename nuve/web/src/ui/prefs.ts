/** What the page remembers between visits, and what the address says. */

import { type Chosen, DEFAULT_VIDEO, parseVideoWish, type VideoWish } from './devices.js';

const KEY = 'roomlog.prefs';

export interface Prefs extends Partial<Chosen> {
  name?: string | undefined;
}

export function loadPrefs(): Prefs {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? '{}') as Prefs;
  } catch {
    return {}; // No storage (private window), or someone else's value: start afresh.
  }
}

export function savePrefs(change: Prefs): void {
  try {
    localStorage.setItem(KEY, JSON.stringify({ ...loadPrefs(), ...change }));
  } catch {
    // Not remembering is no reason to stop.
  }
}

/** `?room=&name=&join=1&video=320x240@15&mic=0&camera=0&simulcast=0`, and `#autojoin`. */
export interface Address {
  room: string;
  name: string;
  autojoin: boolean;
  video: VideoWish;
  mic: boolean;
  camera: boolean;
  simulcast: boolean;
}

export function readAddress(): Address {
  const query = new URLSearchParams(location.search);
  return {
    room: query.get('room') ?? '',
    name: query.get('name') ?? '',
    autojoin: query.get('join') === '1' || location.hash === '#autojoin',
    video: parseVideoWish(query.get('video')) ?? DEFAULT_VIDEO,
    mic: query.get('mic') !== '0',
    camera: query.get('camera') !== '0',
    simulcast: query.get('simulcast') !== '0',
  };
}

/** The address others use to come here. */
export function inviteLink(room: string): string {
  const url = new URL(location.href);
  url.search = '';
  url.hash = '';
  url.searchParams.set('room', room);
  return url.toString();
}
