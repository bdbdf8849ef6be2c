/** Roomlog's browser client. No DOM beyond WebRTC itself; the page in `../ui` is one user of it. */

export { backoff, RECONNECT, REJOIN, type BackoffSettings } from './backoff.js';
export { Emitter } from './emitter.js';
export { browserEnv, type Env } from './env.js';
export { fetchDemoService, fetchToken, HttpError, locate, roomByName, type DemoService, type TokenRequest } from './http.js';
export { MediaPlane, type MakeDevice, type Outgoing } from './media.js';
export { RoomClient, type CloseReason, type Remote, type RoomEvents, type RoomOptions, type RoomStatus } from './room.js';
export { Session, type EndReason } from './session.js';
export * from './types.js';
