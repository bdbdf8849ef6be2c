/** People meet on the page: they see and hear each other, mute, share, leave and return. */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { assertAllDecode, firstFrames, join, median, openBrowser, pause, stats, tile, until } from '../lib/people.mjs';
import { skip, startServer } from '../lib/server.mjs';

/** ms from being joined to seeing somebody, in the middle of all measured. */
const FIRST_FRAME_BOUND = 1_000;

let server;
let browser;
before(async () => {
  if (skip) return;
  server = await startServer();
  browser = await openBrowser('--auto-select-desktop-capture-source=Entire screen');
});
after(async () => {
  await browser?.close();
  await server?.stop();
});
const close = (pages) => Promise.all(pages.map((page) => page.context().close()));

test('two people see and hear each other, soon', { skip }, async () => {
  const ann = await join(browser, server, 'two', 'Ann');
  await pause(500);
  const bob = await join(browser, server, 'two', 'Bob');
  await assertAllDecode([ann, bob]);
  const times = await firstFrames(bob);
  console.log('first frame, ms:', JSON.stringify(times));
  assert.equal(times.length, 1);
  assert.ok(times[0].afterJoined <= FIRST_FRAME_BOUND, `${times[0].afterJoined} ms`);
  await close([ann, bob]);
});

test('four people all see and hear all others, soon', { skip }, async () => {
  const pages = [];
  const times = [];
  for (const name of ['Ann', 'Bob', 'Cleo', 'Dan']) {
    const page = await join(browser, server, 'four', name);
    pages.push(page);
    await until(page, 'a frame of everybody', (count) => Object.keys(globalThis.__roomlog.marks.firstFrame).length >= count, 10_000, pages.length - 1);
    times.push(...(await firstFrames(page)));
  }
  await assertAllDecode(pages);
  const middle = median(times.map((one) => one.afterJoined));
  console.log('first frames, ms:', JSON.stringify(times), 'median after joining', middle);
  assert.equal(times.length, 6);
  assert.ok(middle <= FIRST_FRAME_BOUND, `median ${middle} ms`);
  await close(pages);
});

test('who mutes is seen muted, and who switches the camera off is seen without, until they come back', { skip }, async () => {
  const [ann, bob] = [await join(browser, server, 'mute', 'Ann'), await join(browser, server, 'mute', 'Bob')];
  await assertAllDecode([ann, bob]);
  const annAtBob = tile(bob, 'Ann');
  await ann.click('.switch-mic');
  await annAtBob.locator('.tile-muted').waitFor({ state: 'visible', timeout: 2_000 });
  const quiet = (await stats(bob)).find((one) => one.kind === 'audio');
  assert.equal(quiet.paused, true);
  await pause(500);
  const still = (await stats(bob)).find((one) => one.kind === 'audio');
  await pause(1_000);
  const later = (await stats(bob)).find((one) => one.kind === 'audio');
  assert.equal(later.packetsReceived, still.packetsReceived, 'nothing is forwarded of a muted microphone');
  await ann.click('.switch-mic');
  await annAtBob.locator('.tile-muted').waitFor({ state: 'hidden', timeout: 2_000 });

  await ann.click('.switch-camera');
  await until(bob, 'Ann without picture', () => document.querySelector('.grid .tile-person')?.classList.contains('no-video'), 2_000);
  await ann.click('.switch-camera');
  await until(bob, 'Ann with picture', () => !document.querySelector('.grid .tile-person')?.classList.contains('no-video'), 4_000);
  await assertAllDecode([ann, bob]);
  await close([ann, bob]);
});

test('a shared screen reaches the others, and goes when it is stopped', { skip }, async () => {
  const [ann, bob] = [await join(browser, server, 'screen', 'Ann'), await join(browser, server, 'screen', 'Bob')];
  await ann.click('button.share');
  await until(bob, 'frames of the screen', async () => (await globalThis.__roomlog.stats()).some((one) => one.source === 'screen' && one.framesDecoded > 0), 10_000);
  assert.equal(await bob.locator('.screens .tile-name').innerText(), 'Ann’s screen');
  assert.equal(await bob.locator('.grid .tile').count(), 2, 'the people are still there');
  await ann.click('button.share');
  await bob.locator('.screens .tile').waitFor({ state: 'detached', timeout: 2_000 });
  await close([ann, bob]);
});

test('who leaves is gone within a second, and can come back', { skip }, async () => {
  const [ann, bob] = [await join(browser, server, 'leave', 'Ann'), await join(browser, server, 'leave', 'Bob')];
  await assertAllDecode([ann, bob]);
  await bob.click('button.leave');
  await tile(ann, 'Bob').waitFor({ state: 'detached', timeout: 1_000 });
  assert.deepEqual(await stats(ann), []);
  await bob.click('text=Rejoin');
  await until(bob, 'being in again', () => globalThis.__roomlog.client.status === 'joined', 5_000);
  await assertAllDecode([ann, bob]);
  // Closing the window is leaving too.
  await bob.context().close();
  await tile(ann, 'Bob').waitFor({ state: 'detached', timeout: 1_000 });
  await close([ann]);
});

test('somebody without camera and microphone can watch', { skip }, async () => {
  const ann = await join(browser, server, 'watch', 'Ann');
  const eve = await join(browser, server, 'watch', 'Eve', { more: '&mic=0&camera=0' });
  await until(eve, 'Ann seen and heard', async () => {
    const all = await globalThis.__roomlog.stats();
    return all.some((one) => one.framesDecoded > 0) && all.some((one) => one.totalAudioEnergy > 0);
  }, 10_000);
  assert.deepEqual(await stats(ann), []);
  await tile(ann, 'Eve').waitFor();
  await close([ann, eve]);
});
