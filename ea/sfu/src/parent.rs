//! Whom the worker serves: the EA that started it, over the pipes, and later the starts of it that take the worker over.
//!
//! Each connection has two threads that only move bytes, so a slow EA never stops packets; both are joined to the loop by bounded queues. One
//! EA is served at a time. When it is gone the worker is alone: it ends at once if nobody can find it, and otherwise if nobody has come in time.

use std::{
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

use mio::Waker;
use roomlog_bus::ids::Incarnation;

use crate::{
    adoption::{Adoptable, CONTROL_PROTOCOL, Hello, HelloAnswer, SocketName, SocketPath, Welcome},
    control::{ControlError, FrameDecoder, FromWorker, ToWorker, encode},
    run::WorkerError,
};

/// Requests read ahead of the loop. The reader then waits and the pipe fills, which the EA notices.
pub(crate) const REQUEST_QUEUE: usize = 1024;

/// Frames waiting for the EA to read. A room of a thousand joins makes a few thousand at once; at 65 536 nobody is reading.
pub(crate) const ANSWER_QUEUE: usize = 65_536;

/// Who connects says hello within this time: it is the first thing an EA does, and others wait behind it.
const HELLO_WITHIN: Duration = Duration::from_secs(2);

/// After a connection that could not be accepted (no more files may be open) the next is awaited only then.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Names a connection: what is said on one that has been left is not heard.
pub(crate) type Connection = u64;

enum Heard {
    Message(Box<ToWorker>),
    Broken(ControlError),
    Gone,
    Came(Box<Visitor>),
}

/// Somebody who would take the worker over.
#[derive(Debug)]
pub(crate) struct Visitor {
    stream: UnixStream,
    decoder: FrameDecoder,
    hello: Hello,
}

/// What there is to do.
#[allow(clippy::large_enum_variant, reason = "one is read, acted on and gone; none are kept")]
pub(crate) enum Said {
    /// An EA says this; [`Parents::answer`] takes the connection.
    Message(Connection, ToWorker),
    /// Somebody is let in once it was told what the worker is: [`Parents::welcome`].
    Visitor(Box<Visitor>),
    /// The EA is gone, and nobody else can come.
    Over,
}

struct Current {
    connection: Connection,
    incarnation: Option<Incarnation>,
    answers: SyncSender<Vec<u8>>,
}

/// The socket at which the worker is found; its file goes with it.
struct Door {
    adoptable: Adoptable,
    file: PathBuf,
    _path: SocketPath,
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Whom the worker serves.
pub(crate) struct Parents {
    current: Option<Current>,
    alone_since: Option<Instant>,
    door: Option<Door>,
    heard: Receiver<(Connection, Heard)>,
    sender: SyncSender<(Connection, Heard)>,
    waker: Arc<Waker>,
    next: Connection,
}

impl Parents {
    /// Serves who started the process, from whose stdin `decoder` has read the configuration.
    pub(crate) fn new(decoder: FrameDecoder, adoptable: Option<Adoptable>, waker: Arc<Waker>) -> Self {
        let (sender, heard) = mpsc::sync_channel(REQUEST_QUEUE);
        let incarnation = adoptable.as_ref().map(|a| a.incarnation);
        let mut parents =
            Self { current: None, alone_since: None, door: None, heard, sender, waker, next: 0 };
        if let Some(adoptable) = adoptable {
            let folder = adoptable.folder.clone();
            match parents.listen(adoptable) {
                Ok(door) => parents.door = Some(door),
                Err(error) => {
                    tracing::warn!(%error, folder = %folder.display(), "no socket can be made there: this worker will end with its EA's process");
                }
            }
        }
        parents.serve(io::stdin(), io::stdout(), decoder, incarnation);
        parents
    }

    fn listen(&self, adoptable: Adoptable) -> io::Result<Door> {
        let name = SocketName {
            worker: adoptable.worker,
            generation: adoptable.generation,
            pid: std::process::id(),
        }
        .to_string();
        let file = adoptable.folder.join(&name);
        // What is there was left by another process that had this id.
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let path = SocketPath::new(&adoptable.folder, &name)?;
        let listener = UnixListener::bind(path.as_path())?;
        let (sender, waker) = (self.sender.clone(), self.waker.clone());
        thread::spawn(move || accept(&listener, &sender, &waker));
        Ok(Door { adoptable, file, _path: path })
    }

    /// Joins a connection to the loop, in place of the one before.
    fn serve(
        &mut self,
        from: impl Read + Send + 'static,
        to: impl Write + Send + 'static,
        decoder: FrameDecoder,
        incarnation: Option<Incarnation>,
    ) {
        let connection = self.next;
        self.next += 1;
        let (sender, waker) = (self.sender.clone(), self.waker.clone());
        thread::spawn(move || read_frames(connection, from, decoder, &sender, &waker));
        self.current = Some(Current { connection, incarnation, answers: write_frames(to) });
        self.alone_since = None;
    }

    /// What has been said, if anything.
    pub(crate) fn next(&mut self, now: Instant) -> Result<Option<Said>, WorkerError> {
        loop {
            // It cannot be disconnected: this holds a sender.
            let Ok((connection, heard)) = self.heard.try_recv() else { return Ok(None) };
            let current = self.current.as_ref().is_some_and(|c| c.connection == connection);
            match heard {
                Heard::Came(visitor) => match self.refusal(&visitor.hello) {
                    None => return Ok(Some(Said::Visitor(visitor))),
                    Some(reason) => {
                        tracing::warn!(ea = %visitor.hello.ea, incarnation = %visitor.hello.incarnation, reason, "somebody who would take this worker over is refused");
                        let version = env!("CARGO_PKG_VERSION").into();
                        let refused = HelloAnswer::Refused { protocol: CONTROL_PROTOCOL, version, reason };
                        let _ = write_frames(visitor.stream).try_send(encode(&refused)?);
                    }
                },
                // The next start has come meanwhile, and this worker is its own.
                Heard::Message(message) if !current && *message == ToWorker::Shutdown => {}
                // What one that is gone said before is done, since others may count on it; nobody hears the answer.
                Heard::Message(message) => return Ok(Some(Said::Message(connection, *message))),
                Heard::Broken(error) if current => return Err(error.into()),
                Heard::Gone if current && self.door.is_none() => return Ok(Some(Said::Over)),
                Heard::Gone if current => {
                    tracing::warn!(
                        "the EA is gone: media goes on until another start of it comes, or nobody has in time"
                    );
                    self.current = None;
                    self.alone_since = Some(now);
                }
                Heard::Broken(_) | Heard::Gone => {}
            }
        }
    }

    fn refusal(&self, hello: &Hello) -> Option<String> {
        let door = self.door.as_ref()?;
        if hello.protocol != CONTROL_PROTOCOL {
            return Some(format!("this worker speaks protocol {CONTROL_PROTOCOL}, not {}", hello.protocol));
        }
        if hello.ea != door.adoptable.ea {
            return Some(format!("this is a worker of EA {}", door.adoptable.ea));
        }
        let served = self.current.as_ref()?.incarnation?;
        (hello.incarnation <= served).then(|| format!("start {served} of the EA is served"))
    }

    /// Lets in who came, whoever was served before.
    pub(crate) fn welcome(&mut self, visitor: Visitor, welcome: Welcome) -> Result<(), WorkerError> {
        let Visitor { stream, decoder, hello } = visitor;
        let reader = match stream.try_clone() {
            Ok(reader) => reader,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be served");
                return Ok(());
            }
        };
        tracing::info!(incarnation = %hello.incarnation, rooms = welcome.rooms.len(), "taken over by another start of the EA");
        if let Some(door) = &mut self.door {
            door.adoptable.within_ms = hello.within_ms;
        }
        self.serve(reader, stream, decoder, Some(hello.incarnation));
        let answer = encode(&HelloAnswer::Welcome(Box::new(welcome)))?;
        self.current.as_ref().map_or(Ok(()), |current| send(&current.answers, answer))
    }

    /// Says something to who is served. Without one nobody hears: a later one asks for what holds then.
    pub(crate) fn tell(&self, message: &FromWorker) -> Result<(), WorkerError> {
        match &self.current {
            Some(current) => send(&current.answers, encode(message)?),
            None => Ok(()),
        }
    }

    /// Answers what was said on a connection, if it is the one that is served: another knows nothing of the question.
    pub(crate) fn answer(&self, to: Connection, message: &FromWorker) -> Result<(), WorkerError> {
        match &self.current {
            Some(current) if current.connection == to => self.tell(message),
            _ => Ok(()),
        }
    }

    /// When the worker ends if nobody comes.
    pub(crate) fn ends_at(&self) -> Option<Instant> {
        let within = Duration::from_millis(self.door.as_ref()?.adoptable.within_ms);
        Some(self.alone_since? + within)
    }
}

fn send(answers: &SyncSender<Vec<u8>>, frame: Vec<u8>) -> Result<(), WorkerError> {
    match answers.try_send(frame) {
        // Who does not listen any more has closed the other direction too, and is left by that.
        Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(()),
        Err(TrySendError::Full(_)) => Err(WorkerError::ParentHangs),
    }
}

fn accept(listener: &UnixListener, sender: &SyncSender<(Connection, Heard)>, waker: &Waker) {
    for stream in listener.incoming() {
        let came = stream.and_then(|stream| {
            stream.set_read_timeout(Some(HELLO_WITHIN))?;
            let visitor = hello(&stream)?;
            stream.set_read_timeout(None)?;
            Ok(visitor.map(|(hello, decoder)| Visitor { stream, decoder, hello }))
        });
        match came {
            Ok(Some(visitor)) => {
                if sender.send((0, Heard::Came(Box::new(visitor)))).is_err() {
                    return;
                }
                let _ = waker.wake();
            }
            Ok(None) => tracing::warn!("somebody connected and did not say hello"),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                thread::sleep(ACCEPT_AGAIN);
            }
        }
    }
}

