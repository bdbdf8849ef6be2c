//! A worker that outlives its EA: who may take it over, what it still holds then, and that it ends when nobody comes.

#![allow(clippy::unwrap_used, reason = "a failing helper is a failing test")]

#[path = "common/child.rs"]
mod child;

use std::{
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Child,
    time::{Duration, Instant},
};

use child::{PATIENCE, read};
use roomlog_bus::{
    ids::{EaId, Incarnation, RoomId, TransportId, WorkerIndex},
    media::{MediaAnswer, MediaCommand, MediaError},
};
use roomlog_sfu::{
    adoption::{Adoptable, CONTROL_PROTOCOL, Hello, HelloAnswer, SocketName},
    control::{FrameDecoder, FromWorker, ToWorker, WorkerConfig, encode},
};
use serde::{Serialize, de::DeserializeOwned};

struct Worker {
    child: Child,
    folder: PathBuf,
}

impl Worker {
    /// Starts worker 0 of EA `ea` in its first start, listening in a folder of its own.
    fn start(name: &str, within: Duration) -> Self {
        let folder = std::env::temp_dir().join(format!("roomlog-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let adoptable = Adoptable {
            folder: folder.clone(),
            ea: EaId::new("ea").unwrap(),
            worker: WorkerIndex(0),
            generation: 7,
            incarnation: Incarnation(1),
            within_ms: within.as_millis() as u64,
        };
        let config =
            WorkerConfig { adoptable: Some(adoptable), ..WorkerConfig::new("127.0.0.1:0".parse().unwrap()) };
        let mut worker = Self { child: child::start(&config), folder };
        let ready: FromWorker =
            read(worker.child.stdout.as_mut().unwrap(), &mut FrameDecoder::new()).unwrap();
        assert!(matches!(ready, FromWorker::Ready { .. }));
        worker
    }

    /// As if its EA had been killed.
    fn orphan(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.stdout.take());
    }

    fn socket(&self) -> PathBuf {
        let mut names = std::fs::read_dir(&self.folder).unwrap();
        let file = names.next().expect("a socket").unwrap();
        let name = SocketName::parse(file.file_name().to_str().unwrap()).expect("its name reads");
        assert_eq!((name.worker, name.generation, name.pid), (WorkerIndex(0), 7, self.child.id()));
        file.path()
    }

