/** Which nodes serve this call: a quiet line beside the room's name, and the whole ids, as the log has them, in the dialog. */

import type { Placement } from 'roomlog-client';
import { h } from './dom.js';

/** Characters of an id up to which the line shows all of it; of a longer, random one it shows the first six, as `roomlog replay` does. */
const WHOLE_ID = 10;
const SHORT_ID = 6;

export class Served {
  readonly line = h('p', { class: 'served', hidden: true });
  readonly details = h('section', { class: 'served-details', hidden: true, 'aria-label': 'Nodes that serve this call' });

  show({ ec, ea, worker, mediaEpoch }: Placement): void {
    const parts = [ec && `EC ${short(ec)}`, ea && `EA ${short(ea)}`, ea && worker !== undefined && `worker ${worker}`].filter(Boolean);
    this.line.textContent = parts.join(' · ');
    this.line.hidden = this.details.hidden = parts.length === 0;
    const row = (word: string, value: string) => h('div', {}, h('dt', {}, word), h('dd', {}, value));
    this.details.replaceChildren(
      h('h3', {}, 'Served by'),
      h(
        'dl',
        {},
        row('EC (signalling)', ec ?? 'unknown'),
        row('EA (media)', ea ?? 'none now'),
        row('Worker', worker === undefined ? 'none now' : String(worker)),
        row('Media epoch', String(mediaEpoch)),
      ),
    );
  }
}

const short = (id: string): string => (id.length <= WHOLE_ID ? id : `${id.slice(0, SHORT_ID)}…`);
