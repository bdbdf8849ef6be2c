/**
 * A server that speaks the signalling and carries no media: for the unit tests of the client and for working on the page.
 * It keeps the promises that the client relies on (versions, resume, repeated requests, unanswered server requests) and can
 * be told to break them.
 */

import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { extname, join, normalize } from 'node:path';
import { randomBytes } from 'node:crypto';
import { WebSocketServer } from 'ws';

const id = (prefix) => `${prefix}-${randomBytes(5).toString('hex')}`;
const MIME = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml' };

const EXTENSIONS = [
  { kind: 'audio', uri: 'urn:ietf:params:rtp-hdrext:sdes:mid', preferredId: 1 },
  { kind: 'video', uri: 'urn:ietf:params:rtp-hdrext:sdes:mid', preferredId: 1 },
  { kind: 'video', uri: 'urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id', preferredId: 2, direction: 'recvonly' },
];
export const ROUTER_CAPABILITIES = {
  codecs: [
    { kind: 'audio', mimeType: 'audio/opus', preferredPayloadType: 100, clockRate: 48000, channels: 2, parameters: {}, rtcpFeedback: [] },
    { kind: 'video', mimeType: 'video/VP8', preferredPayloadType: 101, clockRate: 90000, parameters: {}, rtcpFeedback: [{ type: 'nack' }, { type: 'nack', parameter: 'pli' }] },
  ],
  headerExtensions: EXTENSIONS,
};

export const consumerParameters = (kind, n) => ({
  mid: String(n),
  codecs: ROUTER_CAPABILITIES.codecs
    .filter((codec) => codec.kind === kind)
    .map(({ mimeType, preferredPayloadType, clockRate, channels }) => ({ mimeType, payloadType: preferredPayloadType, clockRate, ...(channels ? { channels } : {}), parameters: {}, rtcpFeedback: [] })),
  headerExtensions: [{ uri: EXTENSIONS[0].uri, id: 1, encrypt: false, parameters: {} }],
  encodings: [{ ssrc: 1_000_000 + n * 2 }],
  rtcp: { cname: 'fake', reducedSize: true, mux: true },
});

const transportParameters = () => ({
  id: id('t'),
  iceParameters: { usernameFragment: id('u'), password: randomBytes(12).toString('hex'), iceLite: true },
  iceCandidates: [{ foundation: '1', priority: 1, ip: '127.0.0.1', address: '127.0.0.1', protocol: 'udp', port: 9, type: 'host' }],
  dtlsParameters: { role: 'auto', fingerprints: [{ algorithm: 'sha-256', value: Array.from(randomBytes(32), (b) => b.toString(16).padStart(2, '0').toUpperCase()).join(':') }] },
});

export class FakeServer {
  rooms = new Map();
  clients = new Map();
  tokens = new Map();
  /** Every request any client sent: `{client, id, method, data, repeated}`. */
  requests = [];
  /** Told by tests. */
  refuseResumes = false;
  locateStatus = 200;
  demo = true;
  /** The EC that clients are at. */
  ec = 'ec-1';
  /** Notifications older than this many versions are "compacted". */
  keep = 1000;
  /** `(client, method) => false` swallows the answer to a request that was carried out. */
  answering = () => true;
  /** Called on the heels of an answer to `resume`. */
  resumed = () => {};
  /** `(client, method) => {code, reason}` refuses. */
  refusing = () => undefined;
  #n = 0;

