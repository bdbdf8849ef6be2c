//! The worker process: a loop over the UDP socket and what its EA says ([`crate::parent`]).
//!
//! An EA that does not read for so long that the outgoing queue is full hangs, and the worker ends with an error.

use std::{
    io::{self, Read},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use mio::{Events, Interest, Poll, Token, Waker};
use rand::{RngCore, SeedableRng};

use crate::{
    adoption::Welcome,
    control::{ControlError, FrameDecoder, FromWorker, ToWorker, WorkerConfig},
    dtls::DtlsError,
    net::Net,
    parent::{ANSWER_QUEUE, Parents, REQUEST_QUEUE, Said},
    worker::Worker,
};

const UDP: Token = Token(0);
const CONTROL: Token = Token(1);

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

/// Serves the parent on stdin and stdout until it says [`ToWorker::Shutdown`] or closes stdin; where it said how the worker is found, the
/// worker then waits for others to take it over.
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
    let mut worker = Worker::new(config.clone(), udp, Instant::now(), seed)?;

    let mut poll = Poll::new().map_err(WorkerError::Poll)?;
    poll.registry().register(net.socket(), UDP, Interest::READABLE).map_err(WorkerError::Poll)?;
    // Held here too: a waker that is dropped right after its wake takes the wake with it, and the reader ends with one.
    let waker = Arc::new(Waker::new(poll.registry(), CONTROL).map_err(WorkerError::Poll)?);
    let mut parents = Parents::new(decoder, config.adoptable.clone(), waker.clone());
    parents.tell(&FromWorker::Ready { udp })?;
    tracing::info!(%udp, "serving");

    let mut events = Events::with_capacity(64);
    let mut more = false;
    loop {
        let now = Instant::now();
        let timeout = if more {
            Some(std::time::Duration::ZERO)
        } else {
            let due = worker.poll_timeout().into_iter().chain(parents.ends_at()).min();
            due.map(|at| at.saturating_duration_since(now))
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
            match parents.next(now)? {
                Some(Said::Message(from, message)) => match message {
                    ToWorker::Request { id, room, command } => {
                        let result = worker.handle_request(now, &room, command);
                        parents.answer(from, &FromWorker::Answer { id, result })?;
                    }
                    ToWorker::Ping { id } => {
                        let load = crate::control::WorkerLoad {
                            cpu_us: cpu_time_us(),
                            packets_out: net.packets_out,
                            bytes_out: net.bytes_out,
                            send_dropped: net.dropped,
                            ..worker.load()
                        };
                        parents.answer(from, &FromWorker::Pong { id, load })?;
                    }
                    ToWorker::Shutdown => return end(&mut worker, &mut net, now),
                },
                Some(Said::Visitor(visitor)) => {
                    let (version, config) = (env!("CARGO_PKG_VERSION").into(), config.clone());
                    parents.welcome(*visitor, Welcome { version, config, udp, rooms: worker.room_ids() })?;
                }
                Some(Said::Over) => return Ok(()),
                None => break,
            }
        }
        if parents.ends_at().is_some_and(|at| at <= now) {
            tracing::warn!(rooms = worker.load().routers, "no EA has come in time: this worker ends");
            return end(&mut worker, &mut net, now);
        }
        if !worker.outbox().is_empty() {
            net.send(worker.outbox());
        }
        for (room, notification) in worker.take_notifications() {
            parents.tell(&FromWorker::Notification { room, notification })?;
        }
    }
}

/// Says goodbye to the clients.
fn end(worker: &mut Worker, net: &mut Net, now: Instant) -> Result<(), WorkerError> {
    worker.close(now);
    net.send(worker.outbox());
    Ok(())
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

/// CPU time of this process, in microseconds; 0 where the system does not tell.
fn cpu_time_us() -> u64 {
    // utime and stime are fields 14 and 15 of /proc/self/stat, in ticks of 10 ms (proc(5)); the name in field 2 may hold blanks.
    const TICK_US: u64 = 10_000;
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return 0 };
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0 };
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    ticks * TICK_US
}
