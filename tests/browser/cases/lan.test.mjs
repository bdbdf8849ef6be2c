/** `up --lan`: the page and the signalling over TLS with the certificate that the server made. */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { assertAllDecode, join, openBrowser } from '../lib/people.mjs';
import { skip, startServer } from '../lib/server.mjs';

let server;
let browser;
before(async () => {
  if (skip) return;
  server = await startServer('--lan');
  browser = await openBrowser();
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

test('two people call over HTTPS', { skip }, async () => {
  assert.match(server.url, /^https:/);
  const pages = [await join(browser, server, 'lan', 'Ann'), await join(browser, server, 'lan', 'Bob')];
  await assertAllDecode(pages);
});
