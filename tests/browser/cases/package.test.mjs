/** The page in the client package's README, as it stands there, from an origin of its own: a call. */

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { test } from 'node:test';
import { openBrowser, openPage, until } from '../lib/people.mjs';
import { skip, startServer } from '../lib/server.mjs';

test('the README’s page makes a call, and comes back after its socket broke', { skip }, async (t) => {
  const server = await startServer();
  t.after(() => server.stop());
  const readme = await readFile(new URL('../../../nuve/web/client/README.md', import.meta.url), 'utf8');
  const html = /```html\n([^]*?)```/.exec(readme)[1].replaceAll('http://127.0.0.1:7880', server.url);
  const site = createServer((_, response) => response.writeHead(200, { 'content-type': 'text/html' }).end(html));
  await new Promise((resolve) => site.listen(0, '127.0.0.1', resolve));
  t.after(() => site.close());
  const browser = await openBrowser();
  t.after(() => browser.close());
  const pages = [];
  for (const who of ['Ann', 'Bob']) {
    const page = await openPage(browser);
    page.who = who;
    const sockets = [];
    await page.routeWebSocket(/.*/, (socket) => sockets.push([socket, socket.connectToServer()]));
    page.sockets = sockets;
    await page.goto(`http://localhost:${site.address().port}/`);
    await page.click('button');
    pages.push(page);
  }
  const sees = (page) =>
    until(page, 'the other is seen', () => [...document.querySelectorAll('video')].filter((video) => video.videoWidth > 0 && video.currentTime > 0).length === 2, 15_000);
  await Promise.all(pages.map(sees));
  assert.equal(await pages[0].locator('audio').count(), 1);
  await pages[0].sockets[0][0].close({ code: 4900 });
  await pages[0].sockets[0][1].close({ code: 4900 });
  for (const end = Date.now() + 10_000; pages[0].sockets.length < 2; ) {
    assert.ok(Date.now() < end, 'a second socket is opened');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await Promise.all(pages.map(sees));
});
