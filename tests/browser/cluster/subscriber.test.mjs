/**
 * Beside a running `deploy/cluster`: browsers in rooms on both ECs and in one room through both NUVE, pages that say which nodes serve
 * them, and a subscriber in another language that sees all that the log has.
 */

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { connect } from 'nats';
import { assertAllDecode, join, openBrowser, pause } from '../lib/people.mjs';
import { events } from '../subscriber.mjs';

/** Those of `deploy/cluster`. */
const NATS = 'nats://127.0.0.1:4222';
const NUVES = ['http://127.0.0.1:7880', 'http://127.0.0.1:7881'];
/** Of rooms placed at random on two ECs, this many are on one with probability 2⁻¹⁹. */
const MOST_ROOMS = 20;
/** ms for what has been committed to reach who listens. */
const ARRIVAL = 5_000;

const subscriber = new URL('../subscriber.mjs', import.meta.url).pathname;
const keys = JSON.parse(await readFile(new URL('../../../.cluster/nuve-1/demo-service.json', import.meta.url), 'utf8'));

let browser;
let nats;
let listener;
const seen = [];
const complaints = [];

before(async () => {
  browser = await openBrowser();
  nats = await connect({ servers: NATS });
  listener = spawn(process.execPath, [subscriber, NATS], { stdio: ['ignore', 'pipe', 'pipe'] });
  createInterface({ input: listener.stdout }).on('line', (line) => seen.push(JSON.parse(line)));
  await new Promise((resolve, reject) => {
    listener.once('exit', (code) => reject(new Error(`the subscriber ended with ${code}: ${complaints.join('\n')}`)));
    createInterface({ input: listener.stderr }).on('line', (line) => (line.startsWith('listening') ? resolve() : complaints.push(line)));
  });
});
after(async () => {
  listener?.kill();
  await nats?.close();
  await browser?.close();
});

async function ask(path, init = {}, key = keys.secretKey) {
  const answer = await fetch(NUVES[0] + path, { ...init, headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' } });
  assert.ok(answer.ok, `${path}: ${answer.status}`);
  return answer.json();
}

/** Names of two rooms that are on different ECs. */
async function twoRooms() {
  const byAddress = new Map();
  for (let n = 0; n < MOST_ROOMS && byAddress.size < 2; n++) {
    const room = `cluster-${process.pid}-${n}`;
    const { wsUrl } = await ask(`/v1/rooms/name:${room}/tokens`, { method: 'POST', body: JSON.stringify({ user: 'scout', create: true }) });
    byAddress.set(wsUrl, room);
  }
  assert.equal(byAddress.size, 2, 'both ECs get rooms');
  return [...byAddress.values()];
}

/** All commits of the log, as JetStream has them, after the given ends of its streams. */
async function readLog(ends) {
  const jsm = await nats.jetstreamManager();
  const all = [];
  for (const [name, end] of ends) {
    const { state } = await jsm.streams.info(name);
    for (let seq = end + 1; seq <= state.last_seq; seq++) all.push(...events((await jsm.streams.getMessage(name, { seq })).data));
  }
  return all;
}

async function endsOfLog() {
  const ends = new Map();
  for await (const { config, state } of (await nats.jetstreamManager()).streams.list()) if (config.name.startsWith('ROOMLOG_')) ends.set(config.name, state.last_seq);
  return ends;
}

const within = async (what, ms, look) => {
  for (const end = Date.now() + ms; ; await pause(50)) {
    const found = await look();
    if (found) return found;
    if (Date.now() > end) throw new Error(`not within ${ms} ms: ${what}`);
  }
};
const history = async (room) => (await ask(`/v1/rooms/name:${room}/history?limit=1000`)).commits;
const place = ({ stream, version }) => `${stream} ${version}`;
const sorted = (list) => [...list].sort((a, b) => (a.stream < b.stream ? -1 : a.stream > b.stream ? 1 : a.version - b.version));

test('a subscriber in another language sees every event of calls on both ECs, as the log has it', async () => {
  const ends = await endsOfLog();
  assert.ok(ends.size > 0, 'the log is in JetStream');
  const from = seen.length;
  const [first, second] = await twoRooms();
  const pages = [await join(browser, { url: NUVES[0] }, first, 'Ann'), await join(browser, { url: NUVES[1] }, first, 'Bob')];
  pages.push(await join(browser, { url: NUVES[1] }, second, 'Cleo', { more: '&camera=0' }));
  await assertAllDecode(pages.slice(0, 2));

  const served = await Promise.all(pages.map((page) => page.locator('.call-header .served').innerText()));
  assert.equal(served[0], served[1], 'one room is served by the same nodes, whoever let one in');
  assert.notEqual(served[2].split(' · ')[0], served[0].split(' · ')[0], 'the other room is on the other EC');
  for (const page of pages) await page.context().close();

  const rooms = await Promise.all(
    [first, second].map((room) => within(`${room} is closed`, ARRIVAL, async () => {
      const commits = await history(room);
      return commits.at(-1).events.at(-1).type === 'RoomClosed' && commits;
    })),
  );
  for (const [index, commits] of [[0, rooms[0]], [2, rooms[1]]]) {
    const assigned = commits.flatMap((commit) => commit.events).find((event) => event.type === 'EaAssigned');
    const ec = commits.at(-1).writer.node.replace(/^ec\./, '');
    assert.equal(served[index], `EC ${ec} · EA ${assigned.data.placement.ea} · worker ${assigned.data.placement.worker}`, 'the page names the nodes that the log names');
  }

  const log = await readLog(ends);
  await within('all of the log is seen', ARRIVAL, () => seen.length - from >= log.length);
  await pause(200); // What is seen twice, or of a room and not in the log, shows as well. Nodes may go on writing.
  const kept = new Set(log.map(place));
  const got = seen.slice(from).filter((event) => event.stream.startsWith('room.') || kept.has(place(event)));
  assert.deepEqual(sorted(got), sorted(log));
  assert.deepEqual(complaints, [], 'nothing was missed or came out of order');
  // The same once more as NUVE reads and decodes it, so that nothing hangs on this program's decoder.
  for (const commits of rooms) {
    const read = commits.flatMap(({ id, stream, timeMicros, writer, epoch, events }) => events.map((event) => ({ ...event, stream, commit: id, time_us: timeMicros, writer, epoch })));
    const told = got.filter((event) => event.stream === commits[0].stream).map(({ time, cause, ...rest }) => rest);
    assert.deepEqual(told, read);
  }
  const types = new Set(got.map((event) => event.type));
  console.log(`${got.length} events of ${types.size} types in ${new Set(got.map((event) => event.stream)).size} streams, each as in the log`);
});
