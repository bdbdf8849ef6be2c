/** The call: tiles, the bar of controls, and what is to be said when something is not well. */

import { type CloseReason, type PeerInfo, type Remote, RoomClient, type RoomStatus } from 'roomlog-client';
import { canShareScreen, openScreen, type VideoWish } from './devices.js';
import { h, icon } from './dom.js';
import { videoEncodings } from './encodings.js';
import { LayerChooser } from './layers.js';
import { brandMark, deviceSwitch } from './lobby.js';
import type { LocalMedia } from './local.js';
import { inviteLink } from './prefs.js';
import { Served } from './served.js';
import { deviceFields, settingsDialog } from './settings.js';
import { Sound } from './sound.js';
import { Stage } from './stage.js';
import { Tile } from './tile.js';

/** ms a passing message stays. */
const TOAST_TIME = 5_000;
/** ms a connection may be away before we speak of it: most breaks are over sooner, and nobody noticed. */
const QUIET_RECONNECT = 400;
/** Of 10; below it the picture is visibly poor. */
const WEAK_SCORE = 5;

export interface CallOptions {
  client: RoomClient;
  local: LocalMedia;
  room: string;
  video: VideoWish;
  simulcast: boolean;
  onClosed: (reason: CloseReason) => void;
}

export interface Call {
  element: HTMLElement;
  stop(): void;
}

