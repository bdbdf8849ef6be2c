/** A server whose media passes through the network emulator, and what is seen of a call on both sides of it. */

import { spawn } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { createInterface } from 'node:readline';
import { skip as noServer, startServer } from './server.mjs';

const netem = process.env.ROOMLOG_NETEM;
export const skip = noServer || (netem ? false : 'set ROOMLOG_NETEM to a built roomlog-netem binary');

/** A UDP port that was free a moment ago. */
const freePort = () =>
  new Promise((resolve, reject) => {
    const socket = createSocket('udp4');
    socket.once('error', reject);
    socket.bind(0, '127.0.0.1', () => {
      const { port } = socket.address();
      socket.close(() => resolve(port));
    });
  });

/** One emulator in front of one worker. `set({ up, down })` changes what it does and gives its counts until then. */
async function startNetem(port, seed) {
  const child = spawn(netem, ['--worker', `127.0.0.1:${port}`, '--seed', String(seed)], { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const answer = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error('roomlog-netem has ended; its standard error says why');
    return JSON.parse(value);
  };
  const { listening } = await answer();
  const ask = (what) => {
    child.stdin.write(`${JSON.stringify(what)}\n`);
    return answer();
  };
  return {
    port: Number(listening.split(':')[1]),
    /** Both ways the same; without settings the network is perfect. */
    both: (settings = {}) => ask({ up: settings, down: settings }),
    counts: () => ask({}),
    async stop() {
      const ended = new Promise((resolve) => child.once('exit', resolve));
      child.stdin.end();
      await ended;
    },
  };
}

/** `roomlog up` with one worker, which clients reach only through an emulator. */
export async function startServerBehind(seed) {
  const port = await freePort();
  const net = await startNetem(port, seed);
  const server = await startServer('--workers', '1', '--media-port', String(port), '--announce-port', String(net.port));
  return {
    server,
    net,
    async stop() {
      await server.stop();
      await net.stop();
    },
  };
}

/** What a page receives, summed over its tracks of each kind; counted by the browser, and by the server on both legs. */
export const sample = (page) =>
  page.evaluate(async () => {
    const sums = { at: performance.now(), video: {}, audio: {}, out: { video: {}, audio: {} }, in: { video: {}, audio: {} } };
    const add = (to, from) => {
      for (const [key, value] of Object.entries(from)) if (typeof value === 'number') to[key] = (to[key] ?? 0) + value;
    };
    const { client } = globalThis.__roomlog;
    await Promise.all(
      [...client.remotes.values()].map(async (remote) => {
        const [report, server] = await Promise.all([remote.consumer.getStats(), client.serverStats(remote.id)]);
        report.forEach((entry) => entry.type === 'inbound-rtp' && add(sums[remote.kind], entry));
        for (const entry of server) add(entry.type === 'outbound-rtp' ? sums.out[remote.kind] : sums.in[remote.kind], entry);
      }),
    );
    return sums;
  });

/** What was counted between two samples. */
export function between(before, after) {
  const take = (a, b) => Object.fromEntries(Object.entries(b).map(([key, value]) => [key, typeof value === 'object' ? take(a[key] ?? {}, value) : value - (a[key] ?? 0)]));
  return take(before, after);
}

/** Looks at the frames a page has decoded all the time; the answer is `[{ at, frames }]`, `at` in ms of Date.now(). */
export async function watchFrames(page) {
  await page.evaluate(() => {
    const seen = (globalThis.__frames = []);
    seen.timer = setInterval(async () => {
      let frames = 0;
      for (const one of await globalThis.__roomlog.stats()) if (one.kind === 'video') frames += one.framesDecoded;
      seen.push({ at: Date.now(), frames });
    }, 50);
  });
  return () =>
    page.evaluate(() => {
      clearInterval(globalThis.__frames.timer);
      return [...globalThis.__frames];
    });
}

/** Frames per second in `[from, to)` of what `watchFrames` saw. */
export function rate(seen, from, to) {
  const inside = seen.filter(({ at }) => at >= from && at < to);
  const [first, last] = [inside[0], inside.at(-1)];
  return first && last.at > first.at ? ((last.frames - first.frames) * 1_000) / (last.at - first.at) : 0;
}
