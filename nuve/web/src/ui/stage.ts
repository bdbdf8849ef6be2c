/** Where the tiles are: a grid of people, or a shared screen with the people beside it. */

import { h } from './dom.js';
import { fitGrid } from './grid.js';
import type { Tile } from './tile.js';

/** px between tiles; must agree with the style sheet. */
const GAP = 10;
/** px; smaller tiles are not recognisable: then the grid scrolls. */
const MIN_TILE = 104;

export class Stage {
  readonly #screens = h('ul', { class: 'screens', 'aria-label': 'Shared screens', hidden: true });
  readonly #people = h('ul', { class: 'grid', 'aria-label': 'People' });
  readonly element = h('div', { class: 'stage' }, this.#screens, this.#people);
  readonly #tiles = new Map<string, Tile>();
  readonly #observer = new ResizeObserver(() => this.layout());

  constructor() {
    this.#observer.observe(this.element);
    this.#observer.observe(this.#people);
  }

  add(tile: Tile): void {
    this.remove(tile.key);
    this.#tiles.set(tile.key, tile);
    // Ourselves last: the others are whom we came for.
    if (tile.kind === 'screen') this.#screens.append(tile.element);
    else if (tile.kind === 'self') this.#people.append(tile.element);
    else this.#people.insertBefore(tile.element, this.#people.querySelector('.tile-self'));
    this.layout();
  }

  remove(key: string): void {
    this.#tiles.get(key)?.remove();
    if (this.#tiles.delete(key)) this.layout();
  }

  layout(): void {
    const screens = this.#screens.childElementCount;
    this.#screens.hidden = screens === 0;
    this.element.classList.toggle('with-screen', screens > 0);
    if (screens > 0) {
      const { clientWidth: width, clientHeight: height } = this.#screens;
      const { columns, rows } = fitGrid(screens, width, height, GAP);
      this.#screens.style.setProperty('--columns', String(columns));
      this.#screens.style.setProperty('--rows', String(rows));
      return; // Beside a screen people stand in a strip, which the style sheet sizes.
    }
    const style = getComputedStyle(this.#people);
    const width = this.#people.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const height = this.#people.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
    const fit = fitGrid(this.#people.childElementCount, width, height, GAP);
    this.#people.style.setProperty('--tile-width', `${Math.max(MIN_TILE, fit.width)}px`);
    this.#people.style.setProperty('--tile-height', `${Math.max(MIN_TILE, fit.height)}px`);
    this.#people.style.setProperty('--columns', String(fit.columns));
  }

  stop(): void {
    this.#observer.disconnect();
  }
}
