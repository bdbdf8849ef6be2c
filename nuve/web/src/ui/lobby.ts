/** Before the call: who are you, where to, how do you look. */

import { h, icon } from './dom.js';
import { type DeviceKind, problemsInWords } from './devices.js';
import type { LocalMedia } from './local.js';
import { deviceFields } from './settings.js';
import { Tile } from './tile.js';

export interface LobbyValues {
  name: string;
  room: string;
}

export interface Lobby {
  element: HTMLElement;
  /** Shows a refusal and lets the user try again. */
  fail(message: string): void;
  busy(busy: boolean): void;
  stop(): void;
}

/** Characters; longer ones break every layout and help nobody. */
const MAX_NAME = 60;

export function lobby(local: LocalMedia, initial: LobbyValues, invited: boolean, onJoin: (values: LobbyValues) => void): Lobby {
  const name = h('input', { id: 'name', name: 'name', value: initial.name, maxlength: MAX_NAME, autocomplete: 'name', required: true, placeholder: 'Ann Smith' });
  const room = h('input', { id: 'room', name: 'room', value: initial.room, maxlength: MAX_NAME, autocomplete: 'off', required: true, placeholder: 'Monday meeting', spellcheck: 'false' });
  const error = h('p', { class: 'form-error', role: 'alert', hidden: true });
  const join = h('button', { class: 'primary join', type: 'submit' }, 'Join');
  const preview = new Tile('preview', 'self');
  preview.setMirrored(true);
  const notice = h('div', { class: 'notice', role: 'status', hidden: true });
  const switches = { mic: deviceSwitch(local, 'mic'), camera: deviceSwitch(local, 'camera') };
  const fields = deviceFields(local, () => {});

  const update = () => {
    const typed = name.value.trim();
    preview.setName(typed || 'You', typed || 'You');
    preview.setTrack(local.tracks.camera ?? null);
    preview.setShown(local.isOn('camera'));
    preview.setMuted(!local.isOn('mic'));
    const problems = problemsInWords(local.problems.camera, local.problems.mic);
    notice.hidden = problems.length === 0;
    notice.replaceChildren(icon('warn'), h('div', {}, ...problems.map((problem) => h('p', {}, problem))));
    for (const { refresh } of Object.values(switches)) refresh();
  };
  const stop = local.on('changed', update);
  name.addEventListener('input', update);

  const form = h(
    'form',
    {
      class: 'lobby-form',
      novalidate: true,
      onsubmit: (event: SubmitEvent) => {
        event.preventDefault();
        const values = { name: name.value.trim(), room: room.value.trim() };
        const missing = !values.name ? name : !values.room ? room : undefined;
        if (missing) {
          show(missing === name ? 'Please enter your name: it is what the others see.' : 'Please enter the name of the room.');
          missing.focus();
          return;
        }
        error.hidden = true;
        onJoin(values);
      },
    },
    h('div', { class: 'brand' }, brandMark(), h('span', {}, 'Roomlog')),
    h('h1', {}, invited ? 'Ready to join?' : 'Meet face to face'),
    h('p', { class: 'lead' }, invited ? 'Check how you look and sound, then go in.' : 'Choose a room name and share it. Whoever enters the same name is in the same room.'),
    h('div', { class: 'field' }, h('label', { for: 'name' }, 'Your name'), name),
    h('div', { class: 'field' }, h('label', { for: 'room' }, 'Room'), room),
    error,
    join,
  );

  const show = (message: string) => {
    error.textContent = message;
    error.hidden = false;
  };

  const element = h(
    'main',
    { class: 'lobby' },
    h(
      'div',
      { class: 'lobby-card' },
      h(
        'section',
        { class: 'lobby-preview', 'aria-label': 'Camera and microphone' },
        h('div', { class: 'preview-frame' }, h('ul', { class: 'preview-list' }, preview.element), h('div', { class: 'preview-switches' }, switches.mic.button, switches.camera.button)),
        notice,
        fields.element,
      ),
      form,
    ),
  );
  update();
  queueMicrotask(() => (initial.name ? (initial.room ? join : room) : name).focus());

  return {
    element,
    fail: show,
    busy: (busy) => {
      join.disabled = busy;
      join.textContent = busy ? 'Joining…' : 'Join';
    },
    stop: () => {
      stop();
      fields.stop();
    },
  };
}

/** A round button that switches camera or microphone, in the lobby and in the call. */
export function deviceSwitch(local: LocalMedia, kind: DeviceKind, onSwitch?: (on: boolean) => void): { button: HTMLButtonElement; refresh(): void } {
  const word = kind === 'mic' ? 'microphone' : 'camera';
  const key = kind === 'mic' ? 'M' : 'V';
  const button = h('button', {
    class: `round switch-${kind}`,
    type: 'button',
    'aria-keyshortcuts': key,
    onclick: () => {
      const on = !local.isOn(kind);
      if (onSwitch) onSwitch(on);
      else void local.switch(kind, on);
    },
  });
  const refresh = () => {
    const on = local.isOn(kind);
    button.classList.toggle('off', !on);
    button.classList.toggle('problem', local.problems[kind] !== undefined);
    button.setAttribute('aria-pressed', String(on));
    const label = on ? `Switch ${word} off` : `Switch ${word} on`;
    button.setAttribute('aria-label', label);
    button.title = local.problems[kind] ?? `${label} (${key})`;
    button.replaceChildren(icon(kind === 'mic' ? (on ? 'mic' : 'micOff') : on ? 'camera' : 'cameraOff'));
  };
  refresh();
  return { button, refresh };
}

export function brandMark(): HTMLElement {
  return h('span', { class: 'brand-mark', 'aria-hidden': 'true' }, h('i'), h('i'), h('i'));
}
