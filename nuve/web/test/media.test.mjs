/** Media that moves to another worker, and what is sent. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { consumerParameters } from './fake-server.mjs';
import { join, serve, until } from './helpers.mjs';

const call = async (t) => {
  const server = await serve(t);
  const ann = await join(t, server, 'Ann');
  const bob = await join(t, server, 'Bob');
  await until('each receives the other', () => ann.client.remotes.size === 2 && bob.client.remotes.size === 2);
  return { server, ann, bob };
};

test('mediaMoved builds the transports anew and sends everything again, without joining again', async (t) => {
  const { server, ann, bob } = await call(t);
  const old = { plane: ann.client.plane, remotes: [...ann.client.remotes.keys()] };
  server.requests.length = 0;
  server.moveMedia(server.room('test'));
  await until('media is back', () => ann.client.remotes.size === 2 && bob.client.remotes.size === 2 && ann.client.plane !== old.plane);
  await until('the move is over', () => ann.named('moving').length === 2);
  assert.equal(old.plane.closed, true);
  assert.ok([...ann.client.remotes.keys()].every((id) => !old.remotes.includes(id)));
  const asked = server.requests.filter((request) => request.client === ann.client.clientId).map((request) => request.method);
  assert.deepEqual(asked.filter((method) => method === 'produce').length, 2);
  assert.equal(asked[0], 'getRouterRtpCapabilities');
  assert.ok(!asked.includes('join'));
  assert.equal(ann.named('peerLeft').length, 0);
  assert.ok(ann.named('remoteRemoved').every(([, , why]) => why === 'moving'));
});

test('a move that the new worker is not ready for is tried again', async (t) => {
  const { server, ann } = await call(t);
  let refusals = 2;
  server.refusing = (client, method) => (client.user === 'Ann' && method === 'createWebRtcTransport' && refusals-- > 0 ? { code: 1001, reason: 'EA timeout' } : undefined);
  server.moveMedia(server.room('test'));
  await until('media is back', () => ann.client.remotes.size === 2 && ann.named('moving').length === 2);
});

test('a move told by resume is made', async (t) => {
  const { server, ann, bob } = await call(t);
  server.refuseResumes = true;
  server.cut(server.client('Ann'));
  await until('it notices', () => ann.client.status === 'reconnecting');
  server.moveMedia(server.room('test'));
  server.refuseResumes = false;
  await until('media is back', () => ann.client.remotes.size === 2 && bob.client.remotes.size === 2 && ann.client.mediaEpoch === 2);
  assert.equal(ann.named('moving').filter(([, moving]) => moving).length, 1);
});

test('an old epoch changes nothing', async (t) => {
  const { server, ann } = await call(t);
  const plane = ann.client.plane;
  server.notify(server.client('Ann'), 'mediaMoved', { mediaEpoch: 1, reason: 'late' });
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(ann.client.plane, plane);
});

test('what is muted stays muted over a move', async (t) => {
  const { server, ann, bob } = await call(t);
  await ann.client.setPaused('mic', true);
  await until('Bob sees it', () => [...bob.client.remotes.values()].some((remote) => remote.kind === 'audio' && remote.paused));
  server.moveMedia(server.room('test'));
  await until('Bob sees it again', () => bob.client.mediaEpoch === 2 && [...bob.client.remotes.values()].some((remote) => remote.kind === 'audio' && remote.paused));
});

/** An offer and what happens to it before the client can have finished making it. */
const offerAnd = async (t, method) => {
  const { server, ann } = await call(t);
  const client = server.client('Ann');
  const offer = { id: 'k-early', peerId: server.client('Bob').id, producerId: 'p-early', kind: 'audio', rtpParameters: consumerParameters('audio', 900), appData: {}, producerPaused: false };
  server.ask(client, 'newConsumer', offer);
  server.notify(client, method, { consumerId: offer.id, peerId: offer.peerId });
  await until('answered', () => client.unanswered.size === 0);
  return ann.client.remotes.get(offer.id);
};

test('a consumer closed while it is being made does not stay', async (t) => {
  assert.equal(await offerAnd(t, 'consumerClosed'), undefined);
});

test('a consumer whose peer leaves while it is being made does not stay', async (t) => {
  assert.equal(await offerAnd(t, 'peerClosed'), undefined);
});

test('a consumer paused while it is being made is paused', async (t) => {
  assert.equal((await offerAnd(t, 'consumerPaused')).paused, true);
});

test('a source that the server forbids is reported and does not end the call', async (t) => {
  const server = await serve(t);
  server.refusing = (client, method) => (method === 'produce' ? { code: 403, reason: 'not allowed' } : undefined);
  const viewer = await join(t, server, 'Viewer');
  await until('reported', () => viewer.named('publishFailed').length === 2);
  assert.equal(viewer.client.status, 'joined');
});

test('the client knows which nodes serve it, over a move and another EC', async (t) => {
  const { server, ann } = await call(t);
  assert.deepEqual(ann.client.placement, { ec: 'ec-1', ea: 'ea-1', worker: 0, mediaEpoch: 1 });
  server.moveMedia(server.room('test'));
  assert.deepEqual(await told(ann, 2), { ec: 'ec-1', ea: 'ea-2', worker: 0, mediaEpoch: 2 });
  server.notify(server.client('Ann'), 'mediaMoved', { mediaEpoch: 1, ea: 'ea-1', worker: 0, reason: 'late' });
  server.ec = 'ec-2';
  server.cut(server.client('Ann'));
  assert.deepEqual(await told(ann, 3), { ec: 'ec-2', ea: 'ea-2', worker: 0, mediaEpoch: 2 });
});

const told = async (one, times) => {
  await until('told', () => one.named('placed').length >= times);
  assert.deepEqual(one.named('placed').at(-1)[1], one.client.placement);
  return one.client.placement;
};
