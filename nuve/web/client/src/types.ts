/** The words of the wire: what NUVE and the EC send, as far as this client reads it. Unknown fields are ignored. */

import type { types as mediasoup } from 'mediasoup-client';

/** NUVE's answer to a request for a token. */
export interface Admission {
  token: string;
  roomId: string;
  clientId: string;
  wsUrl: string;
  /** Unix time, ms. */
  expiresAt?: number;
  locateUrl: string;
}

/** NUVE's answer to `locate`. */
export interface Location {
  roomId: string;
  wsUrl: string;
  epoch?: number;
  ec?: string;
}

/** The EC's answer to `token`. */
export interface Opened {
  clientId: string;
  roomId: string;
  resumeKey: string;
  locateUrl?: string;
  /** Room version at that moment. */
  v?: number;
  media?: MediaPlace;
  ec?: string;
}

/** Where a room's media is, as the EC says it. */
export interface MediaPlace {
  ea?: string | null;
  /** Number of the worker on its EA. */
  worker?: number | null;
  mediaEpoch?: number;
}

/** The nodes that serve a client, by the ids that the log has for them. */
export interface Placement {
  /** Where its signalling goes. */
  ec: string | undefined;
  /** Where its media goes; undefined while the room is without a worker. */
  ea: string | undefined;
  worker: number | undefined;
  /** Goes up by one with each move of the media. */
  mediaEpoch: number;
}

export interface PeerInfo {
  id: string;
  displayName: string;
  device?: DeviceInfo;
}

export interface DeviceInfo {
  flag?: string;
  name?: string;
  version?: string;
}

/** A notification as `resume` hands it over. */
export interface MissedEvent {
  method: string;
  data?: Record<string, unknown>;
}

/** The room as it is now, sent when what was missed can no longer be told one by one. */
export interface RoomState {
  peers: PeerInfo[];
  /** Ids of our consumers that still exist, where the server tells. */
  consumers?: { id: string }[];
}

/** The EC's answer to `resume`. */
export interface Resumed {
  clientId: string;
  roomId: string;
  v?: number;
  events?: MissedEvent[];
  state?: RoomState;
  mediaEpoch?: number;
  media?: MediaPlace;
  ec?: string;
}

export interface NewConsumer {
  peerId: string;
  producerId: string;
  id: string;
  kind: 'audio' | 'video';
  rtpParameters: mediasoup.RtpParameters;
  type?: string;
  appData?: Record<string, unknown>;
  producerPaused?: boolean;
  mediaEpoch?: number;
  v?: number;
}

/** One protoo message, any of the three kinds. */
export interface Message {
  request?: true;
  response?: true;
  notification?: true;
  id?: number;
  ok?: boolean;
  method?: string;
  data?: Record<string, unknown>;
  errorCode?: number;
  errorReason?: string;
}

/** What a track shows; travels in the producer's `appData`. */
export type Source = 'mic' | 'camera' | 'screen';

/** Error codes of the EC that this client acts upon. */
export const ErrorCode = { noRoom: 1000, unknownClient: 1002, noSuchClientOnEa: 2002, forbidden: 403, retryLater: 503 } as const;

/** An error the server answered with. */
export class RequestError extends Error {
  constructor(
    readonly code: number | undefined,
    reason: string | undefined,
    readonly method: string,
  ) {
    super(`${method}: ${reason ?? 'refused'}${code === undefined ? '' : ` (${code})`}`);
    this.name = 'RequestError';
  }
}
