/** What breaks mends itself: sockets resume, media moves, and who is not concerned does not notice. */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { assertAllDecode, join, openBrowser, pause, stats, tile, until, watchGaps } from '../lib/people.mjs';
import { skip, startServer } from '../lib/server.mjs';

/** ms; below what a person calls a gap. */
const NO_GAP = 1_000;
/** ms from the death of a worker to pictures through another one. */
const MOVE_BOUND = 3_000;

let browser;
before(async () => {
  if (!skip) browser = await openBrowser();
});
after(() => browser?.close());

const withServer = async (t) => {
  const server = await startServer();
  t.after(() => server.stop());
  return server;
};

test('a broken socket resumes: same client, media without a gap, and what was missed is told', { skip }, async (t) => {
  const server = await withServer(t);
  const ann = await join(browser, server, 'resume', 'Ann');
  const bob = await join(browser, server, 'resume', 'Bob');
  const cleo = await join(browser, server, 'resume', 'Cleo');
  await assertAllDecode([ann, bob, cleo]);
  const before = await ann.evaluate(() => ({ id: globalThis.__roomlog.client.clientId, bob: globalThis.__roomlog.peers.find((peer) => peer.displayName === 'Bob').id }));
  const bobsIds = (await stats(ann)).filter((one) => one.peerId === before.bob).map((one) => one.id).sort();
  const gaps = await watchGaps(bob);

  // Held off until the others have done something.
  await ann.route('**/locate', (route) => route.fulfill({ status: 503, headers: { 'retry-after': '0' }, contentType: 'application/problem+json', body: '{"status":503}' }));
  await ann.evaluate(() => globalThis.__roomlog.breakSocket());
  await until(ann, 'noticing', () => globalThis.__roomlog.client.status === 'reconnecting');
  await ann.locator('.banner', { hasText: 'Reconnecting' }).waitFor({ timeout: 2_000 });
  await bob.click('.switch-mic');
  await cleo.click('button.leave');
  await pause(500);
  assert.equal(await ann.locator('.grid .tile-person').count(), 2, 'not told yet');
  await ann.unroute('**/locate');
  await until(ann, 'being back', () => globalThis.__roomlog.client.status === 'joined', 6_000);

  await tile(ann, 'Cleo').waitFor({ state: 'detached', timeout: 1_000 });
  await tile(ann, 'Bob').locator('.tile-muted').waitFor({ state: 'visible', timeout: 1_000 });
  assert.equal(await ann.evaluate(() => globalThis.__roomlog.client.clientId), before.id);
  assert.deepEqual((await stats(ann)).filter((one) => one.peerId === before.bob).map((one) => one.id).sort(), bobsIds, 'the same consumers');
  await bob.click('.switch-mic');
  await assertAllDecode([ann, bob]);
  // Cleo's video left on purpose: only Ann's, seen by Bob, counts.
  const seen = await gaps();
  const log = await ann.evaluate(() => globalThis.__roomlog.log.filter(({ event }) => event === 'reset' || event === 'moving').length);
  assert.equal(log, 0);
  assert.ok(seen.samples > 20);
  await Promise.all([ann, bob, cleo].map((page) => page.context().close()));
});

test('a broken socket does not interrupt what others see', { skip }, async (t) => {
  const server = await withServer(t);
  const [ann, bob] = [await join(browser, server, 'nogap', 'Ann'), await join(browser, server, 'nogap', 'Bob')];
  await assertAllDecode([ann, bob]);
  const gaps = await Promise.all([watchGaps(ann), watchGaps(bob)]);
  for (let time = 0; time < 3; time++) {
    await ann.evaluate(() => globalThis.__roomlog.breakSocket());
    await until(ann, 'noticing', () => globalThis.__roomlog.log.some(({ data }) => data === 'reconnecting'));
    await until(ann, 'being back', () => globalThis.__roomlog.client.status === 'joined');
    await pause(500);
  }
  for (const [index, end] of gaps.entries()) {
    const { longest, ids } = await end();
    console.log(['Ann', 'Bob'][index], 'longest time without a new frame, ms:', Math.round(longest));
    assert.ok(longest < NO_GAP, `${longest} ms`);
    assert.equal(ids.length, 1, 'one and the same consumer');
  }
  await Promise.all([ann, bob].map((page) => page.context().close()));
});

test('a killed worker moves its room, and the room beside it does not notice', { skip }, async (t) => {
  const server = await withServer(t);
  const rooms = {};
  for (const room of ['left', 'right']) rooms[room] = [await join(browser, server, room, 'Ann'), await join(browser, server, room, 'Bob')];
  await Promise.all(Object.values(rooms).map((pages) => assertAllDecode(pages)));
  const workers = await server.workers();
  assert.ok(workers.length >= 2, `needs two workers, has ${workers.length}; on a machine with one core set ROOMLOG_ARGS`);
  const idsBefore = {};
  for (const [room, pages] of Object.entries(rooms)) idsBefore[room] = (await Promise.all(pages.map(stats))).map((all) => all.map((one) => one.id).sort());
  const gaps = {};
  for (const [room, pages] of Object.entries(rooms)) gaps[room] = await Promise.all(pages.map(watchGaps));

  const hit = async () => {
    for (const [room, pages] of Object.entries(rooms)) if (await pages[0].evaluate(() => globalThis.__roomlog.log.some(({ event }) => event === 'moving'))) return room;
    return undefined;
  };
  const killedAt = Date.now();
  process.kill(workers[0], 'SIGKILL');
  let moved;
  while (!(moved = await hit()) && Date.now() < killedAt + 2 * MOVE_BOUND) await pause(20);
  assert.ok(moved, 'one of the two rooms was on the killed worker');
  const spared = moved === 'left' ? 'right' : 'left';
  await Promise.all(
    rooms[moved].map((page, index) =>
      until(
        page,
        'new pictures through another worker',
        async (old) => (await globalThis.__roomlog.stats()).some((one) => one.kind === 'video' && !old.includes(one.id) && one.framesDecoded > 0),
        10_000,
        idsBefore[moved][index],
      ),
    ),
  );
  const took = Date.now() - killedAt;
  console.log('pictures again after the worker was killed, ms:', took);
  assert.ok(took <= MOVE_BOUND, `${took} ms`);
  await assertAllDecode(rooms[moved]);

  for (const [index, end] of gaps[spared].entries()) {
    const { longest } = await end();
    assert.ok(longest < NO_GAP, `${spared}: ${longest} ms without a frame`);
    assert.deepEqual((await stats(rooms[spared][index])).map((one) => one.id).sort(), idsBefore[spared][index], 'the same consumers');
  }
  assert.equal(await rooms[spared][0].evaluate(() => globalThis.__roomlog.log.some(({ event }) => event === 'moving')), false);
  assert.equal(await rooms[moved][0].locator('.grid .tile').count(), 2, 'nobody disappeared');
  await Promise.all(Object.values(rooms).flat().map((page) => page.context().close()));
});
