/** Building elements without a framework. */

type Props = Record<string, string | number | boolean | ((event: never) => void) | undefined>;
type Child = Node | string | false | null | undefined;

/** `h('button', { class: 'x', onclick: f }, 'text')`. `on…` are listeners, booleans are attributes that are there or not. */
export function h<K extends keyof HTMLElementTagNameMap>(tag: K, props: Props = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === 'function') element.addEventListener(name.slice(2), value as EventListener);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== undefined && value !== false) element.setAttribute(name, String(value));
  }
  for (const child of children) if (child !== false && child !== null && child !== undefined) element.append(child);
  return element;
}

/** Our icons: 24×24, drawn with strokes, so that they follow the text colour. */
const ICONS = {
  mic: 'M12 3a3 3 0 0 0-3 3v6a3 3 0 0 0 6 0V6a3 3 0 0 0-3-3z M5.5 11.5a6.5 6.5 0 0 0 13 0 M12 18v3',
  micOff: 'M9 9.5V12a3 3 0 0 0 4.6 2.5 M15 11.5V6a3 3 0 0 0-5.8-1.1 M5.5 11.5a6.5 6.5 0 0 0 10 5.5 M18.1 13.8a6.5 6.5 0 0 0 .4-2.3 M12 18v3 M4 4l16 16',
  camera: 'M4.5 6.5h9a2 2 0 0 1 2 2v7a2 2 0 0 1-2 2h-9a2 2 0 0 1-2-2v-7a2 2 0 0 1 2-2z M15.5 10.8l6-3.3v9l-6-3.3',
  cameraOff: 'M9.5 6.5h4a2 2 0 0 1 2 2v4 M15.5 10.8l6-3.3v9l-4-2.2 M14.8 17a2 2 0 0 1-1.3.5h-9a2 2 0 0 1-2-2v-7a2 2 0 0 1 1.7-2 M3.5 3.5l17 17',
  screen: 'M4 4.5h16a1.5 1.5 0 0 1 1.5 1.5v9.5A1.5 1.5 0 0 1 20 17H4a1.5 1.5 0 0 1-1.5-1.5V6A1.5 1.5 0 0 1 4 4.5z M8 20.5h8 M12 14V8 M9 10.6 12 7.6l3 3',
  settings: 'M4 7h9 M17 7h3 M4 17h3 M11 17h9 M15 4.8a2.2 2.2 0 1 1 0 4.4 2.2 2.2 0 0 1 0-4.4z M9 14.8a2.2 2.2 0 1 1 0 4.4 2.2 2.2 0 0 1 0-4.4z',
  leave: 'M2.8 14.6c-.6-.7-.6-1.7 0-2.5 5-5.4 13.400-5.400 18.400 0 .6.8.6 1.800 0 2.500l-1.500 1.500c-.5.5-1.300.600-1.900.200l-2.300-1.500a1.400 1.400 0 0 1-.6-1.400l.2-1.600a10.500 10.500 0 0 0-6.200 0l.2 1.600c.1.500-.1 1.100-.6 1.400l-2.300 1.500c-.6.4-1.400.3-1.900-.2z',
  link: 'M10 14a4 4 0 0 0 5.7 0l3-3a4 4 0 0 0-5.700-5.700l-1.200 1.200 M14 10a4 4 0 0 0-5.700 0l-3 3a4 4 0 0 0 5.700 5.700l1.200-1.200',
  people: 'M9 11.500a3.200 3.200 0 1 0 0-6.400 3.200 3.200 0 0 0 0 6.400z M3 19a6 6 0 0 1 12 0 M16 5.400a3.200 3.200 0 0 1 0 5.800 M17.500 13.600A6 6 0 0 1 21 19',
  warn: 'M12 4 2.800 19.500h18.400z M12 10v4.500 M12 17v.2',
  weak: 'M5 19v-4 M10 19v-7 M15 19V9 M20 19V5',
  close: 'M6 6l12 12 M18 6 6 18',
} as const;

export type IconName = keyof typeof ICONS;

export function icon(name: IconName): SVGSVGElement {
  const ns = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(ns, 'svg');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('class', `icon icon-${name}`);
  // The name of the control says it in words.
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS(ns, 'path');
  path.setAttribute('d', ICONS[name]);
  svg.append(path);
  return svg;
}
