/** Starts the `roomlog` binary with a data directory of its own, and ends it by its process id. */

import { spawn, spawnSync } from 'node:child_process';
import { mkdtemp, readFile, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** ms; a cold start on a loaded two-core machine. */
const START_TIMEOUT = 20_000;
/** ms until all roles have folded what was committed last. */
const AGREE_TIMEOUT = 2_000;
/** ms it may take to end after SIGTERM before it is killed, which fails the test that asked for it. */
const STOP_TIMEOUT = 10_000;

const bin = process.env.ROOMLOG_BIN;
/** Further arguments of `roomlog up`, for example to set the number of workers. */
const extra = process.env.ROOMLOG_ARGS?.split(' ').filter(Boolean) ?? [];

/** What node:test shows when there is nothing to test. */
export const skip = bin ? false : 'set ROOMLOG_BIN to a built roomlog binary';

export async function startServer(...args) {
  const data = await mkdtemp(join(tmpdir(), 'roomlog-browser-'));
  const child = spawn(bin, ['up', '--data', data, '--listen', '127.0.0.1:0', ...extra, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  const lines = [];
  const url = await new Promise((resolve, reject) => {
    const fail = (why) => reject(new Error(`roomlog up: ${why}\n${lines.slice(-40).join('')}`));
    const timer = setTimeout(() => fail(`no "Open http://…" within ${START_TIMEOUT} ms`), START_TIMEOUT);
    let text = '';
    const read = (chunk) => {
      lines.push(String(chunk));
      if (lines.length > 5_000) lines.shift();
      text = (text + chunk).slice(-10_000);
      const match = /Open (https?:\/\/[^\s/]+)/.exec(text);
      if (match) resolve((clearTimeout(timer), match[1]));
    };
    child.stdout.on('data', read);
    child.stderr.on('data', read);
    child.once('error', (error) => fail(error.message));
    child.once('exit', (code) => fail(`ended with ${code}`));
  });
  const secret = await readFile(join(data, 'demo-service.json'), 'utf8').then((text) => JSON.parse(text).secretKey, () => null);
  const ask = async (path) => {
    const answer = await fetch(url + path, { headers: { authorization: `Bearer ${secret}` } });
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
    return answer.json();
  };
  return {
    url,
    /** Log, EC and EA hold the same state of every room; what is under way is given a moment to arrive. */
    async assertOneState() {
      // fetch does not trust a self-made certificate; what it would compare does not depend on TLS.
      if (!secret || url.startsWith('https:')) return;
      const { rooms } = await ask('/v1/rooms?limit=1000');
      for (const room of rooms) {
        const end = Date.now() + AGREE_TIMEOUT;
        for (;;) {
          const state = await ask(`/v1/rooms/${room.id}/state`);
          if (state.agree) break;
          if (Date.now() > end) throw new Error(`log, EC and EA differ on room ${room.name}: ${JSON.stringify(state)}`);
        }
      }
    },
    pid: child.pid,
    output: () => lines.join(''),
    /** Process ids of the SFU workers it has started. */
    workers: () => workersOf(child.pid),
    async stop() {
      if (child.exitCode === null && child.signalCode === null) {
        const ended = new Promise((resolve) => child.once('exit', resolve));
        child.kill('SIGTERM');
        const late = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT);
        await ended;
        clearTimeout(late);
      }
      if (secret) verify(data);
      if (process.env.ROOMLOG_TEST_OUTPUT) console.log(lines.join(''));
      await rm(data, { recursive: true, force: true });
    },
  };
}

/** The log of the calls keeps every rule, and every decision in it can be made again. */
function verify(data) {
  const { status, stdout, stderr } = spawnSync(bin, ['replay', '--data', data, 'verify'], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`roomlog replay verify: ${stdout}${stderr}`);
}

/** Children of `pid` that run `sfu-worker`, directly or one level down. */
async function workersOf(pid) {
  const found = [];
  for (const entry of await readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      const stat = await readFile(`/proc/${entry}/stat`, 'utf8');
      const [state, parent] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      if (Number(parent) !== pid || state === 'Z') continue;
      if ((await readFile(`/proc/${entry}/cmdline`, 'utf8')).includes('sfu-worker')) found.push(Number(entry));
    } catch {
      // It ended while we looked.
    }
  }
  return found.sort((a, b) => a - b);
}
