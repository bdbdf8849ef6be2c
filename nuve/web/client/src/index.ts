/** Calls on a Roomlog cluster from a page: what is exported here is the package's whole surface. */

export { Emitter, type Listener } from './emitter.js';
export type { Env } from './env.js';
export { fetchDemoService, fetchToken, HttpError, type DemoService, type TokenRequest } from './http.js';
export type { Outgoing } from './media.js';
export { RoomClient, type CloseReason, type Remote, type RoomEvents, type RoomOptions, type RoomStatus } from './room.js';
export { RequestError, type Admission, type DeviceInfo, type PeerInfo, type Placement, type Source } from './types.js';
