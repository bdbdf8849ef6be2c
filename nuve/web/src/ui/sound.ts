/** Everybody's voice: one hidden audio element each, and the browser's wish for a click before it plays. */

import { h } from './dom.js';

export class Sound {
  readonly element = h('div', { hidden: true });
  readonly #voices = new Map<string, HTMLAudioElement>();
  #blocked = false;
  onBlocked: () => void = () => {};

  add(id: string, track: MediaStreamTrack, speaker: string | undefined): void {
    const audio = h('audio', { autoplay: true });
    audio.srcObject = new MediaStream([track]);
    this.#voices.set(id, audio);
    this.element.append(audio);
    if (speaker) void this.#sink(audio, speaker);
    audio.play().catch((error: DOMException) => {
      if (error.name !== 'NotAllowedError' || this.#blocked) return;
      this.#blocked = true;
      this.onBlocked();
    });
  }

  remove(id: string): void {
    const audio = this.#voices.get(id);
    this.#voices.delete(id);
    if (!audio) return;
    audio.srcObject = null;
    audio.remove();
  }

  setSpeaker(deviceId: string): void {
    for (const audio of this.#voices.values()) void this.#sink(audio, deviceId);
  }

  unblock(): void {
    this.#blocked = false;
    for (const audio of this.#voices.values()) void audio.play().catch(() => {});
  }

  stop(): void {
    for (const id of [...this.#voices.keys()]) this.remove(id);
  }

  async #sink(audio: HTMLAudioElement, deviceId: string): Promise<void> {
    try {
      await (audio as { setSinkId?: (id: string) => Promise<void> }).setSinkId?.(deviceId);
    } catch {
      // A speaker that has gone: the system's own is used.
    }
  }
}