  constructor(dist) {
    this.dist = dist;
    this.http = createServer((request, response) => void this.#http(request, response));
    this.ws = new WebSocketServer({ noServer: true, handleProtocols: (protocols) => (protocols.has('protoo') ? 'protoo' : false) });
    this.http.on('upgrade', (request, socket, head) => {
      if (this.refuseResumes && request.url.includes('resume=1')) return socket.end('HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\r\n');
      this.ws.handleUpgrade(request, socket, head, (ws) => this.#socket(ws, new URL(request.url, this.url).searchParams.get('token')));
    });
  }

  async start(port = 0) {
    await new Promise((resolve) => this.http.listen(port, '127.0.0.1', resolve));
    this.port = this.http.address().port;
    this.url = `http://127.0.0.1:${this.port}`;
    this.wsUrl = `ws://127.0.0.1:${this.port}/signal`;
    return this;
  }

  async stop() {
    for (const ws of this.ws.clients) ws.terminate();
    this.http.closeAllConnections();
    await new Promise((resolve) => this.http.close(resolve));
  }

  admit(roomName, user) {
    let room = [...this.rooms.values()].find((known) => known.name === roomName);
    if (!room) this.rooms.set((room = { id: id('r'), name: roomName, v: 0, mediaEpoch: 1, clients: new Map() }).id, room);
    const token = id('token');
    const clientId = id('c');
    this.tokens.set(token, { room, clientId, user });
    return { token, roomId: room.id, clientId, wsUrl: this.wsUrl, expiresAt: Date.now() + 60_000, locateUrl: `${this.url}/v1/rooms/${room.id}/locate` };
  }

  room(name) {
    return [...this.rooms.values()].find((room) => room.name === name);
  }

  client(name) {
    return [...this.clients.values()].find((client) => client.displayName === name || client.user === name);
  }

  /** Cuts the cable: the other side sees 1006. */
  cut(client) {
    client.ws?.terminate();
    client.ws = undefined;
  }

  close(client, reason, code = 4000) {
    client.ws?.close(code, reason);
  }

  forget(client) {
    this.clients.delete(client.id);
    client.room.clients.delete(client.id);
  }

  moveMedia(room) {
    room.mediaEpoch++;
    for (const client of room.clients.values()) {
      client.producers.clear();
      client.consumers.clear();
      client.unanswered.clear();
      client.recv = undefined;
    }
    for (const client of room.clients.values()) this.notify(client, 'mediaMoved', { ...this.media(room), reason: 'worker-died' });
  }

  /** Where a room's media is: each epoch on another EA. */
  media(room) {
    return { ea: `ea-${room.mediaEpoch}`, worker: 0, mediaEpoch: room.mediaEpoch };
  }

  leave(client, reason = 'left') {
    this.forget(client);
    this.gone(client);
    for (const other of client.room.clients.values()) {
      for (const [consumerId, consumer] of other.consumers) {
        if (consumer.peerId !== client.id) continue;
        other.consumers.delete(consumerId);
        this.notify(other, 'consumerClosed', { consumerId });
      }
      this.notify(other, 'peerClosed', { peerId: client.id, reason });
    }
  }

  notify(client, method, data = {}) {
    const event = { method, data: { ...data, v: ++client.room.v } };
    client.history.push(event);
    this.#send(client, { notification: true, ...event });
  }

  /** A server request, repeated after `resume` until it is answered. */
  ask(client, method, data) {
    const message = { request: true, id: ++this.#n, method, data: { ...data, v: ++client.room.v } };
    client.unanswered.set(message.id, message);
    this.#send(client, message);
  }

  #send(client, message) {
    if (client.ws?.readyState === 1) client.ws.send(JSON.stringify(message));
  }

  async #http(request, response) {
    const url = new URL(request.url, this.url);
    const json = (status, body, headers = {}) => response.writeHead(status, { 'content-type': status < 400 ? 'application/json' : 'application/problem+json', ...headers }).end(JSON.stringify(body));
    if (url.pathname === '/v1/demo') return this.demo ? json(200, { publishableKey: 'pk_fake', service: 'demo' }) : json(404, { title: 'Not Found', status: 404, detail: 'there is no demo service' });
    const token = /^\/v1\/rooms\/([^/]+)\/tokens$/.exec(url.pathname);
    if (token && request.method === 'POST') {
      let body = '';
      for await (const chunk of request) body += chunk;
      if (request.headers.authorization !== 'Bearer pk_fake') return json(401, { title: 'Unauthorized', status: 401, detail: 'bad key' });
      return json(201, this.admit(decodeURIComponent(token[1]).replace(/^name:/, ''), JSON.parse(body).user));
    }
    const located = /^\/v1\/rooms\/([^/]+)\/locate$/.exec(url.pathname);
    if (located) {
      if (this.locateStatus !== 200) return json(this.locateStatus, { status: this.locateStatus, title: 'not now' }, { 'retry-after': '1' });
      return json(200, { roomId: located[1], wsUrl: this.wsUrl, epoch: 1, ec: this.ec });
    }
    if (!this.dist) return json(404, { status: 404 });
    try {
      const path = normalize(url.pathname === '/' ? '/index.html' : url.pathname);
      const body = await readFile(join(this.dist, path));
      response.writeHead(200, { 'content-type': MIME[extname(path)] ?? 'application/octet-stream', 'cache-control': 'no-store' }).end(body);
    } catch {
      json(404, { status: 404 });
    }
  }

  #socket(ws, tokenInUrl) {
    let client;
    ws.on('message', (raw) => {
      const message = JSON.parse(String(raw));
      if (message.response) {
        const asked = client?.unanswered.get(message.id);
        client?.unanswered.delete(message.id);
        if (asked && message.ok) this.accepted(client, asked);
        return;
      }
      if (!message.request) return;
      const answer = (data) => ws.send(JSON.stringify({ response: true, id: message.id, ok: true, data }));
      const refuse = (errorCode, errorReason) => ws.send(JSON.stringify({ response: true, id: message.id, ok: false, errorCode, errorReason }));
      if (message.method === 'token' || message.method === 'resume') {
        client = this.#open(ws, message, answer, refuse);
        return;
      }
      // A plain protoo client has its token in the address and never speaks of it.
      if (!client && tokenInUrl) client = this.#open(ws, { method: 'token', data: { token: tokenInUrl } }, () => {}, refuse);
      if (!client || client.ws !== ws) return;
      const repeated = client.answers.has(message.id);
      this.requests.push({ client: client.id, ...message, repeated });
      const refused = this.refusing(client, message.method);
      if (refused) return refuse(refused.code, refused.reason);
      if (!repeated) client.answers.set(message.id, this.serve(client, message.method, message.data ?? {}));
      const result = client.answers.get(message.id);
      const finish = (data) => {
        if (this.answering(client, message.method) && ws.readyState === 1) answer(data);
        if (!repeated) this.#afterwards(client, message.method, message.data ?? {}, data);
      };
      // At once where it can be, so that what follows keeps its place.
      if (result instanceof Promise) result.then(finish, (error) => refuse(error.code ?? 2000, error.message));
      else finish(result);
    });
    ws.on('close', (code) => {
      if (!client || client.ws !== ws) return;
      client.ws = undefined;
      if (code === 1000 || code === 1001 || code === 1005) this.leave(client);
    });
  }

