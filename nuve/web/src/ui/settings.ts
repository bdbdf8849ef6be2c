/** Choosing microphone, camera and speaker: the fields, used by the lobby and by the dialog in a call. */

import { h, icon } from './dom.js';
import { type Chosen, listDevices } from './devices.js';
import type { LocalMedia } from './local.js';
import { savePrefs } from './prefs.js';

const LABELS: Record<keyof Chosen, string> = { mic: 'Microphone', camera: 'Camera', speaker: 'Speaker' };

export interface DeviceFields {
  element: HTMLElement;
  refresh(): Promise<void>;
  stop(): void;
}

export function deviceFields(local: LocalMedia, onSpeaker: (deviceId: string) => void): DeviceFields {
  const selects = {} as Record<keyof Chosen, HTMLSelectElement>;
  const rows = {} as Record<keyof Chosen, HTMLElement>;
  const element = h('div', { class: 'device-fields' });
  for (const kind of ['mic', 'camera', 'speaker'] as const) {
    const select = h('select', {
      id: `device-${kind}`,
      onchange: () => {
        if (kind !== 'speaker') return void local.choose(kind, select.value);
        local.chosen.speaker = select.value;
        savePrefs({ speaker: select.value });
        onSpeaker(select.value);
      },
    });
    selects[kind] = select;
    rows[kind] = h('div', { class: 'field' }, h('label', { for: `device-${kind}` }, LABELS[kind]), select);
    element.append(rows[kind]);
  }
  const refresh = async () => {
    const devices = await listDevices();
    for (const kind of ['mic', 'camera', 'speaker'] as const) {
      const list = devices[kind];
      const inUse = kind === 'speaker' ? undefined : local.tracks[kind]?.getSettings().deviceId;
      const selected = inUse ?? local.chosen[kind];
      selects[kind].replaceChildren(
        ...list.map((device, index) => h('option', { value: device.deviceId, selected: device.deviceId === selected }, device.label || `${LABELS[kind]} ${index + 1}`)),
      );
      if (list.length === 0) selects[kind].append(h('option', { value: '' }, kind === 'speaker' ? 'System default' : `No ${LABELS[kind].toLowerCase()} available`));
      selects[kind].disabled = list.length === 0;
      // Not every browser lets a page choose the speaker.
      if (kind === 'speaker') rows[kind].hidden = !('setSinkId' in HTMLMediaElement.prototype) || list.length === 0;
    }
  };
  const onChange = () => void refresh();
  navigator.mediaDevices?.addEventListener?.('devicechange', onChange);
  const stopListening = local.on('changed', onChange);
  void refresh();
  return {
    element,
    refresh,
    stop: () => {
      stopListening();
      navigator.mediaDevices?.removeEventListener?.('devicechange', onChange);
    },
  };
}

export function settingsDialog(fields: DeviceFields, more: HTMLElement): HTMLDialogElement {
  const dialog = h('dialog', { class: 'dialog', 'aria-labelledby': 'settings-title' });
  dialog.append(
    h(
      'form',
      { method: 'dialog' },
      h('header', {}, h('h2', { id: 'settings-title' }, 'Devices'), h('button', { class: 'icon-button', 'aria-label': 'Close' }, icon('close'))),
      fields.element,
      more,
      h('footer', {}, h('button', { class: 'primary' }, 'Done')),
    ),
  );
  // A click on the backdrop lands on the dialog itself.
  dialog.addEventListener('click', (event) => {
    if (event.target === dialog) dialog.close();
  });
  return dialog;
}
