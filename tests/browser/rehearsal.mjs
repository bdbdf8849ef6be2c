#!/usr/bin/env node
/**
 * A rehearsal: the fake signalling server with real SFU workers behind it, and nothing of NUVE, EC, EA or the log between.
 * It takes the arguments of `roomlog up` that the tests use, so the browser tests run on it as they are:
 *
 *   ROOMLOG_SFU=<sfu worker program> ROOMLOG_BIN=$PWD/rehearsal.mjs npm test
 *
 * It shows whether page, tests and worker agree, without waiting for (or blaming) the control plane.
 */

import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { decodeMulti, encode } from '@msgpack/msgpack';
import { FakeServer } from '../../nuve/web/test/fake-server.mjs';

/** Two, so that the death of one can be seen to spare the other's rooms. */
const WORKERS = 2;

const plain = (value) => JSON.parse(JSON.stringify(value));

class Worker {
  #next = 0;
  #waiting = new Map();
  #buffer = Buffer.alloc(0);

  constructor(program, onDeath, onNotification) {
    this.child = spawn(program, [], { stdio: ['pipe', 'pipe', 'inherit'], argv0: 'sfu-worker' });
    this.#write({ listen: '127.0.0.1:0' });
    this.child.stdin.on('error', () => {});
    this.child.stdout.on('data', (bytes) => this.#read(bytes, onNotification));
    this.child.on('exit', () => {
      for (const { reject } of this.#waiting.values()) reject(Object.assign(new Error('the worker died'), { code: 2000 }));
      onDeath();
    });
  }

  ask(room, command) {
    const id = ++this.#next;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#write({ request: { id, room, command } });
    });
  }

  #write(message) {
    const body = encode(typeof message === 'string' ? message : plain(message));
    const frame = Buffer.alloc(4 + body.length);
    frame.writeUInt32BE(body.length);
    frame.set(body, 4);
    this.child.stdin.write(frame);
  }

  #read(bytes, onNotification) {
    this.#buffer = Buffer.concat([this.#buffer, bytes]);
    while (this.#buffer.length >= 4 && this.#buffer.length >= 4 + this.#buffer.readUInt32BE()) {
      const length = this.#buffer.readUInt32BE();
      const [message] = decodeMulti(this.#buffer.subarray(4, 4 + length));
      this.#buffer = this.#buffer.subarray(4 + length);
      if (message.notification) onNotification(message.notification);
      if (!message.answer) continue;
      const { id, result } = message.answer;
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      if ('Ok' in result) resolve(typeof result.Ok === 'string' ? {} : Object.values(result.Ok)[0]);
      else reject(Object.assign(new Error(JSON.stringify(result.Err)), { code: 2000 }));
    }
  }
}

class Rehearsal extends FakeServer {
  #workers = [];
  #turn = 0;

  constructor(dist, program) {
    super(dist);
    for (let slot = 0; slot < WORKERS; slot++) this.#hire(slot, program);
  }

  #hire(slot, program) {
    this.#workers[slot] = new Worker(
      program,
      () => {
        if (this.ending) return;
        this.#hire(slot, program);
        for (const room of this.rooms.values()) {
          if (room.slot !== slot || room.clients.size === 0) continue;
          room.router = undefined;
          this.moveMedia(room);
        }
      },
      ({ room, notification }) => this.#heard(this.rooms.get(room), notification),
    );
  }

  end() {
    this.ending = true;
    for (const { child } of this.#workers) child.kill();
  }

  async #ask(room, command) {
    room.slot ??= this.#turn++ % WORKERS;
    const worker = this.#workers[room.slot];
    room.router ??= worker.ask(room.id, 'create_router');
    await room.router;
    return worker.ask(room.id, command);
  }

  #heard(room, notification) {
    const speaker = notification.active_speaker;
    if (!room || !speaker) return;
    const owner = [...room.clients.values()].find((client) => client.producers.has(speaker.producer));
    for (const client of room.clients.values()) if (client.joined) this.notify(client, 'activeSpeaker', { peerId: owner?.id ?? null, volume: speaker.volume });
  }

  async serve(client, method, data) {
    const { room } = client;
    const usual = () => super.serve(client, method, data);
    switch (method) {
      case 'getRouterRtpCapabilities': {
        await this.#ask(room, 'inventory');
        return (await room.router).rtp_capabilities;
      }
      case 'createWebRtcTransport': {
        const id = `t-${randomBytes(8).toString('hex')}`;
        const { ice_parameters, ice_candidates, dtls_parameters } = await this.#ask(room, { create_transport: { transport: id } });
        (client.transports ??= new Set()).add(id);
        if (data.consuming) client.recv = id;
        return { id, iceParameters: ice_parameters, iceCandidates: ice_candidates, dtlsParameters: dtls_parameters };
      }
      case 'connectWebRtcTransport':
        return this.#ask(room, { connect_transport: { transport: data.transportId, dtls: data.dtlsParameters } });
      case 'restartIce':
        return (await this.#ask(room, { restart_ice: { transport: data.transportId } })).ice_parameters;
      case 'join':
        client.capabilities = data.rtpCapabilities;
        return usual();
      case 'produce': {
        const id = `p-${randomBytes(8).toString('hex')}`;
        await this.#ask(room, { produce: { transport: data.transportId, producer: id, kind: data.kind, rtp_parameters: data.rtpParameters, paused: false } });
        client.producers.set(id, { id, kind: data.kind, appData: data.appData ?? {}, paused: false });
        return { id };
      }
      case 'pauseProducer':
      case 'resumeProducer':
        return this.#ask(room, { pause_producer: { producer: data.producerId, paused: method === 'pauseProducer' } });
      case 'closeProducer':
        return this.#ask(room, { close: { object: { producer: data.producerId } } });
      case 'setConsumerPreferredLayers':
        return this.#ask(room, { set_preferred_layers: { consumer: data.consumerId, layers: { spatialLayer: data.spatialLayer, temporalLayer: data.temporalLayer } } });
      default:
        return usual();
    }
  }

  async makeConsumer(client, consumer, producer) {
    const made = await this.#ask(client.room, { consume: { transport: client.recv, consumer: consumer.id, producer: producer.id, rtp_capabilities: client.capabilities } });
    return { rtpParameters: made.rtp_parameters, type: made.consumer_type };
  }

  accepted(client, { method, data }) {
    if (method === 'newConsumer') void this.#ask(client.room, { pause_consumer: { consumer: data.id, paused: false } });
  }

  gone(client) {
    for (const id of client.transports ?? []) void this.#ask(client.room, { close: { object: { transport: id } } }).catch(() => {});
  }
}

const program = process.env.ROOMLOG_SFU;
if (!program) throw new Error('set ROOMLOG_SFU to an SFU worker program');
const server = await new Rehearsal(fileURLToPath(new URL('../../nuve/web/dist', import.meta.url)), program).start();
console.log(`Open ${server.url}/`);
process.on('SIGTERM', () => {
  server.end();
  process.exit(0);
});
