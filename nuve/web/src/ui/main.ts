/** The page: lobby, call, good-bye, and the way between them. */

import { type CloseReason, fetchDemoService, fetchToken, HttpError, RoomClient } from 'roomlog-client';
import { call, type Call } from './call.js';
import { h } from './dom.js';
import { lobby, brandMark, type Lobby, type LobbyValues } from './lobby.js';
import { LocalMedia } from './local.js';
import { loadPrefs, readAddress, savePrefs } from './prefs.js';
import { RoomProbe } from './probe.js';

const address = readAddress();
const prefs = loadPrefs();
const root = document.getElementById('app')!;
const probe = new RoomProbe();
(window as unknown as { __roomlog: RoomProbe }).__roomlog = probe;

/** NUVE serves this page, so it is where the page comes from. */
const baseUrl = location.origin;

const local = new LocalMedia({ mic: prefs.mic, camera: prefs.camera, speaker: prefs.speaker }, address.video);
let current: { stop(): void } | undefined;

function show(element: HTMLElement, stop: () => void): void {
  current?.stop();
  current = { stop };
  root.replaceChildren(element);
}

async function openDevices(): Promise<void> {
  await Promise.all([address.mic ? local.switch('mic', true) : undefined, address.camera ? local.switch('camera', true) : undefined]);
}

/** In words for the user; the console has the rest. */
function explain(error: unknown): string {
  console.error('roomlog:', error);
  if (error instanceof HttpError) {
    if (error.status === 0) return 'The server cannot be reached. Check your network and try again.';
    if (error.status === 404) return 'This server does not offer rooms to visitors: its demo service is switched off.';
    if (error.status === 429) return 'Too many people are joining right now. Wait a moment and try again.';
    if (error.status >= 500) return 'The server cannot take you in at the moment. Try again shortly.';
  }
  return `Joining failed: ${(error as Error).message}`;
}

function client(values: LobbyValues): RoomClient {
  return new RoomClient({
    displayName: values.name,
    device: { flag: 'browser', name: navigator.userAgent.includes('Firefox') ? 'Firefox' : navigator.userAgent.includes('Chrome') ? 'Chrome' : 'Safari' },
    admit: async () => {
      const { publishableKey } = await fetchDemoService(baseUrl);
      return fetchToken(baseUrl, { publishableKey, room: values.room, user: values.name });
    },
  });
}

function showLobby(values: LobbyValues, invited: boolean, failure?: string): Lobby {
  const page = lobby(local, values, invited, (entered) => void enter(entered, page));
  show(page.element, () => page.stop());
  if (failure) page.fail(failure);
  return page;
}

async function enter(values: LobbyValues, page: Lobby | undefined): Promise<void> {
  page?.busy(true);
  savePrefs({ name: values.name });
  // Reloading comes back to the same room.
  const here = new URL(location.href);
  here.searchParams.set('room', values.room);
  history.replaceState(null, '', here);
  document.title = `${values.room} · Roomlog`;
  const room = client(values);
  probe.start(room);
  const view: Call = call({
    client: room,
    local,
    room: values.room,
    video: address.video,
    simulcast: address.simulcast,
    onClosed: (reason) => {
      // A failure to get in is told in the lobby.
      if (probe.joined) showEnd(values, reason);
    },
  });
  try {
    const joining = room.join();
    if (!page) show(view.element, () => view.stop());
    await joining;
    if (page) show(view.element, () => view.stop());
  } catch (error) {
    view.stop();
    if (reasonIsOurs(room)) return showEnd(values, { kind: 'left' });
    showLobby(values, false, explain(error));
  }
}

const reasonIsOurs = (room: RoomClient): boolean => room.status === 'closed' && probe.leftByUser;

const END_WORDS: Record<string, [title: string, text: string]> = {
  kicked: ['You were removed from the room', 'Somebody who runs this room has asked you to leave.'],
  'room closed': ['The room was closed', 'Somebody who runs this room has ended the call for everyone.'],
  replaced: ['You joined from somewhere else', 'The call goes on in the window that came last. This one has stepped back.'],
};

function showEnd(values: LobbyValues, reason: CloseReason): void {
  local.stop();
  document.title = 'Roomlog';
  let [title, text] = ['You have left the call', `The room “${values.room}” is still there if you want to go back.`];
  if (reason.kind === 'refused') [title, text] = END_WORDS[reason.reason] ?? ['The call has ended', `The server said: ${reason.reason}.`];
  if (reason.kind === 'error') [title, text] = ['The connection could not be restored', explain(reason.error)];
  const again = h(
    'button',
    {
      class: 'primary',
      type: 'button',
      onclick: () => {
        again.disabled = true;
        void openDevices().then(() => enter(values, undefined));
      },
    },
    'Rejoin',
  );
  const back = h('button', { class: 'secondary', type: 'button', onclick: () => (void openDevices(), showLobby(values, false)) }, 'Back to the start');
  show(
    h('main', { class: 'end' }, h('div', { class: 'end-card' }, brandMark(), h('h1', {}, title), h('p', {}, text), h('div', { class: 'end-actions' }, again, back))),
    () => {},
  );
  again.focus();
}

const values: LobbyValues = { name: address.name || prefs.name || '', room: address.room };
if (address.autojoin && values.room) {
  values.name ||= 'Guest';
  // At once, devices or not: whoever waits for a permission can already watch.
  void openDevices();
  void enter(values, undefined);
} else {
  showLobby(values, address.room !== '');
  void openDevices();
}
