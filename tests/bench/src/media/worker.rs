//! The worker process, held by its pipes, and what the kernel says of it.

use std::{
    ffi::OsString,
    fs,
    io::{Read, Write},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use roomlog_bus::{
    ids::RoomId,
    media::{MediaAnswer, MediaCommand},
};
use roomlog_sfu::control::{FrameDecoder, FromWorker, ToWorker, WorkerConfig, WorkerLoad, encode};
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// Clients here never renew their consent: a call does every few seconds.
const CONSENT: Duration = Duration::from_secs(3_600);

/// A worker that serves one room. Dropping it kills it.
pub(super) struct WorkerProcess {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    decoder: FrameDecoder,
    room: RoomId,
    next: u64,
    /// Where it listens.
    pub(super) udp: SocketAddr,
}

impl WorkerProcess {
    pub(super) fn start(program: &[OsString]) -> anyhow::Result<Self> {
        let (name, arguments) = program.split_first().context("the worker program is empty")?;
        let mut child = Command::new(name)
            .args(arguments)
            .env("MALLOC_ARENA_MAX", "1") // as `deploy/` starts it
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting the worker {}", name.display()))?;
        let stdin = child.stdin.take().context("the worker has no stdin")?;
        let stdout = child.stdout.take().context("the worker has no stdout")?;
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = WorkerConfig { ice_consent_ms: CONSENT.as_millis() as u64, ..WorkerConfig::new(listen) };
        let mut worker = Self {
            child,
            stdin,
            stdout,
            decoder: FrameDecoder::new(),
            room: RoomId::new("bench").context("naming the room")?,
            next: 0,
            udp: listen,
        };
        worker.stdin.write_all(&encode(&config)?)?;
        match worker.read()? {
            FromWorker::Ready { udp } => worker.udp = udp,
            other => bail!("the worker began with {other:?} instead of Ready"),
        }
        Ok(worker)
    }

    fn read(&mut self) -> anyhow::Result<FromWorker> {
        let mut buffer = [0; 64 * 1024];
        loop {
            if let Some(message) = self.decoder.next()? {
                return Ok(message);
            }
            let count = self.stdout.read(&mut buffer).context("reading from the worker")?;
            ensure!(count > 0, "the worker has ended; its standard error says why");
            self.decoder.push(&buffer[..count]);
        }
    }

    /// The answer to a command.
    pub(super) fn ask(&mut self, command: MediaCommand) -> anyhow::Result<MediaAnswer> {
        self.next += 1;
        let (id, name) = (self.next, format!("{command:?}"));
        self.stdin.write_all(&encode(&ToWorker::Request { id, room: self.room.clone(), command })?)?;
        loop {
            match self.read()? {
                FromWorker::Answer { id: answered, result } if answered == id => {
                    return result.with_context(|| format!("the worker refused {name}"));
                }
                _ => {}
            }
        }
    }

    /// Its counters.
    pub(super) fn load(&mut self) -> anyhow::Result<WorkerLoad> {
        self.next += 1;
        let id = self.next;
        self.stdin.write_all(&encode(&ToWorker::Ping { id })?)?;
        loop {
            match self.read()? {
                FromWorker::Pong { id: answered, load } if answered == id => return Ok(load),
                _ => {}
            }
        }
    }

    /// CPU time of all its threads, user and system, to the nanosecond.
    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        let mut sum = 0;
        let folder = format!("/proc/{}/task", self.child.id());
        for thread in fs::read_dir(&folder).with_context(|| format!("reading {folder}"))? {
            let file = thread?.path().join("schedstat");
            let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            let first = text.split_whitespace().next().unwrap_or_default();
            sum += first.parse::<u64>().with_context(|| format!("{}: {text}", file.display()))?;
        }
        Ok(Duration::from_nanos(sum))
    }

    /// Memory it has resident.
    pub(super) fn memory_bytes(&self) -> anyhow::Result<u64> {
        let file = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in status")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is no number")?;
        Ok(kib * 1024)
    }

    /// Gives the worker the first core that this process may use, and this process, whose threads come later, the others.
    pub(super) fn pin(&self) -> anyhow::Result<()> {
        let all = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core));
        let first = cores.next().context("no core")?;
        let mut others = CpuSet::new();
        cores.for_each(|core| others.set(core));
        ensure!(others.count() > 0, "there is one core only");
        let mut own = CpuSet::new();
        own.set(first);
        let pid = Pid::from_raw(self.child.id() as i32).context("the worker has no process id")?;
        let folder = format!("/proc/{}/task", self.child.id());
        for thread in fs::read_dir(folder)? {
            let thread = thread?.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
            sched_setaffinity(Some(thread.unwrap_or(pid)), &own)?;
        }
        CPUS.set((all, others)).ok();
        Ok(())
    }
}

/// All cores of this process, and those of the load once a worker has been given its own.
static CPUS: std::sync::OnceLock<(CpuSet, CpuSet)> = std::sync::OnceLock::new();

/// Keeps the calling thread off the worker's core.
pub(super) fn stay_off_the_worker() {
    if let Some((_, others)) = CPUS.get() {
        // Whoever may not choose measures with what there is.
        let _ = sched_setaffinity(None, others);
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
