/** Unmodified mediasoup-client and protoo-client, used the way their own demo does, are served as well. */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { join, openBrowser, openPage, pause, until, VIDEO } from '../lib/people.mjs';
import { skip, startServer } from '../lib/server.mjs';

let server;
let browser;
before(async () => {
  if (skip) return;
  server = await startServer();
  browser = await openBrowser();
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

const bare = async (room, name) => {
  const page = await openPage(browser);
  page.who = name;
  await page.goto(`${server.url}/bare.html?room=${room}&name=${name}&video=${VIDEO}`);
  await until(page, 'being in the room, or not', () => ['joined', 'failed'].includes(globalThis.__bare?.state), 10_000);
  assert.equal(await page.evaluate(() => globalThis.__bare.error), '');
  return page;
};
const flows = async (page, count) => {
  const sample = () => page.evaluate(() => globalThis.__bare.stats());
  await until(
    page,
    `${count} seen and heard`,
    async (wanted) => {
      const all = await globalThis.__bare.stats();
      return all.filter((one) => one.kind === 'video' && one.framesDecoded > 0).length === wanted && all.filter((one) => one.kind === 'audio' && one.totalAudioEnergy > 0).length === wanted;
    },
    10_000,
    count,
  );
  const before = await sample();
  await pause(2_000);
  for (const now of await sample()) {
    const old = before.find((one) => one.id === now.id);
    if (now.kind === 'video') assert.ok(now.framesDecoded > old.framesDecoded + 10, `${page.who}: ${old.framesDecoded} → ${now.framesDecoded}`);
  }
};

test('two bare clients see and hear each other', { skip }, async () => {
  const pages = [await bare('bare', 'Ann'), await bare('bare', 'Bob')];
  await Promise.all(pages.map((page) => flows(page, 1)));
  await Promise.all(pages.map((page) => page.context().close()));
});

test('a bare client and the page see and hear each other', { skip }, async () => {
  const [plain, page] = [await bare('mixed', 'Ann'), await join(browser, server, 'mixed', 'Bob')];
  await flows(plain, 1);
  await until(page, 'the bare client decoded', async () => (await globalThis.__roomlog.stats()).some((one) => one.framesDecoded > 0));
  await Promise.all([plain, page].map((one) => one.context().close()));
});

test('a bare client whose socket broke starts over on the same address, once', { skip }, async () => {
  const [ann, bob] = [await bare('again', 'Ann'), await bare('again', 'Bob')];
  await Promise.all([ann, bob].map((page) => flows(page, 1)));
  await ann.evaluate(() => globalThis.__bare.breakSocket());
  await until(ann, 'being in again', () => globalThis.__bare.joins === 2 && globalThis.__bare.state === 'joined', 10_000);
  await Promise.all([ann, bob].map((page) => flows(page, 1)));
  assert.equal(await bob.evaluate(() => globalThis.__bare.peers.size), 1, 'Ann is there once');
  await Promise.all([ann, bob].map((page) => page.context().close()));
});
