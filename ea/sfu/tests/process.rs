//! The worker as a process: what its parent sees on the pipes, and what a client sees on the wire.

#![allow(clippy::unwrap_used, reason = "a failing helper is a failing test")]

#[path = "common/child.rs"]
mod child;

use std::{
    io::Write,
    net::{SocketAddr, UdpSocket},
    process::{Child, ChildStdin, ChildStdout},
};

use roomlog_bus::{
    ids::{RoomId, TransportId},
    media::{MediaAnswer, MediaCommand, MediaNotification, TransportState},
};
use roomlog_sfu::{
    control::{FrameDecoder, FromWorker, ToWorker, WorkerConfig, encode},
    stun,
};

struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    decoder: FrameDecoder,
}

impl Worker {
    fn start(config: &WorkerConfig) -> Self {
        let mut child = child::start(config);
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, stdin: Some(stdin), stdout, decoder: FrameDecoder::new() }
    }

    fn write(&mut self, frame: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(frame).unwrap();
    }

    fn tell(&mut self, message: &ToWorker) {
        self.write(&encode(message).unwrap());
    }

    /// The next frame; `None` at the end.
    fn read(&mut self) -> Option<FromWorker> {
        child::read(&mut self.stdout, &mut self.decoder)
    }

    fn ready(&mut self) -> SocketAddr {
        match self.read() {
            Some(FromWorker::Ready { udp }) => udp,
            other => panic!("{other:?}"),
        }
    }

    fn exits(&mut self) -> std::process::ExitStatus {
        child::ended(&mut self.child)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config() -> WorkerConfig {
    WorkerConfig::new("127.0.0.1:0".parse().unwrap())
}

#[test]
fn a_worker_serves_its_parent_and_clients_over_udp() {
    let mut worker = Worker::start(&config());
    let udp = worker.ready();
    let room = RoomId::new("r").unwrap();
    let transport = TransportId::new("t").unwrap();
    let commands =
        [MediaCommand::CreateRouter, MediaCommand::CreateTransport { transport: transport.clone() }];
    for (id, command) in (1..).zip(commands) {
        worker.tell(&ToWorker::Request { id, room: room.clone(), command });
    }
    assert!(matches!(
        worker.read(),
        Some(FromWorker::Answer { id: 1, result: Ok(MediaAnswer::Router { .. }) })
    ));
    let Some(FromWorker::Answer {
        id: 2,
        result: Ok(MediaAnswer::Transport { ice_parameters: ice, ice_candidates, .. }),
    }) = worker.read()
    else {
        panic!("no transport")
    };
    assert_eq!(ice_candidates[0].port, udp.port());

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(child::PATIENCE)).unwrap();
    let provider = rtc_srtp::crypto::default_provider().unwrap();
    let username = format!("{}:me", ice.username_fragment);
    let request = stun::binding_request(provider.crypto(), &[5; 12], &username, &ice.password, true, true);
    socket.send_to(&request, udp).unwrap();
    let mut buffer = [0; 1500];
    let (count, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!((from, &buffer[..2], &buffer[8..20]), (udp, &[1, 1][..], &[5; 12][..]), "{count} bytes");
    let notification = MediaNotification::TransportState { transport, state: TransportState::Connecting };
    assert_eq!(worker.read(), Some(FromWorker::Notification { room, notification }));

    worker.tell(&ToWorker::Ping { id: 9 });
    let Some(FromWorker::Pong { id: 9, load }) = worker.read() else { panic!("no pong") };
    assert_eq!((load.routers, load.transports, load.packets_in, load.packets_out), (1, 1, 1, 1));

    worker.tell(&ToWorker::Shutdown);
    assert!(worker.exits().success());
}

#[test]
fn a_worker_ends_with_its_parent() {
    let mut worker = Worker::start(&config());
    worker.ready();
    worker.stdin = None;
    assert!(worker.exits().success());
}

#[test]
fn nonsense_on_the_pipe_ends_the_worker_with_an_error() {
    let mut worker = Worker::start(&config());
    worker.ready();
    worker.write(&[0xff; 64]);
    assert!(!worker.exits().success());
}

#[test]
fn an_address_that_no_client_can_send_to_is_refused() {
    let mut worker = Worker::start(&WorkerConfig::new("0.0.0.0:0".parse().unwrap()));
    assert!(!worker.exits().success());
    assert_eq!(worker.read(), None);
}
