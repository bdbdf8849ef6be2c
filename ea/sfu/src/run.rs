//! The worker process: a loop over the UDP socket and the parent's pipe.
//!
//! Stdin and stdout each have a thread that only moves bytes, so a slow parent never stops packets; both are joined to the loop by
//! bounded queues. When stdin ends, the parent is gone and the process ends at once; when the parent does not read for so long that
//! the outgoing queue is full, it is taken for gone too.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::Instant,
};

use mio::{Events, Interest, Poll, Token, Waker};
use rand::{RngCore, SeedableRng};

use crate::{
    control::{ControlError, FrameDecoder, FromWorker, ToWorker, WorkerConfig, encode},
    dtls::DtlsError,
    net::Net,
    worker::Worker,
};

const UDP: Token = Token(0);
const CONTROL: Token = Token(1);

/// Requests read ahead of the loop. The reader then waits and the pipe fills, which the parent notices.
const REQUEST_QUEUE: usize = 1024;

/// Frames waiting for the parent to read. A room of a thousand joins makes a few thousand at once; at 65 536 nobody is reading.
const ANSWER_QUEUE: usize = 65_536;

/// Datagrams taken before what came of them is sent. Each goes out to every consumer, some hundred perhaps, and what is written is to be sent
/// while it is in the cache; GSO gains little beyond. Also before answers and timers get their turn.
const DATAGRAMS_PER_TURN: usize = 32;

/// Why a worker ended other than by its parent's will.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The pipe to the parent carried nonsense.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The parent closed the pipe before it sent a configuration.
    #[error(
        "stdin ended before the worker's configuration came; start it from an EA, or write a WorkerConfig frame first"
    )]
    NoConfig,
    /// The socket could not be bound.
    #[error("binding UDP {listen} failed: {source}; is the port taken, or the address not of this machine?")]
    Bind {
        /// The wanted address.
        listen: SocketAddr,
        /// The kernel's words.
        source: io::Error,
    },
    /// Clients could not be told where to send to.
    #[error(
        "the worker listens on {listen}, which is no address a client can send to: configure the announced addresses"
    )]
    NoAddress {
        /// The wanted address.
        listen: SocketAddr,
    },
    /// DTLS could not be set up.
    #[error(transparent)]
    Dtls(#[from] DtlsError),
    /// The loop could not wait for events.
    #[error("waiting for packets failed: {0}")]
    Poll(io::Error),
    /// The parent does not read.
    #[error("the parent left {ANSWER_QUEUE} frames unread; it hangs")]
    ParentHangs,
}

/// What the reader thread hands over.
enum FromParent {
    Message(Box<ToWorker>),
    Broken(ControlError),
    Gone,
}

