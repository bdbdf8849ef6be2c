/**
 * Pictures of the page in states that are laborious to reach with a real server (twelve people, a move, a refusal), drawn on the
 * fake one and written to out/. For people who work on how the page looks: `node gallery.mjs`.
 */

import { chromium } from 'playwright-core';
import { FakeServer } from '../../nuve/web/test/fake-server.mjs';
const server = await new FakeServer(new URL('../../nuve/web/dist', import.meta.url).pathname).start();
const args = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream --autoplay-policy=no-user-gesture-required'.split(' ');
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', headless: true, args });
const sizes = { desktop: { width: 1280, height: 800 }, phone: { width: 390, height: 844 } };
const NAMES = ['Maya Lindqvist','Tomás Herrera','Bo','Priya Raman','Jean-Luc Ferrand','Kenji Watanabe','Olu Adeyemi','Sofia','Lena Brandt','Marcus O’Neil','Ida Holm'];
for (const [device, viewport] of Object.entries(sizes)) {
  const context = await browser.newContext({ viewport, isMobile: device === 'phone', hasTouch: device === 'phone' });
  const shot = async (page, name) => { await page.screenshot({ path: `out/${name}-${device}.png` }); };
  const page = await context.newPage();
  page.on('console', (m) => { if (m.type() === 'error') console.log('console', m.text()); });
  page.on('pageerror', (e) => console.log('pageerror', e.stack));
  await page.goto(`${server.url}/?room=Monday%20meeting&name=Ann%20Smith&video=640x480@15`);
  await page.waitForTimeout(700);
  await shot(page, 'lobby');
  await page.click('.join');
  await page.waitForSelector('.call');
  await page.waitForTimeout(6000);
  await shot(page, 'alone');
  const clients = [];
  const bots = [];
  const { WebSocket } = await import('ws');
  const addBot = async (name) => {
    const a = server.admit('Monday meeting', name);
    const ws = new WebSocket(`${a.wsUrl}?token=${a.token}`, 'protoo');
    await new Promise((r) => ws.once('open', r));
    let n = 0;
    const ask = (method, data) => ws.send(JSON.stringify({ request: true, id: ++n, method, data }));
    ask('token', { token: a.token }); ask('join', { displayName: name });
    ask('produce', { kind: 'audio', appData: { source: 'mic' } });
    if (NAMES.indexOf(name) % 3 !== 2) ask('produce', { kind: 'video', appData: { source: 'camera' } });
    ws.on('message', (raw) => { const m = JSON.parse(raw); if (m.request) ws.send(JSON.stringify({ response: true, id: m.id, ok: true, data: {} })); });
    bots.push({ ws, ask, name });
  };
  // No media behind the fake: give remote tiles a moving picture of their own.
  const paint = () => page.evaluate(() => {
    document.querySelectorAll('.tile-person:not(.no-video) video, .tile-screen video').forEach((video, i) => {
      if (video.dataset.painted) return; video.dataset.painted = 1;
      const c = document.createElement('canvas'); c.width = 640; c.height = 360; const g = c.getContext('2d');
      const hue = (i * 67) % 360; const gr = g.createLinearGradient(0, 0, 640, 360); gr.addColorStop(0, `hsl(${hue} 30% 45%)`); gr.addColorStop(1, `hsl(${hue + 40} 35% 25%)`);
      setInterval(() => { g.fillStyle = gr; g.fillRect(0, 0, 640, 360); g.fillStyle = '#e8c9a8'; g.beginPath(); g.ellipse(320, 160, 60, 78, 0, 0, 7); g.fill(); g.fillStyle = '#33414f'; g.beginPath(); g.ellipse(320, 370, 150, 120, 0, 0, 7); g.fill(); }, 66);
      video.srcObject = c.captureStream(15); video.play();
    });
  });
  const settle = async () => { await page.waitForTimeout(500); await paint(); await page.waitForTimeout(6200); };
  await addBot(NAMES[0]); await settle(); await shot(page, 'two');
  await addBot(NAMES[1]); await addBot(NAMES[2]); await settle();
  bots[1].ask('pauseProducer', { producerId: [...server.client(NAMES[1]).producers.keys()][0] });
  const ann = server.client('Ann Smith');
  server.notify(ann, 'activeSpeaker', { peerId: server.client(NAMES[0]).id, volume: -20 });
  await page.waitForTimeout(300); await shot(page, 'four');
  bots[0].ask('produce', { kind: 'video', appData: { source: 'screen' } }); await settle(); await shot(page, 'screen');
  const p = [...server.client(NAMES[0]).producers.values()].at(-1); bots[0].ask('closeProducer', { producerId: p.id });
  server.refuseResumes = true; server.cut(ann); await page.waitForTimeout(1500); await shot(page, 'reconnecting'); server.refuseResumes = false;
  await page.waitForTimeout(5000);
  for (const name of NAMES.slice(3)) await addBot(name);
  await settle(); await shot(page, 'twelve');
  server.moveMedia(ann.room); await page.waitForTimeout(150); await shot(page, 'moving');
  await page.click('button[aria-label="Devices"]'); await page.waitForTimeout(300); await shot(page, 'settings'); await page.keyboard.press('Escape');
  await page.click('button.leave'); await page.waitForTimeout(300); await shot(page, 'left');
  for (const b of bots) b.ws.close(1000);
  // refused
  const refused = await context.newPage();
  await refused.addInitScript(() => { navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('Permission denied', 'NotAllowedError'); }; });
  await refused.goto(`${server.url}/?room=Monday%20meeting&name=Ann%20Smith`); await refused.waitForTimeout(600); await shot(refused, 'refused');
  const first = await context.newPage();
  await first.addInitScript(() => Object.defineProperty(window, 'isSecureContext', { get: () => false }));
  await first.goto(`${server.url}/`); await first.waitForTimeout(500); await first.click('.join'); await first.waitForTimeout(200); await shot(first, 'insecure');
  await context.close();
}
await browser.close(); await server.stop();
