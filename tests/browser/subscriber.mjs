/**
 * A subscriber that is no part of Roomlog: prints every committed event of a cluster as a line of JSON, the fields named as `roomlog replay
 * events` names them. docs/subscribe.md explains it.
 *
 *     node subscriber.mjs [nats://127.0.0.1:4222] [roomlog.ev.room.>]
 */

import { decode } from '@msgpack/msgpack';
import { connect } from 'nats';

const [servers = 'nats://127.0.0.1:4222', subject = 'roomlog.ev.>'] = process.argv.slice(2);
const hex = (bytes) => Buffer.from(bytes).toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');

/** A message is one commit: all events of one decision. What an event holds is MessagePack inside MessagePack. */
export function events(payload) {
  const { id, stream, version, time, writer, epoch, cause, events } = decode(payload);
  const common = { stream, time: new Date(time / 1000).toISOString(), time_us: time, commit: hex(id), writer, epoch, cause };
  return events.map(({ type, schema, data }, index) => ({ ...common, version: version + index, type, schema, data: data.length ? decode(data) : null }));
}

if (process.argv[1] === new URL(import.meta.url).pathname) {
  const nats = await connect({ servers: servers.split(','), maxReconnectAttempts: -1 });
  const subscription = nats.subscribe(subject);
  await nats.flush(); // From here on nothing is missed.
  console.error(`listening on ${subject} at ${nats.getServer()}`);
  const versions = new Map();
  for await (const message of subscription) {
    for (const event of events(message.data)) {
      // NATS core delivers at most once. Versions of a stream have no holes, so what was missed shows.
      const last = versions.get(event.stream);
      if (last !== undefined && event.version !== last + 1) console.error(`${event.stream}: ${last + 1} to ${event.version - 1} were missed`);
      versions.set(event.stream, event.version);
      console.log(JSON.stringify(event));
    }
  }
}