/// Serves the parent on stdin and stdout until it closes stdin or says [`ToWorker::Shutdown`].
pub fn run_worker() -> Result<(), WorkerError> {
    let mut decoder = FrameDecoder::new();
    let config = read_config(&mut decoder)?;
    if config.listen.ip().is_unspecified() && config.announced.is_empty() {
        return Err(WorkerError::NoAddress { listen: config.listen });
    }
    let bind = |source| WorkerError::Bind { listen: config.listen, source };
    let mut net = Net::bind(config.listen, config.socket_buffer_bytes).map_err(bind)?;
    let udp = net.local_addr().map_err(bind)?;
    let mut seed = [0; 32];
    rand::rngs::StdRng::from_os_rng().fill_bytes(&mut seed);
    let mut worker = Worker::new(config, udp, Instant::now(), seed)?;

    let mut poll = Poll::new().map_err(WorkerError::Poll)?;
    poll.registry().register(net.socket(), UDP, Interest::READABLE).map_err(WorkerError::Poll)?;
    // Held here too: a waker that is dropped right after its wake takes the wake with it, and the reader ends with one.
    let waker = Arc::new(Waker::new(poll.registry(), CONTROL).map_err(WorkerError::Poll)?);
    let requests = spawn_reader(decoder, waker.clone());
    let answers = spawn_writer();
    tell(&answers, &FromWorker::Ready { udp })?;
    tracing::info!(%udp, "serving");

    let mut events = Events::with_capacity(64);
    let mut more = false;
    loop {
        let now = Instant::now();
        let timeout = if more {
            Some(std::time::Duration::ZERO)
        } else {
            worker.poll_timeout().map(|at| at.saturating_duration_since(now))
        };
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(WorkerError::Poll(error)),
            _ => {}
        }
        let now = Instant::now();
        if more || events.iter().any(|event| event.token() == UDP) {
            more = true;
            let mut taken = 0;
            while taken < DATAGRAMS_PER_TURN && more {
                more = net.receive();
                while let Some((at, from, bytes)) = net.next() {
                    worker.handle_received(now, at, from, bytes);
                    taken += 1;
                    // The kernel joins datagrams of one sender, so that a batch can be much more than a turn.
                    if taken.is_multiple_of(DATAGRAMS_PER_TURN) {
                        net.send(worker.outbox());
                    }
                }
            }
        }
        worker.handle_timeout(now);
        for _ in 0..REQUEST_QUEUE {
            match requests.try_recv() {
                Ok(FromParent::Message(message)) => match *message {
                    ToWorker::Request { id, room, command } => {
                        let result = worker.handle_request(now, &room, command);
                        tell(&answers, &FromWorker::Answer { id, result })?;
                    }
                    ToWorker::Ping { id } => {
                        let load = crate::control::WorkerLoad {
                            cpu_us: cpu_time_us(),
                            packets_out: net.packets_out,
                            bytes_out: net.bytes_out,
                            send_dropped: net.dropped,
                            ..worker.load()
                        };
                        tell(&answers, &FromWorker::Pong { id, load })?;
                    }
                    ToWorker::Shutdown => {
                        worker.close(now);
                        net.send(worker.outbox());
                        return Ok(());
                    }
                },
                Ok(FromParent::Broken(error)) => return Err(error.into()),
                Ok(FromParent::Gone) | Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
                Err(mpsc::TryRecvError::Empty) => break,
            }
        }
        if !worker.outbox().is_empty() {
            net.send(worker.outbox());
        }
        for (room, notification) in worker.take_notifications() {
            tell(&answers, &FromWorker::Notification { room, notification })?;
        }
    }
}

fn read_config(decoder: &mut FrameDecoder) -> Result<WorkerConfig, WorkerError> {
    let mut stdin = io::stdin().lock();
    let mut buffer = [0; 4096];
    loop {
        if let Some(config) = decoder.next()? {
            return Ok(config);
        }
        match stdin.read(&mut buffer) {
            Ok(0) => return Err(WorkerError::NoConfig),
            Ok(count) => decoder.push(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(WorkerError::NoConfig),
        }
    }
}

fn spawn_reader(mut decoder: FrameDecoder, waker: Arc<Waker>) -> Receiver<FromParent> {
    let (sender, receiver) = mpsc::sync_channel(REQUEST_QUEUE);
    thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; 64 * 1024];
        let last = loop {
            match decoder.next() {
                Ok(Some(message)) => {
                    if sender.send(FromParent::Message(Box::new(message))).is_err() {
                        return;
                    }
                    let _ = waker.wake();
                    continue;
                }
                Ok(None) => {}
                Err(error) => break FromParent::Broken(error),
            }
            match stdin.read(&mut buffer) {
                Ok(count) if count > 0 => decoder.push(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break FromParent::Gone,
            }
        };
        let _ = sender.send(last);
        let _ = waker.wake();
    });
    receiver
}

fn spawn_writer() -> SyncSender<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel::<Vec<u8>>(ANSWER_QUEUE);
    thread::spawn(move || {
        let mut stdout = io::stdout().lock();
        for frame in receiver {
            // A parent that does not listen any more has closed stdin too; the loop ends by that.
            if stdout.write_all(&frame).and_then(|()| stdout.flush()).is_err() {
                return;
            }
        }
    });
    sender
}

fn tell(answers: &SyncSender<Vec<u8>>, message: &FromWorker) -> Result<(), WorkerError> {
    match answers.try_send(encode(message)?) {
        Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(()),
        Err(TrySendError::Full(_)) => Err(WorkerError::ParentHangs),
    }
}

/// CPU time of this process, in microseconds; 0 where the system does not tell.
fn cpu_time_us() -> u64 {
    // utime and stime are fields 14 and 15 of /proc/self/stat, in ticks of 10 ms (proc(5)); the name in field 2 may hold blanks.
    const TICK_US: u64 = 10_000;
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return 0 };
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0 };
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    ticks * TICK_US
}
