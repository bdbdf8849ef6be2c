/** What the unit tests need, bundled for Node: the client and some of its insides, the page's pure parts, and mediasoup-client's own fake browser. */

export * from '../client/src/index.js';
export { backoff, RECONNECT, REJOIN } from '../client/src/backoff.js';
export { Session } from '../client/src/session.js';
export { fitGrid } from '../src/ui/grid.js';
export { initials } from '../src/ui/tile.js';
export { FakeHandler } from 'mediasoup-client/handlers/FakeHandler';
export * as fakeParameters from 'mediasoup-client/fakeParameters';
export { FakeMediaStreamTrack } from 'fake-mediastreamtrack';
export { Device } from 'mediasoup-client';