/// Reads the first frame; none if it is no hello.
fn hello(mut stream: &UnixStream) -> io::Result<Option<(Hello, FrameDecoder)>> {
    let mut decoder = FrameDecoder::new();
    let mut buffer = [0; 4096];
    loop {
        match decoder.next() {
            Ok(Some(hello)) => return Ok(Some((hello, decoder))),
            Ok(None) => {}
            Err(_) => return Ok(None),
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => decoder.push(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn read_frames(
    connection: Connection,
    mut from: impl Read,
    mut decoder: FrameDecoder,
    sender: &SyncSender<(Connection, Heard)>,
    waker: &Waker,
) {
    let mut buffer = vec![0; 64 * 1024];
    let last = loop {
        match decoder.next() {
            Ok(Some(message)) => {
                if sender.send((connection, Heard::Message(Box::new(message)))).is_err() {
                    return;
                }
                let _ = waker.wake();
                continue;
            }
            Ok(None) => {}
            Err(error) => break Heard::Broken(error),
        }
        match from.read(&mut buffer) {
            Ok(count) if count > 0 => decoder.push(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => break Heard::Gone,
        }
    };
    let _ = sender.send((connection, last));
    let _ = waker.wake();
}

fn write_frames(mut to: impl Write + Send + 'static) -> SyncSender<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel::<Vec<u8>>(ANSWER_QUEUE);
    thread::spawn(move || {
        for frame in receiver {
            if to.write_all(&frame).and_then(|()| to.flush()).is_err() {
                return;
            }
        }
    });
    sender
}
