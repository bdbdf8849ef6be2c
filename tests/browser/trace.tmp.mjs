import { assertAllDecode, join, openBrowser, pause } from './lib/people.mjs';
import { between, sample, startServerBehind } from './lib/network.mjs';
const ms = Number(process.env.MS ?? 18000);
const [calm, bad, browser] = await Promise.all([startServerBehind(1), startServerBehind(Number(process.env.SEED ?? 2)), openBrowser('--use-fake-device-for-media-stream=fps=30')]);
const people = { calm: [], bad: [] };
await bad.net.both({ loss: 0.05 });
for (const [side, one] of Object.entries({ calm, bad })) for (const name of ['Ann', 'Bob']) people[side].push(await join(browser, one.server, 'loss', name, { video: '320x240@30' }));
const all = [...people.calm, ...people.bad];
await assertAllDecode(all, 1);
const start = await Promise.all(all.map(sample));
await Promise.all(all.map((page) => page.evaluate(() => {
  const T = (globalThis.__t = []);
  const frames = (globalThis.__f = []);
  for (const v of document.querySelectorAll('video')) {
    const id = v.closest('.tile')?.textContent?.slice(0, 3);
    const cb = (now, m) => { frames.push([performance.timeOrigin + now, id, m.rtpTimestamp, m.presentedFrames, m.receiveTime ? performance.timeOrigin + m.receiveTime : 0, m.processingDuration]); v.requestVideoFrameCallback(cb); };
    v.requestVideoFrameCallback(cb);
  }
  let lastTick = performance.now();
  globalThis.__stalls = [];
  setInterval(() => { const n = performance.now(); if (n - lastTick > 60) globalThis.__stalls.push([performance.timeOrigin + lastTick, n - lastTick]); lastTick = n; }, 10);
  setInterval(async () => {
    for (const one of globalThis.__roomlog.client.remotes.values()) if (one.kind === 'video') {
      const r = await one.consumer.getStats();
      r.forEach((e) => e.type === 'inbound-rtp' && T.push([Date.now(), e.freezeCount, e.totalFreezesDuration, e.framesDecoded, e.framesReceived, e.nackCount, e.retransmittedPacketsReceived, e.packetsReceived, e.packetsLost, e.keyFramesDecoded, e.framesDropped, e.jitterBufferTargetDelay, e.jitterBufferEmittedCount, e.jitterBufferMinimumDelay]));
    }
  }, 30);
})));
await pause(ms);
const names = ['calm Ann', 'calm Bob', 'bad Ann', 'bad Bob'];
for (const [i, page] of all.entries()) {
  const d = between(start[i], await sample(page));
  const { T, F, S } = await page.evaluate(() => ({ T: globalThis.__t, F: globalThis.__f, S: globalThis.__stalls }));
  console.log(names[i], 'fps', (d.video.framesDecoded * 1000 / d.at).toFixed(1), 'freezes', d.video.freezeCount, 'server out', d.out.video.packetsRetransmitted, 'nack', d.video.nackCount, 'target delay', d.video.jitterBufferTargetDelay / d.video.jitterBufferEmittedCount, 'stalls', JSON.stringify(S.map(([a, b]) => [Math.round(a % 1e6), Math.round(b)])));
  let prev;
  for (const s of T) {
    if (prev && s[1] > prev[1]) console.log(names[i], 'FREEZE seen at', s[0] % 1e6, 'duration', ((s[2] - prev[2]) * 1000).toFixed(0), 'gaps around:', JSON.stringify(F.filter((f) => f[1] !== 'You' ).filter((f) => f[0] > s[0] - 700 && f[0] < s[0] + 150).map((f) => [Math.round(f[0] % 1e6), f[2] % 10000000, Math.round(f[4] % 1e6)])));
    prev = s;
  }
}
await browser.close();
await Promise.all([calm.stop(), bad.stop()]);
