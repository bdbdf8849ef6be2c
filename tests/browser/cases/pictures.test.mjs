/** Pictures of the page in every state, on a desktop and on a phone, written to out/ for people to look at. */

import { after, before, test } from 'node:test';
import { mkdir } from 'node:fs/promises';
import { assertAllDecode, address, join, openBrowser, openPage, pause, until } from '../lib/people.mjs';
import { skip, startServer } from '../lib/server.mjs';

const out = new URL('../out/', import.meta.url).pathname;
let server;
let browser;
before(async () => {
  if (skip) return;
  await mkdir(out, { recursive: true });
  server = await startServer();
  browser = await openBrowser();
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

for (const device of ['desktop', 'phone']) {
  const phone = device === 'phone';
  const shoot = (page, state) => page.screenshot({ path: `${out}${state}-${device}.png` });

  test(`the lobby, and the lobby when the camera is refused, on a ${device}`, { skip }, async () => {
    const page = await openPage(browser, { phone });
    await page.goto(address(server, 'Monday meeting', 'Ann Smith'));
    await until(page, 'the preview', () => document.querySelector('video')?.videoWidth > 0);
    await shoot(page, 'lobby');
    await page.context().close();
    const refused = await openPage(browser, { phone });
    await refused.addInitScript(() => {
      navigator.mediaDevices.getUserMedia = async () => {
        throw new DOMException('Permission denied', 'NotAllowedError');
      };
    });
    await refused.goto(address(server, 'Monday meeting', 'Ann Smith'));
    await refused.locator('.notice', { hasText: 'blocked' }).waitFor();
    await shoot(refused, 'refused');
    await refused.context().close();
  });

  test(`two and four people, and reconnecting, on a ${device}`, { skip }, async () => {
    const pages = [await join(browser, server, `Meeting ${device}`, 'Ann Smith', { phone }), await join(browser, server, `Meeting ${device}`, 'Bo Lind')];
    await assertAllDecode(pages);
    await pause(5_500); // Until the notices have gone.
    await shoot(pages[0], 'two');
    for (const name of ['Cleo Marsh', 'Dan Ito']) pages.push(await join(browser, server, `Meeting ${device}`, name));
    await assertAllDecode(pages);
    await pause(5_500);
    await shoot(pages[0], 'four');
    await pages[0].route('**/locate', (route) => route.fulfill({ status: 503, body: '{}' }));
    await pages[0].evaluate(() => globalThis.__roomlog.breakSocket());
    await pages[0].locator('.banner').waitFor({ timeout: 3_000 });
    await shoot(pages[0], 'reconnecting');
    await Promise.all(pages.map((page) => page.context().close()));
  });
}
