//! An SFU worker as the EA holds it: two queues, an ending, and a way to kill it. Production starts a child process, or takes over one that an
//! earlier process has started; tests start what they like.

use std::{
    ffi::OsString, os::unix::fs::DirBuilderExt, path::PathBuf, pin::Pin, process::Stdio, time::Duration,
};

use roomlog_sfu::{
    adoption::Hello,
    control::{ControlError, FrameDecoder, FromWorker, ToWorker, WorkerConfig, encode},
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UnixStream,
    process::{Child, Command},
    sync::{mpsc, oneshot},
    time::sleep,
};

use crate::adopt::{LeftBehind, left_behind, tidy};

/// Frames waiting for one worker, at most. More than the 4 096 unanswered requests of ECs that are let in, so that what follows from the log
/// still has room behind them; a worker whose queue is full for all that does not read any more and is replaced.
pub const WORKER_QUEUE: usize = 16_384;

/// Frames from one worker waiting for the EA, at most. The worker then writes into the pipe until that is full, and waits.
const FROM_QUEUE: usize = 1_024;

/// Bytes read from or written to a pipe in one call: what a Linux pipe holds (64 KiB).
const PIPE_BYTES: usize = 64 * 1024;

/// How often it is looked whether a process that was told to end, and is no child, has.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running worker. Dropping it kills a worker that this process has started, and lets one go that it has taken over: an EA that does not
/// come up leaves calls to the next try.
#[derive(Debug)]
pub struct WorkerLink {
    /// Process id, where there is a process.
    pub pid: Option<u32>,
    /// Commands. A full queue means that the worker hangs.
    pub to: mpsc::Sender<ToWorker>,
    /// What it says; closed when it is gone or does not make sense.
    pub from: mpsc::Receiver<FromWorker>,
    /// How it ended.
    pub ended: oneshot::Receiver<String>,
    /// Kills it when sent.
    pub kill: oneshot::Sender<()>,
}

/// A worker that did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// There is no command.
    #[error("the worker command is empty: set it to the roomlog executable and `sfu-worker`")]
    NoCommand,
    /// The operating system refused.
    #[error("starting {program:?} failed: {source}")]
    Process {
        /// What was started.
        program: OsString,
        /// Why not.
        source: std::io::Error,
    },
    /// The configuration does not fit a frame.
    #[error(transparent)]
    Config(#[from] ControlError),
}

/// Starts workers.
pub trait SpawnWorker: Send + Sync + 'static {
    /// Starts one that is told `config`. Called inside a tokio runtime.
    fn spawn(&self, config: &WorkerConfig) -> Result<WorkerLink, SpawnError>;

    /// Finds the workers that an earlier process has left behind.
    fn left_behind(&self, hello: Hello) -> Pin<Box<dyn Future<Output = Vec<LeftBehind>> + Send + '_>> {
        let _ = hello;
        Box::pin(async { Vec::new() })
    }
}

/// Starts workers as child processes.
#[derive(Debug, Clone)]
pub struct ProcessSpawner {
    command: Vec<OsString>,
    folder: Option<PathBuf>,
}

impl ProcessSpawner {
    /// `command` is the program and its arguments; in `folder` workers are found by a later process.
    pub fn new(command: Vec<OsString>, folder: Option<PathBuf>) -> Self {
        Self { command, folder }
    }
}

impl SpawnWorker for ProcessSpawner {
    fn spawn(&self, config: &WorkerConfig) -> Result<WorkerLink, SpawnError> {
        let (program, arguments) = self.command.split_first().ok_or(SpawnError::NoCommand)?;
        let first = encode(config)?;
        if let Some(adoptable) = &config.adoptable {
            tidy(&adoptable.folder, adoptable.worker);
        }
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Its own group: a Ctrl-C in the terminal is for the EA, which then ends its workers in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| SpawnError::Process { program: program.clone(), source })?;
        let stdin = child.stdin.take().expect("asked for above");
        let stdout = child.stdout.take().expect("asked for above");
        let pid = child.id();
        let (to, commands) = mpsc::channel(WORKER_QUEUE);
        let (said, from) = mpsc::channel(FROM_QUEUE);
        let (has_ended, ended) = oneshot::channel();
        let (kill, killed) = oneshot::channel();
        // Each task ends with the process: its pipes close when it does.
        tokio::spawn(write_frames(stdin, first, commands));
        tokio::spawn(read_frames(stdout, FrameDecoder::new(), said));
        tokio::spawn(wait(child, killed, has_ended));
        Ok(WorkerLink { pid, to, from, ended, kill })
    }

    fn left_behind(&self, hello: Hello) -> Pin<Box<dyn Future<Output = Vec<LeftBehind>> + Send + '_>> {
        Box::pin(async move {
            let Some(folder) = &self.folder else { return Vec::new() };
            // Who can connect can end calls: nobody but this user.
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
            if let Err(error) = made {
                tracing::warn!(%error, folder = %folder.display(), "workers will end with this process, since there is no folder for their sockets");
            }
            left_behind(folder, hello).await
        })
    }
}