  #open(ws, { method, data }, answer, refuse) {
    if (method === 'token') {
      const admission = this.tokens.get(data.token);
      if (!admission) return void ws.close(4000, 'bad token');
      const { room, clientId, user } = admission;
      // The same token attaches the same client again, which starts over.
      const before = this.clients.get(clientId);
      if (before) {
        before.ws?.close(4000, 'replaced');
        before.ws = undefined;
        this.leave(before);
      }
      const client = { id: clientId, user, room, ws, resumeKey: id('key'), displayName: undefined, producers: new Map(), consumers: new Map(), history: [], unanswered: new Map(), answers: new Map(), admittedAt: room.v };
      this.clients.set(clientId, client);
      room.clients.set(clientId, client);
      answer({ clientId, roomId: room.id, resumeKey: client.resumeKey, locateUrl: `/v1/rooms/${room.id}/locate`, v: room.v, media: this.media(room), ec: this.ec });
      return client;
    }
    const client = this.clients.get(data.clientId);
    if (!client) return void refuse(1002, 'no such client');
    if (client.resumeKey !== data.resumeKey) return void refuse(403, 'wrong resume key');
    client.ws?.close(4000, 'replaced');
    client.ws = ws;
    client.resumes = (client.resumes ?? 0) + 1;
    const known = { clientId: client.id, roomId: client.room.id, v: client.room.v, ec: this.ec, media: this.media(client.room), mediaEpoch: client.room.mediaEpoch };
    if (client.room.v - data.since > this.keep) answer({ ...known, state: { peers: this.#peers(client) } });
    else answer({ ...known, events: client.history.filter((event) => event.data.v > data.since) });
    this.resumed(client);
    for (const message of client.unanswered.values()) ws.send(JSON.stringify(message));
    return client;
  }

  #peers(client) {
    return [...client.room.clients.values()].filter((other) => other !== client && other.joined).map(({ id, displayName }) => ({ id, displayName, device: {} }));
  }

  /** Answers a request; with media behind it, overridden, and then may take its time. */
  serve(client, method, data) {
    switch (method) {
      case 'getRouterRtpCapabilities':
        return ROUTER_CAPABILITIES;
      case 'createWebRtcTransport': {
        const made = transportParameters();
        if (data.consuming) client.recv = made.id;
        return made;
      }
      case 'join':
        client.displayName = data.displayName;
        client.joined = true;
        return { peers: this.#peers(client) };
      case 'produce': {
        const producer = { id: id('p'), kind: data.kind, appData: data.appData ?? {}, paused: false };
        client.producers.set(producer.id, producer);
        return { id: producer.id };
      }
      case 'restartIce':
        return transportParameters().iceParameters;
      default:
        return {};
    }
  }

  #afterwards(client, method, data, answer) {
    const others = [...client.room.clients.values()].filter((other) => other !== client && other.joined);
    if (method === 'join') {
      for (const other of others) {
        this.notify(other, 'newPeer', { id: client.id, displayName: client.displayName, device: {} });
        for (const producer of other.producers.values()) this.#consume(client, other, producer);
      }
    } else if (method === 'createWebRtcTransport' && data.consuming && client.joined) {
      for (const other of others) for (const producer of other.producers.values()) this.#consume(client, other, producer);
    } else if (method === 'produce') {
      const producer = client.producers.get(answer.id);
      for (const other of others) if (other.recv) this.#consume(other, client, producer);
    } else if (method === 'pauseProducer' || method === 'resumeProducer') {
      const producer = client.producers.get(data.producerId);
      if (producer) producer.paused = method === 'pauseProducer';
      this.#tellConsumers(others, data.producerId, method === 'pauseProducer' ? 'consumerPaused' : 'consumerResumed');
    } else if (method === 'closeProducer') {
      client.producers.delete(data.producerId);
      this.#tellConsumers(others, data.producerId, 'consumerClosed');
    }
  }

  #tellConsumers(others, producerId, method) {
    for (const other of others) {
      for (const [consumerId, consumer] of other.consumers) {
        if (consumer.producerId === producerId) this.notify(other, method, { consumerId });
        if (consumer.producerId === producerId && method === 'consumerClosed') other.consumers.delete(consumerId);
      }
    }
  }

  #consume(client, owner, producer) {
    const consumer = { id: id('k'), peerId: owner.id, producerId: producer.id };
    const offer = ({ rtpParameters, type }) => {
      client.consumers.set(consumer.id, consumer);
      this.ask(client, 'newConsumer', { ...consumer, kind: producer.kind, rtpParameters, type, appData: producer.appData, producerPaused: producer.paused });
    };
    const made = this.makeConsumer(client, consumer, producer);
    if (made instanceof Promise) made.then(offer, (error) => console.error('no consumer:', error.message));
    else offer(made);
  }

  /** What a consumer will be sent; overridden with media behind it. */
  makeConsumer(client, consumer, producer) {
    return { rtpParameters: consumerParameters(producer.kind, ++this.#n), type: 'simple' };
  }

  /** The client has accepted what it was asked. */
  accepted() {}

  /** A client has gone. */
  gone() {}
}

if (process.argv[1] === new URL(import.meta.url).pathname) {
  const server = await new FakeServer(new URL('../dist', import.meta.url).pathname).start(Number(process.argv[2] ?? 0));
  console.log(`Open ${server.url}/`);
}
