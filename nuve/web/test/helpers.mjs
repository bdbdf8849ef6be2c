/** A client on a fake server with a fake browser, and ways to wait for it. */

import { createRequire } from 'node:module';
import { WebSocket } from 'ws';
import { FakeServer } from './fake-server.mjs';

const bundle = createRequire(import.meta.url)('../node_modules/.cache/roomlog/client.cjs');
export const { RoomClient, HttpError, backoff, RECONNECT, REJOIN, Session, fitGrid, initials, FakeMediaStreamTrack } = bundle;

export const track = (kind) => new FakeMediaStreamTrack({ kind });

export function env(overrides = {}) {
  return { now: () => Date.now(), random: () => 0.5, fetch: (url, init) => fetch(url, init), openSocket: (url, protocol) => new WebSocket(url, protocol), ...overrides };
}

const makeDevice = () => bundle.Device.factory({ handlerFactory: bundle.FakeHandler.createFactory(bundle.fakeParameters) });

/** One server per test, gone with it. */
export async function serve(t) {
  const server = await new FakeServer().start();
  t.after(() => server.stop());
  return server;
}

export async function join(t, server, name, { room = 'test', publish = true, overrides } = {}) {
  const seen = [];
  const client = new RoomClient({ admit: async () => server.admit(room, name), displayName: name, env: env(overrides), makeDevice });
  for (const event of ['status', 'peerJoined', 'peerLeft', 'remoteAdded', 'remoteRemoved', 'remoteChanged', 'moving', 'reset', 'closed', 'publishFailed', 'placed']) {
    client.on(event, (...args) => seen.push([event, ...args]));
  }
  t.after(() => client.leave());
  if (publish) {
    await client.publish('mic', track('audio'));
    await client.publish('camera', track('video'));
  }
  await client.join();
  return { client, seen, named: (event) => seen.filter(([known]) => known === event) };
}

/** Opens sockets whose messages are handed on in bursts, those of a burst in one go: what follows an answer does not wait for who awaits it. */
export function burstySocket(url, protocol) {
  const socket = new WebSocket(url, protocol);
  let listener;
  let burst = [];
  socket.on('message', (data) => {
    burst.push({ data: String(data) });
    if (burst.length > 1) return;
    setTimeout(() => {
      const all = burst;
      burst = [];
      for (const event of all) listener?.(event);
    }, 20);
  });
  return Object.defineProperty(socket, 'onmessage', { set: (set) => (listener = set), get: () => listener });
}

/** Waits until `condition` is true; says what was waited for when it never is. */
export async function until(what, condition, ms = 5_000) {
  const end = Date.now() + ms;
  while (Date.now() < end) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  throw new Error(`not within ${ms} ms: ${what}`);
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
