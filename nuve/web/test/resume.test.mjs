/** Coming back after the socket broke. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { burstySocket, join, pause, serve, track, until } from './helpers.mjs';

const call = async (t, overrides) => {
  const server = await serve(t);
  const ann = await join(t, server, 'Ann', { overrides });
  const bob = await join(t, server, 'Bob');
  await until('each receives the other', () => ann.client.remotes.size === 2 && bob.client.remotes.size === 2);
  await until('the server knows', () => [...server.clients.values()].every((client) => client.unanswered.size === 0));
  return { server, ann, bob, atServer: (name) => server.client(name) };
};

test('two clients see and receive each other', async (t) => {
  const { ann, bob } = await call(t);
  assert.deepEqual([...ann.client.peers.values()].map((peer) => peer.displayName), ['Bob']);
  assert.deepEqual([...bob.client.remotes.values()].map((remote) => remote.source).sort(), ['camera', 'mic']);
});

test('a broken socket resumes as the same client with its media untouched', async (t) => {
  const { server, ann, atServer } = await call(t);
  const before = [ann.client.clientId, [...ann.client.remotes.keys()], ann.client.plane];
  server.cut(atServer('Ann'));
  await until('it notices', () => ann.client.status === 'reconnecting');
  await until('it is back', () => ann.client.status === 'joined');
  assert.deepEqual([ann.client.clientId, [...ann.client.remotes.keys()], ann.client.plane], before);
  assert.equal(server.clients.size, 2);
  assert.equal(ann.named('reset').length, 0);
});

test('what happened meanwhile is handed over once and in order', async (t) => {
  const { server, ann, bob, atServer } = await call(t);
  const cam = [...bob.client.remotes.values()];
  assert.equal(cam.length, 2);
  server.refuseResumes = true;
  server.cut(atServer('Ann'));
  await until('it notices', () => ann.client.status === 'reconnecting');
  await bob.client.setPaused('mic', true);
  const carol = await join(t, server, 'Carol', { publish: false });
  carol.client.leave();
  await until('Carol is gone', () => server.room('test').clients.size === 2);
  await bob.client.setPaused('mic', false);
  await bob.client.setPaused('mic', true);
  ann.seen.length = 0;
  server.refuseResumes = false;
  await until('it is back', () => ann.client.status === 'joined');
  const told = ann.seen.map(([event, subject]) => `${event} ${subject?.displayName ?? subject?.source ?? subject}`);
  assert.deepEqual(told, ['remoteChanged mic', 'peerJoined Carol', 'peerLeft Carol', 'remoteChanged mic', 'remoteChanged mic', 'status joined']);
  assert.equal([...ann.client.remotes.values()].find((remote) => remote.kind === 'audio').paused, true);
  // A second break tells nothing of it again.
  ann.seen.length = 0;
  server.cut(atServer('Ann'));
  await until('it is back again', () => ann.seen.some(([event, status]) => event === 'status' && status === 'joined'));
  assert.deepEqual(ann.seen, [['status', 'reconnecting'], ['status', 'joined']]);
});

test('a consumer offered while away is accepted after the resume', async (t) => {
  const { server, ann, bob, atServer } = await call(t, { openSocket: burstySocket });
  server.refuseResumes = true;
  server.cut(atServer('Ann'));
  await bob.client.publish('screen', track('video'));
  await pause(50);
  assert.equal(ann.client.remotes.size, 2);
  server.refuseResumes = false;
  await until('the screen is there', () => [...ann.client.remotes.values()].some((remote) => remote.source === 'screen'));
  await until('the server has its answer', () => atServer('Ann').unanswered.size === 0);
});

test('an offer repeated on the heels of the answer to resume is answered', async (t) => {
  const { server, ann, atServer } = await call(t, { openSocket: burstySocket });
  const client = atServer('Ann');
  const [id, consumer] = [...client.consumers][0];
  server.cut(client);
  server.ask(client, 'newConsumer', { ...consumer, id, kind: 'audio', rtpParameters: {}, appData: {} });
  await until('answered', () => client.unanswered.size === 0);
  assert.equal(ann.client.remotes.size, 2);
});

test('what follows an answer to resume is handed on after what was missed', async (t) => {
  const { server, ann, bob, atServer } = await call(t, { openSocket: burstySocket });
  server.refuseResumes = true;
  server.cut(atServer('Ann'));
  await until('it notices', () => ann.client.status === 'reconnecting');
  await bob.client.setPaused('mic', true);
  ann.seen.length = 0;
  server.resumed = (client) => server.notify(client, 'newPeer', { id: 'late', displayName: 'Late', device: {} });
  server.refuseResumes = false;
  await until('all is told', () => ann.seen.length === 3);
  assert.deepEqual(ann.seen.map(([event]) => event), ['remoteChanged', 'status', 'peerJoined']);
});

test('an offer repeated because the answer was lost makes no second consumer', async (t) => {
  const { server, ann, atServer } = await call(t);
  const client = atServer('Ann');
  const [id, consumer] = [...client.consumers][0];
  const added = ann.named('remoteAdded').length;
  const accepted = [];
  server.accepted = (_, message) => accepted.push(message.data.id);
  server.ask(client, 'newConsumer', { ...consumer, id, kind: 'audio', rtpParameters: {}, appData: {} });
  await until('answered', () => client.unanswered.size === 0);
  assert.deepEqual(accepted, [id]);
  assert.equal(ann.named('remoteAdded').length, added);
  assert.equal(ann.client.remotes.size, 2);
});

test('a request whose answer was lost is sent again under its id and done once', async (t) => {
  const { server, ann, bob, atServer } = await call(t);
  server.answering = (client, method) => !(client.user === 'Ann' && method === 'closeProducer');
  const closing = ann.client.unpublish('camera');
  await until('it arrived', () => server.requests.some((request) => request.method === 'closeProducer'));
  server.answering = () => true;
  server.cut(atServer('Ann'));
  await closing;
  const sent = server.requests.filter((request) => request.method === 'closeProducer');
  assert.deepEqual(sent.map((request) => request.repeated), [false, true]);
  assert.equal(sent[0].id, sent[1].id);
  assert.ok(bob.client);
});

test('when too much was missed the difference to the present is the news', async (t) => {
  const { server, ann, bob, atServer } = await call(t);
  server.keep = -1;
  server.refuseResumes = true;
  server.cut(atServer('Ann'));
  await until('it notices', () => ann.client.status === 'reconnecting');
  bob.client.leave();
  await join(t, server, 'Dora', { publish: false });
  await until('Bob is gone', () => !server.client('Bob'));
  server.refuseResumes = false;
  await until('it is back', () => ann.client.status === 'joined');
  assert.deepEqual([...ann.client.peers.values()].map((peer) => peer.displayName), ['Dora']);
  assert.equal(ann.client.remotes.size, 0);
});

test('a server that has forgotten us gets a new client, not a dead end', async (t) => {
  const { server, ann, bob, atServer } = await call(t);
  const before = ann.client.clientId;
  const client = atServer('Ann');
  server.cut(client);
  server.leave(client);
  await until('it is in again', () => ann.client.status === 'joined' && ann.client.clientId !== before);
  await until('media both ways again', () => ann.client.remotes.size === 2 && bob.client.remotes.size === 2);
  assert.equal(ann.named('reset').length, 1);
});

test('a room that NUVE no longer knows is joined afresh', async (t) => {
  const { server, ann, atServer } = await call(t);
  const before = ann.client.clientId;
  server.locateStatus = 404;
  server.cut(atServer('Ann'));
  await until('it is in again', () => ann.client.status === 'joined' && ann.client.clientId !== before);
});

test('while the room is being placed the client waits and then resumes', async (t) => {
  const { server, ann, atServer } = await call(t);
  const before = ann.client.clientId;
  server.locateStatus = 503;
  server.cut(atServer('Ann'));
  await pause(600);
  assert.equal(ann.client.status, 'reconnecting');
  server.locateStatus = 200;
  await until('it is back', () => ann.client.status === 'joined');
  assert.equal(ann.client.clientId, before);
});

test('NUVE being away does not keep a client from the EC it knows', async (t) => {
  const { server, ann, atServer } = await call(t);
  server.locateStatus = 500;
  server.cut(atServer('Ann'));
  await until('it notices', () => ann.client.status === 'reconnecting');
  await until('it is back', () => ann.client.status === 'joined');
  assert.equal(atServer('Ann').resumes, 1);
});

test('a close with 4000 is final and says why, but "moved" resumes elsewhere', async (t) => {
  const { server, ann, bob, atServer } = await call(t);
  server.close(atServer('Ann'), 'moved');
  await until('Ann resumed', () => atServer('Ann')?.resumes === 1);
  await until('Ann is back', () => ann.client.status === 'joined');
  server.close(atServer('Bob'), 'kicked');
  await until('Bob is out', () => bob.client.status === 'closed');
  assert.deepEqual(bob.named('closed').map(([, reason]) => reason), [{ kind: 'refused', reason: 'kicked' }]);
  await pause(600);
  assert.equal(server.clients.get(bob.client.clientId)?.resumes, undefined);
});

test('roomMoved and suspended lead to the place NUVE names, and nowhere when that is here', async (t) => {
  const { server, ann, atServer } = await call(t);
  server.notify(atServer('Ann'), 'suspended');
  await pause(100);
  assert.equal(atServer('Ann').resumes, undefined);
  server.wsUrl = `ws://localhost:${server.port}/signal`;
  server.notify(atServer('Ann'), 'roomMoved', { locateUrl: `${server.url}/v1/rooms/${atServer('Ann').room.id}/locate` });
  await until('it went there', () => atServer('Ann').resumes === 1);
  await until('it is back', () => ann.client.status === 'joined');
});

test('leaving tells the server at once', async (t) => {
  const { server, ann, bob } = await call(t);
  ann.client.leave();
  await until('Bob sees it', () => bob.client.peers.size === 0, 1_000);
  assert.equal(server.client('Ann'), undefined);
  assert.deepEqual(ann.named('closed').map(([, reason]) => reason.kind), ['left']);
});

test('a refused token is an error of join, with the reason', async (t) => {
  const server = await serve(t);
  const admit = server.admit.bind(server);
  server.admit = (...args) => ({ ...admit(...args), token: 'nonsense' });
  await assert.rejects(join(t, server, 'Eve'), /bad token/);
});
