/** protoo-client ships no types; these are the parts used here. */
declare module 'protoo-client' {
  export class WebSocketTransport {
    constructor(url: string, options?: { retry?: { retries: number } });
  }
  export class Peer {
    constructor(transport: unknown);
    readonly closed: boolean;
    readonly connected: boolean;
    close(): void;
    request(method: string, data?: unknown): Promise<unknown>;
    notify(method: string, data?: unknown): Promise<void>;
    on(event: 'open' | 'close' | 'disconnected', listener: () => void): this;
    on(event: 'failed', listener: (attempt: number) => void): this;
    on(
      event: 'request',
      listener: (
        request: { id: number; method: string; data: Record<string, unknown> },
        accept: (data?: unknown) => void,
        reject: (code: number | Error, reason?: string | Error) => void,
      ) => void,
    ): this;
    on(event: 'notification', listener: (notification: { method: string; data: Record<string, unknown> }) => void): this;
  }
}