/// A process that is no child of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pid: u32,
    /// When it began, in ticks since the system's: another process that got the same id began later.
    began: u64,
}

impl Process {
    /// The process that runs under `pid`.
    pub fn running(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name, which may hold anything: the state is field 3, the start field 22 (proc(5)).
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        if fields.next()? == "Z" {
            return None; // it has ended, and whoever inherited it has not looked yet
        }
        Some(Self { pid, began: fields.nth(18)?.parse().ok()? })
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it still runs.
    pub fn runs(&self) -> bool {
        Self::running(self.pid) == Some(*self)
    }

    fn kill(&self) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).filter(|_| self.runs());
        if let Some(Err(error)) = pid.map(|pid| kill_process(pid, Signal::KILL)) {
            tracing::warn!(%error, pid = self.pid, "an SFU worker could not be killed");
        }
    }
}

/// A worker that is served over `stream`, of which `decoder` may have read ahead.
pub fn link_over(stream: UnixStream, decoder: FrameDecoder, process: Process) -> WorkerLink {
    let (reader, writer) = stream.into_split();
    let (to, commands) = mpsc::channel(WORKER_QUEUE);
    let (said, from) = mpsc::channel(FROM_QUEUE);
    let (has_ended, ended) = oneshot::channel();
    let (kill, killed) = oneshot::channel();
    let (open, closed) = oneshot::channel::<()>();
    tokio::spawn(write_frames(writer, Vec::new(), commands));
    tokio::spawn(async move {
        let _open = open;
        read_frames(reader, decoder, said).await;
    });
    tokio::spawn(wait_for(process, killed, closed, has_ended));
    WorkerLink { pid: Some(process.pid()), to, from, ended, kill }
}

/// Waits for the end of a process that is no child: its socket closes with it.
async fn wait_for(
    process: Process,
    mut killed: oneshot::Receiver<()>,
    mut closed: oneshot::Receiver<()>,
    has_ended: oneshot::Sender<String>,
) {
    let (mut is_killed, mut is_closed) = (false, false);
    while process.runs() || !(is_killed || is_closed) {
        tokio::select! {
            biased;
            asked = &mut killed, if !is_killed => match asked {
                Ok(()) => {
                    is_killed = true;
                    process.kill();
                }
                Err(_) => return, // let go
            },
            _ = &mut closed, if !is_closed => is_closed = true,
            () = sleep(LOOK_EVERY), if is_killed || is_closed => {}
        }
    }
    let how = if is_killed { "killed" } else { "gone; only who started it would know how" };
    let _ = has_ended.send(how.to_owned());
}

async fn write_frames(
    mut to: impl AsyncWrite + Unpin,
    first: Vec<u8>,
    mut commands: mpsc::Receiver<ToWorker>,
) {
    let mut buffer = first;
    loop {
        if to.write_all(&buffer).await.is_err() {
            return; // the process is gone, and whoever waits for it says so
        }
        buffer.clear();
        let Some(command) = commands.recv().await else { return };
        let mut next = Some(command);
        while let Some(command) = next {
            match encode(&command) {
                Ok(frame) => buffer.extend_from_slice(&frame),
                Err(error) => tracing::error!(%error, "a command to an SFU worker was dropped"),
            }
            next = if buffer.len() < PIPE_BYTES { commands.try_recv().ok() } else { None };
        }
    }
}

async fn read_frames(
    mut from: impl AsyncRead + Unpin,
    mut decoder: FrameDecoder,
    said: mpsc::Sender<FromWorker>,
) {
    let mut buffer = vec![0; PIPE_BYTES];
    loop {
        loop {
            match decoder.next::<FromWorker>() {
                Ok(Some(message)) => {
                    if said.send(message).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "an SFU worker does not make sense and will be replaced");
                    return;
                }
            }
        }
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => decoder.push(&buffer[..count]),
        }
    }
}

async fn wait(mut child: Child, killed: oneshot::Receiver<()>, has_ended: oneshot::Sender<String>) {
    let status = tokio::select! {
        status = child.wait() => status,
        _ = killed => {
            if let Err(error) = child.start_kill() {
                tracing::warn!(%error, "an SFU worker could not be killed; it ends when its stdin closes");
            }
            child.wait().await
        }
    };
    let _ = has_ended.send(match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("could not be waited for: {error}"),
    });
}
