/**
 * A bare client: mediasoup-client and protoo-client as their own demo uses them, and nothing of ours. It shows that Roomlog
 * serves unmodified clients. The token is in the URL and protoo reconnects by itself; `window.__bare` is for tests.
 */

import { Device, type types } from 'mediasoup-client';
import { Peer, WebSocketTransport } from 'protoo-client';

type Data = Record<string, unknown>;

const query = new URLSearchParams(location.search);
const room = query.get('room') ?? 'bare';
const name = query.get('name') ?? 'Bare';
const [, width, height, frameRate] = /^(\d+)x(\d+)@(\d+)$/.exec(query.get('video') ?? '320x240@15') ?? ['', '320', '240', '15'];

const bare = {
  state: 'starting',
  error: '',
  peers: new Map<string, string>(),
  consumers: new Map<string, types.Consumer>(),
  producers: [] as types.Producer[],
  marks: { started: performance.now(), joined: 0 },
  joins: 0,
  breakSocket: () => {},
  stats,
};
(window as unknown as { __bare: typeof bare }).__bare = bare;

async function token(): Promise<string> {
  const { publishableKey } = (await (await fetch('/v1/demo')).json()) as { publishableKey: string };
  const response = await fetch(`/v1/rooms/name:${encodeURIComponent(room)}/tokens`, {
    method: 'POST',
    headers: { authorization: `Bearer ${publishableKey}`, 'content-type': 'application/json' },
    body: JSON.stringify({ user: name, role: 'presenter', create: true }),
  });
  if (!response.ok) throw new Error(`no token: ${response.status} ${await response.text()}`);
  const { wsUrl, token } = (await response.json()) as { wsUrl: string; token: string };
  const url = new URL(wsUrl);
  url.searchParams.set('token', token);
  // Parameters a demo client sends and a server may ignore.
  url.searchParams.set('roomId', room);
  url.searchParams.set('consumerReplicas', '0');
  return url.toString();
}

async function run(): Promise<void> {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true, video: { width: Number(width), height: Number(height), frameRate: Number(frameRate) } });
  const socket = new WebSocketTransport(await token());
  bare.breakSocket = () => (socket as unknown as { _ws: WebSocket })._ws.close(4900);
  const peer = new Peer(socket);
  let device: Device | undefined;
  let sendTransport: types.Transport | undefined;
  let recvTransport: types.Transport | undefined;
  let recvReady: Promise<types.Transport> = new Promise(() => {});

  peer.on('open', () => {
    join().catch((error: Error) => {
      bare.state = 'failed';
      bare.error = String(error.stack ?? error);
    });
  });
  peer.on('disconnected', () => {
    bare.state = 'disconnected';
    sendTransport?.close();
    recvTransport?.close();
    for (const id of bare.consumers.keys()) remove(id);
    bare.peers.clear();
  });
  peer.on('close', () => (bare.state = 'closed'));

  peer.on('request', (request, accept, reject) => {
    if (request.method !== 'newConsumer') return reject(403, 'not served');
    const { peerId, producerId, id, kind, rtpParameters, appData } = request.data as Data & types.ConsumerOptions & { peerId: string };
    recvReady
      .then((transport) => transport.consume({ id, producerId, kind, rtpParameters, streamId: `${peerId}-mic-webcam`, appData: { ...appData, peerId } } as types.ConsumerOptions))
      .then((consumer) => {
        bare.consumers.set(consumer.id, consumer);
        attach(consumer);
        accept();
      })
      .catch((error: Error) => reject(500, error.message));
  });

  peer.on('notification', ({ method, data }) => {
    if (method === 'newPeer') bare.peers.set(String(data['id']), String(data['displayName']));
    if (method === 'peerClosed') bare.peers.delete(String(data['peerId']));
    if (method === 'consumerClosed') remove(String(data['consumerId']));
    if (method === 'consumerPaused') bare.consumers.get(String(data['consumerId']))?.pause();
    if (method === 'consumerResumed') bare.consumers.get(String(data['consumerId']))?.resume();
  });

  async function join(): Promise<void> {
    bare.state = 'joining';
    device = new Device();
    await device.load({ routerRtpCapabilities: (await peer.request('getRouterRtpCapabilities')) as types.RtpCapabilities });
    const send = await peer.request('createWebRtcTransport', { forceTcp: false, producing: true, consuming: false });
    sendTransport = device.createSendTransport(send as types.TransportOptions);
    sendTransport.on('produce', ({ kind, rtpParameters, appData }, done, failed) => {
      peer.request('produce', { transportId: sendTransport!.id, kind, rtpParameters, appData }).then((answer) => done(answer as { id: string }), failed);
    });
    const recv = await peer.request('createWebRtcTransport', { forceTcp: false, producing: false, consuming: true });
    recvTransport = device.createRecvTransport(recv as types.TransportOptions);
    recvReady = Promise.resolve(recvTransport);
    for (const transport of [sendTransport, recvTransport]) {
      transport.on('connect', ({ dtlsParameters }, done, failed) => {
        peer.request('connectWebRtcTransport', { transportId: transport.id, dtlsParameters }).then(done, failed);
      });
    }
    const { peers } = (await peer.request('join', { displayName: name, device: { flag: 'chrome', name: 'Bare', version: '0' }, rtpCapabilities: device.rtpCapabilities })) as {
      peers: { id: string; displayName: string }[];
    };
    for (const other of peers) bare.peers.set(other.id, other.displayName);
    bare.marks.joined = performance.now();
    bare.producers = [];
    for (const track of stream.getTracks()) bare.producers.push(await sendTransport.produce({ track, stopTracks: false, appData: { source: track.kind } }));
    bare.joins++;
    bare.state = 'joined';
  }
}

function attach(consumer: types.Consumer): void {
  const element = document.createElement(consumer.kind === 'video' ? 'video' : 'audio');
  element.id = `c-${consumer.id}`;
  element.autoplay = true;
  element.srcObject = new MediaStream([consumer.track]);
  document.getElementById('videos')!.append(element);
}

function remove(id: string): void {
  bare.consumers.get(id)?.close();
  bare.consumers.delete(id);
  document.getElementById(`c-${id}`)?.remove();
}

async function stats(): Promise<Data[]> {
  const all: Data[] = [];
  for (const consumer of bare.consumers.values()) {
    (await consumer.getStats()).forEach((entry: Data) => {
      if (entry['type'] !== 'inbound-rtp') return;
      const { framesDecoded = 0, totalAudioEnergy = 0, bytesReceived = 0 } = entry;
      all.push({ id: consumer.id, peerId: consumer.appData['peerId'], kind: consumer.kind, framesDecoded, totalAudioEnergy, bytesReceived });
    });
  }
  return all;
}

run().catch((error: Error) => {
  bare.state = 'failed';
  bare.error = String(error.stack ?? error);
});