export function call({ client, local, room, video, simulcast, onClosed }: CallOptions): Call {
  const stage = new Stage();
  const sound = new Sound();
  const layers = new LayerChooser(client);
  const people = new Map<string, Tile>();
  const screens = new Map<string, Tile>();
  const stops: (() => void)[] = [];
  let myScreen: MediaStreamTrack | undefined;

  // ---- the page ----
  const count = h('span', { class: 'count', 'aria-live': 'polite' });
  const banner = h('div', { class: 'banner', role: 'status', 'aria-live': 'polite', hidden: true });
  const toasts = h('div', { class: 'toasts', role: 'status', 'aria-live': 'polite' });
  const alone = h('p', { class: 'alone', hidden: true }, 'Nobody else is here yet. Share the link to invite them.');
  const mic = deviceSwitch(local, 'mic', (on) => void local.switch('mic', on));
  const camera = deviceSwitch(local, 'camera', (on) => void local.switch('camera', on));
  const fields = deviceFields(local, (deviceId) => sound.setSpeaker(deviceId));
  const served = new Served();
  const dialog = settingsDialog(fields, served.details);
  const share = h('button', { class: 'round share', type: 'button', 'aria-pressed': 'false', onclick: () => void toggleScreen() }, icon('screen'));
  share.hidden = !canShareScreen();
  const settings = h('button', { class: 'round', type: 'button', 'aria-label': 'Devices', title: 'Devices', onclick: () => (void fields.refresh(), dialog.showModal()) }, icon('settings'));
  const leave = h('button', { class: 'round leave', type: 'button', 'aria-label': 'Leave the call', title: 'Leave', onclick: () => client.leave() }, icon('leave'));
  const invite = h('button', { class: 'quiet', type: 'button', onclick: () => void copyLink() }, icon('link'), h('span', { class: 'wide-only' }, 'Copy link'));
  invite.setAttribute('aria-label', 'Copy the link to this room');

  const element = h(
    'main',
    { class: 'call' },
    h('header', { class: 'call-header' }, brandMark(), h('div', { class: 'room-title' }, h('h1', { class: 'room-name', title: room }, room), served.line), h('span', { class: 'people' }, icon('people'), count), invite),
    h('div', { class: 'call-middle' }, stage.element, alone, banner, toasts),
    h('footer', { class: 'controls', role: 'toolbar', 'aria-label': 'Call controls' }, mic.button, camera.button, share, settings, leave),
    dialog,
    sound.element,
  );

  // ---- ourselves ----
  const self = new Tile('self', 'self');
  self.setName(client.displayName, client.displayName);
  self.setMirrored(true);
  stage.add(self);

  const showSelf = () => {
    self.setTrack(local.tracks.camera ?? null);
    self.setShown(local.isOn('camera'));
    self.setMuted(!local.isOn('mic'));
    mic.refresh();
    camera.refresh();
  };

  const sendMic = async () => {
    const track = local.tracks.mic;
    if (!client.outgoing('mic')) {
      if (track) await client.publish('mic', track);
      if (track && !local.isOn('mic')) await client.setPaused('mic', true);
      return;
    }
    await client.setPaused('mic', !local.isOn('mic'), track ?? null);
  };
  const sendCamera = async () => {
    const track = local.tracks.camera;
    if (!client.outgoing('camera')) {
      if (track) await client.publish('camera', track, { encodings: videoEncodings(video, simulcast) });
      return;
    }
    await client.setPaused('camera', !local.isOn('camera'), track ?? null);
  };
  const report = (what: string) => (error: Error) => {
    // A change made while the connection is away is repeated by the client; only a refusal is news.
    if (client.status === 'joined') toast(`${what}: ${error.message}`);
  };
  stops.push(
    local.on('changed', (kind) => {
      showSelf();
      const problem = local.problems[kind];
      if (problem && !local.tracks[kind]) toast(problem);
      void (kind === 'mic' ? sendMic() : sendCamera()).catch(report(kind === 'mic' ? 'The microphone could not be switched' : 'The camera could not be switched'));
    }),
  );

  const showShare = () => {
    const on = myScreen !== undefined;
    share.classList.toggle('on', on);
    share.setAttribute('aria-pressed', String(on));
    const label = on ? 'Stop sharing your screen' : 'Share your screen';
    share.setAttribute('aria-label', label);
    share.title = label;
  };
  const stopScreen = async () => {
    const track = myScreen;
    if (!track) return;
    myScreen = undefined;
    track.stop();
    stage.remove('screen:self');
    showShare();
    await client.unpublish('screen').catch(report('The screen share could not be ended cleanly'));
  };
  const toggleScreen = async () => {
    if (myScreen) return stopScreen();
    try {
      const track = await openScreen();
      if (!track) return;
      if (client.status === 'closed') return track.stop();
      myScreen = track;
      track.addEventListener('ended', () => void stopScreen());
      const tile = new Tile('screen:self', 'screen');
      tile.setName('Your', client.displayName);
      tile.element.querySelector('.tile-name')!.textContent = 'Your screen';
      tile.setTrack(track);
      tile.setShown(true);
      stage.add(tile);
      showShare();
      await client.publish('screen', track, { appData: { share: true } });
    } catch (error) {
      toast(`The screen cannot be shared: ${(error as Error).message}`);
      await stopScreen();
    }
  };
  showShare();

  // ---- the others ----
  const showCount = () => {
    const others = client.peers.size;
    count.textContent = String(others + 1);
    count.setAttribute('aria-label', others === 0 ? 'Only you are here' : `${others + 1} people are here`);
    alone.hidden = others > 0 || client.status !== 'joined';
  };
  const remoteOf = (peerId: string, kind: 'audio' | 'video') => [...client.remotes.values()].find((remote) => remote.peerId === peerId && remote.kind === kind && remote.source !== 'screen');
  const showPerson = (peerId: string) => {
    const tile = people.get(peerId);
    if (!tile) return;
    const seen = remoteOf(peerId, 'video');
    const heard = remoteOf(peerId, 'audio');
    if (seen) tile.setTrack(seen.track);
    const moving = tile.element.classList.contains('moving');
    if (seen || !moving) tile.setShown(seen !== undefined && !seen.paused);
    if (heard || !moving) tile.setMuted(heard === undefined || heard.paused);
    const score = (seen ?? heard)?.score;
    tile.setWeak(score !== undefined && score > 0 && score < WEAK_SCORE);
  };
  const addPerson = (peer: PeerInfo) => {
    if (people.has(peer.id)) return;
    const tile = new Tile(peer.id, 'person');
    tile.setName(peer.displayName, peer.id);
    people.set(peer.id, tile);
    stage.add(tile);
    showPerson(peer.id);
    showCount();
  };
  const dropScreen = (remoteId: string) => {
    if (!screens.delete(remoteId)) return;
    stage.remove(`screen:${remoteId}`);
  };

  stops.push(
    client.on('peerJoined', (peer) => {
      addPerson(peer);
      if (client.status === 'joined') toast(`${peer.displayName} has joined`);
    }),
    client.on('peerLeft', (peer) => {
      people.delete(peer.id);
      stage.remove(peer.id);
      showCount();
      toast(`${peer.displayName} has left`);
    }),
    client.on('peerRenamed', (peer) => people.get(peer.id)?.setName(peer.displayName, peer.id)),
    client.on('reset', () => {
      for (const id of people.keys()) stage.remove(id);
      people.clear();
      for (const id of [...screens.keys()]) dropScreen(id);
      showCount();
    }),
    client.on('remoteAdded', (remote) => {
      if (remote.kind === 'audio') sound.add(remote.id, remote.track, local.chosen.speaker);
      if (remote.source === 'screen') addScreen(remote);
      else {
        people.get(remote.peerId)?.setMoving(false);
        showPerson(remote.peerId);
      }
      if (remote.kind === 'video') layers.watch(remote, () => (remote.source === 'screen' ? screens.get(remote.id) : people.get(remote.peerId))?.element);
    }),
    client.on('remoteChanged', (remote) => {
      if (remote.source === 'screen') screens.get(remote.id)?.setShown(!remote.paused);
      else showPerson(remote.peerId);
    }),
    client.on('remoteRemoved', (remote, why) => {
      if (remote.kind === 'audio') sound.remove(remote.id);
      layers.forget(remote.id);
      if (remote.source === 'screen') return dropScreen(remote.id);
      const tile = people.get(remote.peerId);
      if (!tile) return;
      if (why === 'moving') return tile.setMoving(true);
      if (remote.kind === 'video') tile.setTrack(null);
      showPerson(remote.peerId);
    }),
    client.on('moving', (moving) => {
      if (!moving) return;
      // Whoever sends nothing after the move has nothing to wait for.
      setTimeout(() => {
        for (const [id, tile] of people) {
          tile.setMoving(false);
          if (!remoteOf(id, 'video')) tile.setTrack(null);
          showPerson(id);
        }
      }, 8_000);
    }),
    client.on('placed', (placement) => served.show(placement)),
    client.on('activeSpeaker', (peerId) => {
      for (const [id, tile] of people) tile.setSpeaking(id === peerId);
      self.setSpeaking(peerId !== null && peerId === client.clientId);
    }),
    client.on('publishFailed', (source, error) => toast(`Your ${source === 'mic' ? 'microphone' : source} is not being sent: ${error.message}`)),
    client.on('suspended', () => toast('The server is having trouble. The call goes on; changes may take a moment.')),
  );
  const addScreen = (remote: Remote) => {
    const tile = new Tile(`screen:${remote.id}`, 'screen');
    tile.setName(client.peers.get(remote.peerId)?.displayName ?? 'Somebody', remote.peerId);
    tile.setTrack(remote.track);
    tile.setShown(!remote.paused);
    screens.set(remote.id, tile);
    stage.add(tile);
  };

  // ---- how the connection is ----
  let bannerTimer: ReturnType<typeof setTimeout> | undefined;
  const showBanner = () => {
    clearTimeout(bannerTimer);
    const status: RoomStatus = client.status;
    if (status === 'joined' || status === 'closed') {
      banner.hidden = true;
      return;
    }
    const offline = !navigator.onLine;
    const text =
      status === 'joining' ? 'Joining…' : offline ? 'No network. You will be back by yourself as soon as it returns.' : 'Connection lost. Reconnecting…';
    bannerTimer = setTimeout(() => {
      banner.replaceChildren(h('span', { class: 'spinner', 'aria-hidden': 'true' }), h('span', {}, text));
      banner.hidden = false;
    }, QUIET_RECONNECT);
  };
  stops.push(
    client.on('status', () => {
      showBanner();
      showCount();
    }),
    client.on('closed', (reason) => onClosed(reason)),
  );
  const listen = <K extends keyof WindowEventMap>(event: K, listener: (event: WindowEventMap[K]) => void) => {
    window.addEventListener(event, listener);
    stops.push(() => window.removeEventListener(event, listener));
  };
  listen('online', () => (client.retryNow(), showBanner()));
  listen('offline', () => (client.connectionLost(), showBanner()));
  listen('keydown', (event) => {
    const typing = event.target instanceof HTMLElement && event.target.closest('input, select, textarea, dialog');
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.key === 'm' || event.key === 'M') mic.button.click();
    if (event.key === 'v' || event.key === 'V') camera.button.click();
  });
  listen('resize', () => stage.layout());

  sound.onBlocked = () => {
    const button = h('button', { class: 'primary', type: 'button', onclick: () => (sound.unblock(), notice.remove()) }, 'Switch sound on');
    const notice = h('div', { class: 'toast' }, h('span', {}, 'The browser waits for a click before it plays sound.'), button);
    toasts.append(notice);
  };

  const toast = (text: string) => {
    for (const old of toasts.querySelectorAll('.toast')) if (old.textContent === text) old.remove();
    const notice = h('div', { class: 'toast' }, text);
    toasts.append(notice);
    setTimeout(() => notice.remove(), TOAST_TIME);
  };

  const copyLink = async () => {
    const link = inviteLink(room);
    try {
      await navigator.clipboard.writeText(link);
      toast('Link copied');
    } catch {
      toast(link); // No clipboard on insecure pages: then at least to be read and copied by hand.
    }
  };

  showSelf();
  showCount();
  showBanner();
  void Promise.all([sendMic(), sendCamera()]);

  return {
    element,
    stop: () => {
      for (const stop of stops) stop();
      clearTimeout(bannerTimer);
      myScreen?.stop();
      layers.stop();
      sound.stop();
      fields.stop();
      stage.stop();
    },
  };
}

