/** What the page's author hands the client: answers of `admit`, errors it throws, and pauses before there is anything to pause. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { env, HttpError, join, RoomClient, serve, track, until } from './helpers.mjs';

const NO_ANSWER = /^Error: admit: what it returned is no token answer/;

test('an answer of admit that is none is an error of join at once, and says what it was', async (t) => {
  const server = await serve(t);
  const good = () => server.admit('test', 'Ann');
  const cases = [
    [{ type: '/problems/unknown-key', status: 401, detail: 'x'.repeat(2_000) }, /\(it has no wsUrl\): \{"type":"\/problems\/unknown-key"/],
    [undefined, /\(it has no wsUrl\): undefined/],
    ['eyJ0eXAi', /\(it has no wsUrl\): "eyJ0eXAi"/],
    [new Response('{}'), /: a Response; return what its json\(\) gives/],
    [{ ...good(), token: '' }, /\(it has no token\)/],
    [{ ...good(), wsUrl: '/signal' }, /\(its wsUrl is no absolute address\)/],
    [{ ...good(), locateUrl: undefined, token: 'secret' }, /\(it has no locateUrl\)(?!.*secret)/],
  ];
  for (const [answer, says] of cases) {
    let asked = 0;
    let sockets = 0;
    const openSocket = () => (sockets++, assert.fail('a socket is opened'));
    const client = new RoomClient({ admit: async () => (asked++, answer), displayName: 'Ann', env: env({ openSocket }) });
    const closed = [];
    client.on('closed', (reason) => closed.push(reason));
    const error = await client.join().then(() => assert.fail('joined'), (thrown) => thrown);
    assert.match(String(error), NO_ANSWER);
    assert.match(error.message, says);
    assert.ok(error.message.length < 400, `${error.message.length} characters`);
    assert.deepEqual([asked, sockets, client.status, closed], [1, 0, 'closed', [{ kind: 'error', error }]]);
  }
});

const away = async (t, admit) => {
  const server = await serve(t);
  const ann = await join(t, server, 'Ann', { publish: false });
  const first = ann.client.clientId;
  const real = server.admit.bind(server);
  let asked = 0;
  server.admit = (...args) => admit(asked++) ?? real(...args);
  const client = server.client('Ann');
  server.cut(client);
  server.leave(client);
  return { ann, first, asked: () => asked };
};

test('while coming back an answer that is none, and an error, are tried again', async (t) => {
  const { ann, first, asked } = await away(t, (n) => {
    if (n === 0) return { status: 503, title: 'starting' };
    if (n === 1) throw new Error('my server: 502');
  });
  await until('it is in again', () => ann.client.status === 'joined' && ann.client.clientId !== first, 30_000);
  assert.equal(asked(), 3);
});

test('while coming back a refusal that is final closes, with the refusal', async (t) => {
  const { ann, asked } = await away(t, () => {
    throw new HttpError(403, 'this room is not yours');
  });
  await until('it is closed', () => ann.client.status === 'closed', 30_000);
  assert.equal(asked(), 1);
  assert.equal(ann.named('closed')[0][1].error.message, 'this room is not yours');
});

test('a first join ends with what admit throws, even when a new one would be worth it', async (t) => {
  await serve(t);
  let asked = 0;
  const refusal = new HttpError(503, 'starting');
  const client = new RoomClient({ admit: async () => (asked++, Promise.reject(refusal)), displayName: 'Ann', env: env() });
  await assert.rejects(client.join(), refusal);
  assert.deepEqual([asked, client.status, refusal.retryable], [1, 'closed', true]);
});

test('a source muted before it is published is published muted', async (t) => {
  const server = await serve(t);
  const ann = await join(t, server, 'Ann', { publish: false });
  const bob = await join(t, server, 'Bob', { publish: false });
  await ann.client.setPaused('mic', true);
  await assert.rejects(ann.client.setPaused('camera', false, track('video')), /no camera is published/);
  await ann.client.publish('mic', track('audio'));
  await ann.client.publish('camera', track('video'));
  assert.deepEqual(['mic', 'camera'].map((source) => ann.client.outgoing(source).producer.paused), [true, false]);
  await until('Bob has both', () => bob.client.remotes.size === 2);
  await until('and knows', () => [...bob.client.remotes.values()].find((remote) => remote.source === 'mic').paused);
});

test('what is known of a peer is what is declared, however it was learnt of', async (t) => {
  const server = await serve(t);
  const ann = await join(t, server, 'Ann', { publish: false });
  const bob = await join(t, server, 'Bob', { publish: false });
  await until('Ann sees Bob', () => ann.client.peers.size === 1);
  for (const client of [ann.client, bob.client]) {
    assert.deepEqual(Object.keys([...client.peers.values()][0]).sort(), ['device', 'displayName', 'id']);
  }
});
