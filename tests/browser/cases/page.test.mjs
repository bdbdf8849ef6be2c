/** The page without a media server behind it: a signalling server of the page's own tests is enough for how it behaves. */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { FakeServer } from '../../../nuve/web/test/fake-server.mjs';
import { address, openBrowser, openPage, until } from '../lib/people.mjs';

const dist = fileURLToPath(new URL('../../../nuve/web/dist', import.meta.url));
let server;
let browser;
before(async () => {
  server = await new FakeServer(dist).start();
  browser = await openBrowser();
});
after(async () => {
  await browser.close();
  await server.stop();
});

const enter = async (room, name, prepare = async () => {}) => {
  const page = await openPage(browser);
  await prepare(page);
  await page.goto(address(server, room, name, '&join=1'));
  await until(page, 'being in', () => globalThis.__roomlog?.client?.status === 'joined');
  return page;
};

test('the lobby asks for what is missing and puts the cursor there', async () => {
  const page = await openPage(browser);
  await page.goto(`${server.url}/`);
  await page.keyboard.press('Enter');
  assert.match(await page.locator('.form-error').innerText(), /your name/);
  await page.keyboard.type('Ann');
  await page.keyboard.press('Enter');
  assert.match(await page.locator('.form-error').innerText(), /name of the room/);
  assert.equal(await page.evaluate(() => document.activeElement.id), 'room');
  await page.keyboard.type('keyboard only');
  await page.keyboard.press('Enter');
  await until(page, 'being in', () => globalThis.__roomlog?.client?.status === 'joined');
  await page.context().close();
});

test('a page that is not secure says why there is no camera, and one can still join', async () => {
  const page = await openPage(browser);
  await page.addInitScript(() => Object.defineProperty(globalThis, 'isSecureContext', { get: () => false }));
  await page.goto(address(server, 'insecure', 'Ann'));
  assert.match(await page.locator('.notice').innerText(), /HTTPS or on localhost/);
  await page.click('.join');
  await until(page, 'being in', () => globalThis.__roomlog.client.status === 'joined');
  assert.equal(server.client('Ann').producers.size, 0);
  await page.context().close();
});

for (const [name, words] of [['NotAllowedError', /blocked/], ['NotFoundError', /No camera and no microphone were found/], ['NotReadableError', /in use by another program/]]) {
  test(`${name} is said in words that help`, async () => {
    const page = await openPage(browser);
    await page.addInitScript((error) => {
      navigator.mediaDevices.getUserMedia = async () => {
        throw new DOMException('no', error);
      };
    }, name);
    await page.goto(address(server, 'refused', 'Ann'));
    await page.locator('.notice').waitFor();
    assert.match(await page.locator('.notice').innerText(), words);
    assert.equal(await page.locator('.notice p').count(), 1, 'said once for both');
    await page.context().close();
  });
}

test('a server without a demo service says so in the lobby', async () => {
  server.demo = false;
  const page = await openPage(browser);
  await page.goto(address(server, 'nodemo', 'Ann'));
  await page.click('.join');
  await page.locator('.form-error', { hasText: 'demo service' }).waitFor();
  server.demo = true;
  await page.click('.join');
  await until(page, 'being in', () => globalThis.__roomlog.client.status === 'joined');
  await page.context().close();
});

test('losing the connection shows a banner, and coming back takes it away', async () => {
  const page = await enter('banner', 'Ann');
  server.refuseResumes = true;
  server.cut(server.client('Ann'));
  await page.locator('.banner', { hasText: 'Reconnecting' }).waitFor();
  server.refuseResumes = false;
  await page.locator('.banner').waitFor({ state: 'hidden' });
  await page.context().close();
});

test('no network is said as such, and its return is used at once', async () => {
  const page = await enter('offline', 'Ann');
  await page.context().setOffline(true);
  await page.locator('.banner', { hasText: 'No network' }).waitFor();
  await page.context().setOffline(false);
  await until(page, 'being back', () => globalThis.__roomlog.client.status === 'joined');
  await page.context().close();
});

test('being removed ends the call and says why', async () => {
  const page = await enter('kick', 'Ann');
  server.close(server.client('Ann'), 'kicked');
  await page.locator('h1', { hasText: 'You were removed from the room' }).waitFor();
  await page.context().close();
});

test('M and V switch microphone and camera, but not while typing', async () => {
  const page = await enter('keys', 'Ann');
  const pressed = (what) => page.getAttribute(`.controls .switch-${what}`, 'aria-pressed');
  assert.deepEqual([await pressed('mic'), await pressed('camera')], ['true', 'true']);
  await page.keyboard.press('m');
  await page.keyboard.press('v');
  await until(page, 'both off', () => [...document.querySelectorAll('.controls [aria-keyshortcuts]')].every((button) => button.getAttribute('aria-pressed') === 'false'));
  await until(page, 'the camera let go', () => globalThis.__roomlog.client.outgoing('camera').track === null);
  assert.ok(await page.evaluate(() => globalThis.__roomlog.client.outgoing('mic').producer.paused));
  await page.context().close();
});

test('every control has a name for those who cannot see it', async () => {
  const page = await enter('names', 'Ann');
  const nameless = await page.evaluate(() =>
    [...document.querySelectorAll('button, input, select')].filter((element) => !element.getAttribute('aria-label') && !element.innerText?.trim() && !element.labels?.length).map((element) => element.outerHTML),
  );
  assert.deepEqual(nameless, []);
  await page.context().close();
});

test('the page says which nodes serve it, and says it anew after a move', async () => {
  const page = await enter('nodes', 'Ann');
  const line = page.locator('.call-header .served');
  assert.equal(await line.innerText(), 'EC ec-1 · EA ea-1 · worker 0');
  server.moveMedia(server.room('nodes'));
  await line.filter({ hasText: 'EC ec-1 · EA ea-2 · worker 0' }).waitFor();
  await page.click('button[aria-label="Devices"]');
  assert.deepEqual(await page.locator('.served-details dd').allInnerTexts(), ['ec-1', 'ea-2', '0', '2']);
  await page.context().close();
});
