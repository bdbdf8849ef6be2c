/** One rectangle of the grid: a person, or a shared screen. */

import { h, icon } from './dom.js';

/** Hues of the discs shown instead of a picture; equal lightness, so that white initials are readable on all. */
const HUES = [205, 262, 330, 18, 42, 150, 178, 232];

export function initials(name: string): string {
  const words = name.trim().split(/\s+/u).filter(Boolean);
  const first = [...(words[0] ?? '?')][0] ?? '?';
  const last = words.length > 1 ? ([...(words[words.length - 1] ?? '')][0] ?? '') : '';
  return (first + last).toLocaleUpperCase();
}

function hue(text: string): number {
  let hash = 0;
  for (const char of text) hash = (hash * 31 + (char.codePointAt(0) ?? 0)) >>> 0;
  return HUES[hash % HUES.length] ?? 205;
}

export type TileKind = 'person' | 'self' | 'screen';

export class Tile {
  readonly element: HTMLElement;
  readonly video: HTMLVideoElement;
  readonly #avatar: HTMLElement;
  readonly #name: HTMLElement;
  readonly #muted: HTMLElement;
  readonly #weak: HTMLElement;
  #label = '';
  #shown = false;
  #isMuted = false;

  constructor(
    readonly key: string,
    readonly kind: TileKind,
  ) {
    this.video = h('video', { class: 'tile-video', autoplay: true, playsinline: true, muted: true, tabindex: -1, 'aria-hidden': 'true' });
    // The attribute alone does not mute an element made by script. Sound has elements of its own.
    this.video.muted = true;
    this.#avatar = h('div', { class: 'avatar', 'aria-hidden': 'true' });
    this.#name = h('span', { class: 'tile-name' });
    this.#muted = h('span', { class: 'tile-muted', hidden: true }, icon('micOff'));
    this.#weak = h('span', { class: 'tile-weak', hidden: true, title: 'Weak connection' }, icon('weak'));
    this.element = h(
      'li',
      { class: `tile tile-${kind} no-video`, 'data-key': key },
      this.#avatar,
      this.video,
      h('div', { class: 'tile-moving', 'aria-hidden': 'true' }, h('span', { class: 'spinner' })),
      h('div', { class: 'tile-label' }, this.#muted, this.#name, this.#weak),
    );
  }

  setName(name: string, colourKey: string): void {
    this.#label = name;
    this.#name.textContent = this.kind === 'self' ? `${name} (you)` : this.kind === 'screen' ? `${name}’s screen` : name;
    this.#avatar.textContent = initials(name);
    this.element.style.setProperty('--hue', String(hue(colourKey)));
    this.#describe();
  }

  /** Shows a track; null shows the disc instead. While moving, the last picture stays. */
  setTrack(track: MediaStreamTrack | null): void {
    const current = (this.video.srcObject as MediaStream | null)?.getVideoTracks()[0] ?? null;
    if (current !== track) this.video.srcObject = track ? new MediaStream([track]) : null;
    if (track) void this.video.play().catch(() => {}); // Muted video may always play; a track may end meanwhile.
    if (!track) this.setShown(false);
  }

  setShown(shown: boolean): void {
    this.#shown = shown;
    this.element.classList.toggle('no-video', !shown);
    this.#describe();
  }

  get shown(): boolean {
    return this.#shown;
  }

  setMuted(muted: boolean): void {
    this.#isMuted = muted;
    this.#muted.hidden = !muted;
    this.#describe();
  }

  get muted(): boolean {
    return this.#isMuted;
  }

  setMoving(moving: boolean): void {
    this.element.classList.toggle('moving', moving);
  }

  setSpeaking(speaking: boolean): void {
    this.element.classList.toggle('speaking', speaking);
  }

  setWeak(weak: boolean): void {
    this.#weak.hidden = !weak;
  }

  setMirrored(mirrored: boolean): void {
    this.element.classList.toggle('mirrored', mirrored);
  }

  remove(): void {
    this.video.srcObject = null;
    this.element.remove();
  }

  #describe(): void {
    const parts = [this.#name.textContent || this.#label];
    if (this.kind !== 'screen') parts.push(this.#isMuted ? 'microphone off' : 'microphone on', this.#shown ? 'camera on' : 'camera off');
    this.element.setAttribute('aria-label', parts.join(', '));
  }
}
