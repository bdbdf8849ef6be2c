/** Asks for the size of picture that a tile can show, and no more. */

import type { Remote, RoomClient } from 'roomlog-client';

/** ms between looks; a resize need not be answered at once. */
const PERIOD = 1_000;
/** Device pixels of tile height up to which the quarter, then the half size, is enough. */
const QUARTER_UP_TO = 200;
const HALF_UP_TO = 420;
/** All of them: the frame rate is the server's to reduce. */
const TOP_TEMPORAL_LAYER = 2;

export class LayerChooser {
  readonly #watched = new Map<string, { remote: Remote; element: () => HTMLElement | undefined; asked: number }>();
  readonly #timer: ReturnType<typeof setInterval>;

  constructor(private readonly client: RoomClient) {
    this.#timer = setInterval(() => this.#look(), PERIOD);
  }

  watch(remote: Remote, element: () => HTMLElement | undefined): void {
    // Only streams that come in several sizes.
    const layers = Number(/^[LS](\d)/.exec(remote.consumer.rtpParameters.encodings?.[0]?.scalabilityMode ?? '')?.[1] ?? 1);
    if (layers > 1) this.#watched.set(remote.id, { remote, element, asked: layers - 1 });
  }

  forget(id: string): void {
    this.#watched.delete(id);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #look(): void {
    if (this.client.status !== 'joined') return;
    for (const [id, entry] of this.#watched) {
      const element = entry.element();
      if (!element || entry.remote.paused) continue;
      const pixels = element.clientHeight * devicePixelRatio;
      const wanted = entry.remote.source === 'screen' ? 2 : pixels <= QUARTER_UP_TO ? 0 : pixels <= HALF_UP_TO ? 1 : 2;
      if (wanted === entry.asked) continue;
      entry.asked = wanted;
      this.client.setPreferredLayers(id, wanted, TOP_TEMPORAL_LAYER).catch(() => {}); // Without it we get what we got so far.
    }
  }
}
