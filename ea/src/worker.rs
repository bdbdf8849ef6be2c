//! An SFU worker as the EA holds it: two queues, an ending, and a way to kill it. Production starts a child process; tests start what they like.

use std::{ffi::OsString, process::Stdio};

use roomlog_sfu::control::{ControlError, FrameDecoder, FromWorker, ToWorker, WorkerConfig, encode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{mpsc, oneshot},
};

/// Frames waiting for one worker, at most. More than the 4 096 unanswered requests of ECs that are let in, so that what follows from the log
/// still has room behind them; a worker whose queue is full for all that does not read any more and is replaced.
pub const WORKER_QUEUE: usize = 16_384;

/// Frames from one worker waiting for the EA, at most. The worker then writes into the pipe until that is full, and waits.
const FROM_QUEUE: usize = 1_024;

/// Bytes read from or written to a pipe in one call: what a Linux pipe holds (64 KiB).
const PIPE_BYTES: usize = 64 * 1024;

/// A running worker. Dropping it kills the worker.
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
    /// Kills it when sent or dropped.
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
}

/// Starts workers as child processes.
#[derive(Debug, Clone)]
pub struct ProcessSpawner {
    command: Vec<OsString>,
}

impl ProcessSpawner {
    /// `command` is the program and its arguments.
    pub fn new(command: Vec<OsString>) -> Self {
        Self { command }
    }
}

impl SpawnWorker for ProcessSpawner {
    fn spawn(&self, config: &WorkerConfig) -> Result<WorkerLink, SpawnError> {
        let (program, arguments) = self.command.split_first().ok_or(SpawnError::NoCommand)?;
        let first = encode(config)?;
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
        tokio::spawn(read_frames(stdout, said));
        tokio::spawn(wait(child, killed, has_ended));
        Ok(WorkerLink { pid, to, from, ended, kill })
    }
}

async fn write_frames(mut stdin: ChildStdin, first: Vec<u8>, mut commands: mpsc::Receiver<ToWorker>) {
    let mut buffer = first;
    loop {
        if stdin.write_all(&buffer).await.is_err() {
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

async fn read_frames(mut stdout: ChildStdout, said: mpsc::Sender<FromWorker>) {
    let mut decoder = FrameDecoder::new();
    let mut buffer = vec![0; PIPE_BYTES];
    loop {
        let count = match stdout.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        decoder.push(&buffer[..count]);
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
