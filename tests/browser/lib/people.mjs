/** People in a room: each is a fresh browser profile on the page, with a fake camera and microphone. */

import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--use-fake-device-for-media-stream',
  '--use-fake-ui-for-media-stream',
  '--autoplay-policy=no-user-gesture-required',
];
/** Small, so that the machine measures the server and not its own encoders. */
export const VIDEO = '320x240@15';
export const DESKTOP = { width: 1280, height: 800 };
export const PHONE = { width: 390, height: 844 };

export async function openBrowser(...flags) {
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', headless: true, args: [...FLAGS, ...flags] });
}

/** A page in a profile of its own; what goes wrong in it is kept, to be shown when a test fails. */
export async function openPage(browser, { phone = false } = {}) {
  const view = phone ? { viewport: PHONE, isMobile: true, hasTouch: true } : { viewport: DESKTOP };
  // As a person would who was asked once whether to trust the certificate of `up --lan`.
  const context = await browser.newContext({ ...view, ignoreHTTPSErrors: true });
  const page = await context.newPage();
  page.problems = [];
  page.on('pageerror', (error) => page.problems.push(error.stack));
  page.on('console', (message) => message.type() === 'error' && page.problems.push(message.text()));
  return page;
}

export const address = (server, room, name, more = '', video = VIDEO) =>
  `${server.url}/?room=${encodeURIComponent(room)}&name=${encodeURIComponent(name)}&video=${video}${more}`;

export async function join(browser, server, room, name, { more = '', phone = false, video = VIDEO } = {}) {
  const page = await openPage(browser, { phone });
  page.who = name;
  page.server = server;
  await page.goto(address(server, room, name, `&join=1${more}`, video));
  await until(page, 'being in the room', () => globalThis.__roomlog?.client?.status === 'joined', 10_000);
  return page;
}

/**
 * Waits until `condition`, run in the page, is true. (Playwright's `waitForFunction` takes a promise for true, so a condition that
 * must look at statistics would be met at once.)
 */
export async function until(page, what, condition, ms = 5_000, argument = undefined) {
  const end = Date.now() + ms;
  while (Date.now() < end) {
    if (await page.evaluate(condition, argument)) return;
    await pause(20);
  }
  const seen = await page.evaluate(async () => {
    const probe = globalThis.__roomlog;
    return probe ? { status: probe.client?.status, peers: probe.peers, stats: await probe.stats(), log: probe.log.slice(-25) } : 'no probe';
  });
  throw new Error(`${page.who ?? 'the page'}: not within ${ms} ms: ${what}\n${JSON.stringify(seen, null, 1)}\n${page.problems.join('\n')}`);
}

export const stats = (page) => page.evaluate(() => globalThis.__roomlog.stats());

/** Every one of `pages` receives `others` videos and as many voices, all of them go on for 2 s, and all roles hold one state of it. */
export async function assertAllDecode(pages, others = pages.length - 1) {
  await Promise.all(
    pages.map((page) =>
      until(
        page,
        `${others} videos decoded and ${others} voices heard`,
        async (count) => {
          const all = await globalThis.__roomlog.stats();
          const seen = all.filter((one) => one.kind === 'video' && one.framesDecoded > 0).length;
          const heard = all.filter((one) => one.kind === 'audio' && one.totalAudioEnergy > 0).length;
          return seen === count && heard === count;
        },
        10_000,
        others,
      ),
    ),
  );
  const before = await Promise.all(pages.map(stats));
  await pause(2_000);
  const after = await Promise.all(pages.map(stats));
  pages.forEach((page, index) => {
    for (const old of before[index]) {
      const now = after[index].find((one) => one.id === old.id);
      assert.ok(now, `${page.who}: ${old.kind} of ${old.peerId} is still there`);
      if (old.kind === 'video') assert.ok(now.framesDecoded >= old.framesDecoded + 10, `${page.who}: frames of ${old.peerId}: ${old.framesDecoded} → ${now.framesDecoded} in 2 s, expected about 30 more`);
      else assert.ok(now.packetsReceived > old.packetsReceived, `${page.who}: voice of ${old.peerId} goes on`);
    }
  });
  await pages[0].server?.assertOneState?.();
}

/** From being joined to the first decoded frame of each person who was there before, ms; and from the wish to join. */
export const firstFrames = (page) =>
  page.evaluate(() => {
    const { started, joined, present, firstFrame } = globalThis.__roomlog.marks;
    return present.map((peer) => ({ afterJoined: Math.round(firstFrame[peer] - joined), afterClick: Math.round(firstFrame[peer] - started) }));
  });

/** Watches all videos of a page; the answer is the longest time, ms, in which one of them decoded nothing. */
export async function watchGaps(page) {
  await page.evaluate(() => {
    const state = (globalThis.__gaps = { longest: 0, last: new Map(), ids: new Set(), samples: 0 });
    state.timer = setInterval(async () => {
      const now = performance.now();
      for (const one of await globalThis.__roomlog.stats()) {
        if (one.kind !== 'video' || one.paused) continue;
        state.ids.add(one.id);
        const known = state.last.get(one.id);
        if (!known || one.framesDecoded > known.frames) state.last.set(one.id, { frames: one.framesDecoded, at: now });
      }
      for (const { at } of state.last.values()) state.longest = Math.max(state.longest, now - at);
      state.samples++;
    }, 50);
  });
  return async () =>
    page.evaluate(() => {
      const { timer, longest, ids, samples } = globalThis.__gaps;
      clearInterval(timer);
      return { longest, ids: [...ids], samples };
    });
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
export const tile = (page, name) => page.locator('.grid .tile', { has: page.locator('.tile-name', { hasText: new RegExp(`^${name}`) }) });
export const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