    fn ended(&mut self) -> std::process::ExitStatus {
        child::ended(&mut self.child)
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

struct Ea {
    stream: UnixStream,
    decoder: FrameDecoder,
}

impl Ea {
    fn connect(socket: &Path, hello: &Hello) -> (Self, HelloAnswer) {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut ea = Self { stream, decoder: FrameDecoder::new() };
        ea.write(hello);
        let answer = ea.read().expect("an answer");
        (ea, answer)
    }

    fn write(&mut self, message: &impl Serialize) {
        self.stream.write_all(&encode(message).unwrap()).unwrap();
    }

    fn read<T: DeserializeOwned>(&mut self) -> Option<T> {
        read(&mut self.stream, &mut self.decoder)
    }

    fn ask(&mut self, id: u64, command: MediaCommand) -> Result<MediaAnswer, MediaError> {
        self.write(&ToWorker::Request { id, room: room(), command });
        loop {
            match self.read().expect("an answer") {
                FromWorker::Answer { id: of, result } if of == id => return result,
                _ => {}
            }
        }
    }
}

fn hello(incarnation: u64) -> Hello {
    Hello {
        protocol: CONTROL_PROTOCOL,
        ea: EaId::new("ea").unwrap(),
        incarnation: Incarnation(incarnation),
        within_ms: 60_000,
    }
}

fn room() -> RoomId {
    RoomId::new("r").unwrap()
}

#[test]
fn a_worker_that_outlives_its_ea_is_taken_over_with_all_it_holds() {
    let mut worker = Worker::start("taken", Duration::from_secs(60));
    let transport = TransportId::new("t").unwrap();
    let stdin = worker.child.stdin.as_mut().unwrap();
    for (id, command) in
        [(1, MediaCommand::CreateRouter), (2, MediaCommand::CreateTransport { transport: transport.clone() })]
    {
        stdin.write_all(&encode(&ToWorker::Request { id, room: room(), command }).unwrap()).unwrap();
    }
    let mut decoder = FrameDecoder::new();
    let stdout = worker.child.stdout.as_mut().unwrap();
    while !matches!(read(stdout, &mut decoder), Some(FromWorker::Answer { id: 2, .. })) {}
    worker.orphan();

    let (mut ea, answer) = Ea::connect(&worker.socket(), &hello(2));
    let HelloAnswer::Welcome(welcome) = answer else { panic!("{answer:?}") };
    assert_eq!(welcome.rooms, [room()]);
    assert_eq!(welcome.config.adoptable.map(|a| (a.worker, a.generation)), Some((WorkerIndex(0), 7)));
    let Ok(MediaAnswer::Inventory { inventory }) = ea.ask(1, MediaCommand::Inventory) else { panic!() };
    assert_eq!(inventory.transports.iter().map(|t| &t.id).collect::<Vec<_>>(), [&transport]);

    // It outlives this one, too, and ends in order when it is told to.
    drop(ea);
    let (mut ea, answer) = Ea::connect(&worker.socket(), &hello(3));
    assert!(matches!(answer, HelloAnswer::Welcome(_)), "{answer:?}");
    let socket = worker.socket();
    ea.write(&ToWorker::Shutdown);
    assert!(worker.ended().success());
    assert!(!socket.exists(), "its socket goes with it");
}

#[test]
fn only_a_later_start_of_the_same_ea_takes_a_worker_from_one_that_is_there() {
    let mut worker = Worker::start("refused", Duration::from_secs(60));
    let socket = worker.socket();
    for refused in [
        hello(1),
        Hello { ea: EaId::new("other").unwrap(), ..hello(2) },
        Hello { protocol: CONTROL_PROTOCOL + 1, ..hello(2) },
    ] {
        let (mut ea, answer) = Ea::connect(&socket, &refused);
        assert!(matches!(answer, HelloAnswer::Refused { .. }), "{refused:?}: {answer:?}");
        assert_eq!(ea.read::<FromWorker>(), None, "and the connection ends");
    }
    let (mut ea, answer) = Ea::connect(&socket, &hello(2));
    assert!(matches!(answer, HelloAnswer::Welcome(_)), "{answer:?}");
    // What the one before still says is not answered to the new one, and does not end the worker.
    let stdin = worker.child.stdin.as_mut().unwrap();
    stdin.write_all(&encode(&ToWorker::Ping { id: 77 }).unwrap()).unwrap();
    stdin.write_all(&encode(&ToWorker::Shutdown).unwrap()).unwrap();
    worker.orphan();
    ea.write(&ToWorker::Ping { id: 1 });
    assert!(matches!(ea.read(), Some(FromWorker::Pong { id: 1, .. })));
    assert!(worker.runs());
}

#[test]
fn what_an_ea_said_before_it_was_gone_is_done_for_the_next() {
    let mut worker = Worker::start("said", Duration::from_secs(60));
    let (mut ea, answer) = Ea::connect(&worker.socket(), &hello(2));
    assert!(matches!(answer, HelloAnswer::Welcome(_)), "{answer:?}");
    // As when it waited in the pipe.
    let said = ToWorker::Request { id: 77, room: room(), command: MediaCommand::CreateRouter };
    worker.child.stdin.as_mut().unwrap().write_all(&encode(&said).unwrap()).unwrap();
    worker.orphan();
    let until = Instant::now() + PATIENCE;
    for id in 1.. {
        match ea.ask(id, MediaCommand::Inventory) {
            Ok(_) => break,
            Err(error) => assert!(Instant::now() < until, "the router is not there: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn who_says_nothing_or_nonsense_keeps_nobody_out() {
    let worker = Worker::start("silent", Duration::from_secs(60));
    let socket = worker.socket();
    let silent = UnixStream::connect(&socket).unwrap();
    let mut nonsense = UnixStream::connect(&socket).unwrap();
    nonsense.write_all(&[0xff; 64]).unwrap();
    let (_, answer) = Ea::connect(&socket, &hello(2));
    assert!(matches!(answer, HelloAnswer::Welcome(_)), "{answer:?}");
    drop(silent);
}

#[test]
fn a_worker_that_was_taken_over_waits_for_the_next_as_long_as_it_was_told_then() {
    let mut worker = Worker::start("again", Duration::from_secs(60));
    let socket = worker.socket();
    worker.orphan();
    let (ea, answer) = Ea::connect(&socket, &Hello { within_ms: 300, ..hello(2) });
    assert!(matches!(answer, HelloAnswer::Welcome(_)), "{answer:?}");
    std::thread::sleep(Duration::from_millis(600));
    assert!(worker.runs(), "it is not alone as long as this one is there");
    drop(ea);
    assert!(worker.ended().success());
}

#[test]
fn a_worker_ends_when_nobody_comes_in_time() {
    let mut worker = Worker::start("alone", Duration::from_millis(300));
    let socket = worker.socket();
    std::thread::sleep(Duration::from_millis(400));
    assert!(worker.runs(), "it is not alone as long as its EA is there");
    let orphaned = Instant::now();
    worker.orphan();
    // Who says nothing has not come.
    let silent = UnixStream::connect(&socket).unwrap();
    assert!(worker.ended().success());
    assert!(orphaned.elapsed() >= Duration::from_millis(300));
    assert!(!socket.exists());
    drop(silent);
}
