/**
 * Beside a running `deploy/cluster`: what a plain protoo-client needs to be back when its EC is killed. It knows nothing of Roomlog: it tries
 * the address it was given, so the application fetches a new token when its tries fail, until NUVE names another EC.
 */

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import protoo from 'protoo-client';
import { pause } from '../lib/people.mjs';

const NUVES = ['http://127.0.0.1:7880', 'http://127.0.0.1:7881'];
/** Clients, each in a room of its own, so that each EC has some. */
const CLIENTS = 12;
/** ms between two tokens that an application fetches while it has nowhere to go. */
const ASK_AGAIN = 200;
/** ms. An EC that is gone is noticed in two seconds; this is what an application's users would still wait for. */
const BACK_WITHIN = 10_000;

const keys = JSON.parse(await readFile(new URL('../../../.cluster/nuve-1/demo-service.json', import.meta.url), 'utf8'));

async function place(room, n) {
  const answer = await fetch(`${NUVES[n % 2]}/v1/rooms/name:${room}/tokens`, {
    method: 'POST',
    headers: { authorization: `Bearer ${keys.secretKey}`, 'content-type': 'application/json' },
    body: JSON.stringify({ user: 'plain', create: true }),
  });
  if (!answer.ok) return undefined;
  const { wsUrl, token } = await answer.json();
  const url = new URL(wsUrl);
  url.searchParams.set('token', token);
  return url;
}

/** In the room, with the router's capabilities in hand; or nothing where the address does not answer. */
function enter(url) {
  return new Promise((resolve) => {
    const peer = new protoo.Peer(new protoo.WebSocketTransport(url.toString()));
    const client = { peer, port: url.port, broken: undefined };
    client.broken = new Promise((broken) => peer.on('disconnected', () => broken(performance.now())));
    peer.on('failed', () => (peer.close(), resolve(undefined)));
    peer.on('open', () => peer.request('getRouterRtpCapabilities').then(() => resolve(client), () => (peer.close(), resolve(undefined))));
  });
}

async function back(room, n, killed) {
  for (;;) {
    const url = await place(room, n);
    const client = url && (await enter(url));
    if (client) return { ...client, after: performance.now() - killed };
    assert.ok(performance.now() - killed < BACK_WITHIN, `${room} is not back`);
    await pause(ASK_AGAIN);
  }
}

test('a plain protoo-client is back through a new token when its EC is killed', async () => {
  const rooms = Array.from({ length: CLIENTS }, (_, n) => `plain-${process.pid}-${n}`);
  const clients = await Promise.all(rooms.map((room, n) => back(room, n, performance.now())));
  const port = clients[0].port;
  const pid = Number(await readFile(new URL(`../../../.cluster/ec-${port - 7889}/pid`, import.meta.url), 'utf8'));
  const hit = clients.map((client, n) => ({ client, n })).filter(({ client }) => client.port === port);
  const killed = performance.now();
  process.kill(pid, 'SIGKILL');
  const returned = await Promise.all(
    hit.map(async ({ client, n }) => {
      await client.broken;
      client.peer.close();
      return back(rooms[n], n, killed);
    }),
  );
  assert.ok(returned.every((client) => client.port !== port), 'they are at the other EC');
  const took = returned.map(({ after }) => Math.round(after)).sort((a, b) => a - b);
  console.log(`plain protoo-client: ${took.length} back after ${took[took.length >> 1]} ms (median), ${took.at(-1)} ms (worst)`);
  for (const client of [...clients, ...returned]) client.peer.close();
});
