//! Workers that an earlier process of this EA has left behind: finding them, and whether they can be taken over.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use roomlog_bus::ids::{RoomId, WorkerIndex};
use roomlog_projections::node::{NodePhase, NodeState};
use roomlog_sfu::{
    adoption::{Hello, HelloAnswer, SocketName, SocketPath, Welcome},
    control::{FrameDecoder, WorkerConfig, encode},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::worker::{Process, WorkerLink, link_over};

/// A worker has this long to answer. Its loop turns in milliseconds; a machine that has just lost a process may be busy. Calls go on
/// meanwhile, and nobody calls the EA lost, since its workers answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// A worker that has not noticed yet that its EA is gone refuses another of the same start; it is asked again so often, with
/// [`ASK_AGAIN`] between.
const ASKED: u32 = 10;
/// See [`ASKED`].
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// A worker that was left behind.
#[derive(Debug)]
pub struct LeftBehind {
    /// To serve it, or to end it.
    pub link: WorkerLink,
    /// What it is, or why it will not serve us.
    pub answer: Result<Welcome, String>,
}

/// Asks everybody who listens in `folder`. Sockets that nobody listens at are removed.
pub async fn left_behind(folder: &Path, hello: Hello) -> Vec<LeftBehind> {
    let mut asking = JoinSet::new();
    for (file, name) in sockets(folder) {
        let (folder, hello) = (folder.to_owned(), hello.clone());
        asking.spawn(async move {
            match ask(&folder, &name, &hello).await {
                Ok(found) => Some(found),
                Err(error) => {
                    if error.kind() == io::ErrorKind::ConnectionRefused {
                        let _ = std::fs::remove_file(&file);
                    } else if error.kind() != io::ErrorKind::NotFound {
                        tracing::warn!(socket = %file.display(), %error, "a worker that was left behind cannot be asked; it ends by itself");
                    }
                    None
                }
            }
        });
    }
    asking.join_all().await.into_iter().flatten().collect()
}

/// Removes what dead workers of this index left in `folder`.
pub fn tidy(folder: &Path, worker: WorkerIndex) {
    for (file, name) in sockets(folder) {
        if SocketName::parse(&name).is_some_and(|name| name.worker == worker) {
            let _ = std::fs::remove_file(file);
        }
    }
}

fn sockets(folder: &Path) -> Vec<(PathBuf, String)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let named = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name().into_string().ok()?;
        SocketName::parse(&name).map(|_| (entry.path(), name))
    });
    let mut found: Vec<_> = named.collect();
    found.sort_unstable();
    found
}

async fn ask(folder: &Path, name: &str, hello: &Hello) -> io::Result<LeftBehind> {
    let mut asked = 1;
    loop {
        let path = SocketPath::new(folder, name)?;
        let mut stream = UnixStream::connect(path.as_path()).await?;
        // The kernel's word for who listens there; whoever is ended is ended by this and not by what a file says.
        let pid = stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok());
        let process = pid.and_then(Process::running).ok_or(io::ErrorKind::NotFound)?;
        let mut decoder = FrameDecoder::new();
        let answer = match timeout(ANSWER_WITHIN, greet(&mut stream, &mut decoder, hello)).await {
            Ok(Ok(HelloAnswer::Welcome(welcome))) => Ok(*welcome),
            Ok(Ok(HelloAnswer::Refused { reason, protocol, .. }))
                if protocol == hello.protocol && asked < ASKED =>
            {
                tracing::debug!(reason, "a worker does not take us yet");
                asked += 1;
                sleep(ASK_AGAIN).await;
                continue;
            }
            Ok(Ok(HelloAnswer::Refused { reason, version, .. })) => {
                Err(format!("{reason} (its build is {version})"))
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {ANSWER_WITHIN:?}")),
        };
        return Ok(LeftBehind { link: link_over(stream, decoder, process), answer });
    }
}

async fn greet(
    stream: &mut UnixStream,
    decoder: &mut FrameDecoder,
    hello: &Hello,
) -> io::Result<HelloAnswer> {
    stream.write_all(&encode(hello).map_err(io::Error::other)?).await?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if let Some(answer) = decoder.next().map_err(io::Error::other)? {
            return Ok(answer);
        }
        match stream.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => decoder.push(&buffer[..count]),
        }
    }
}

/// A worker that is taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    /// Which.
    pub worker: WorkerIndex,
    /// Which start of it.
    pub generation: u64,
    /// The rooms it holds.
    pub rooms: Vec<RoomId>,
}

/// Why a worker that was left behind is ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It will not serve us.
    #[error("{0}")]
    Refused(String),
    /// It was started without a name.
    #[error("it does not say which worker it is")]
    Nameless,
    /// There are fewer workers now.
    #[error("it is worker {0}, and there are {1}")]
    TooMany(WorkerIndex, usize),
    /// What an operator has set since would not hold for it.
    #[error("it was started with other settings: {0}")]
    Settings(&'static str),
    /// Its rooms have been given to others, or nobody knew of it.
    #[error("the log does not have it as running")]
    NotRunning,
}

/// Whether a worker that answered with `answer` is one of the `workers` that this EA goes on with, as its own stream has it in `state`.
/// `wanted` is what a worker of that index would be started with.
pub fn judge(
    answer: &Result<Welcome, String>,
    workers: usize,
    state: &NodeState,
    wanted: impl FnOnce(WorkerIndex) -> WorkerConfig,
) -> Result<Fit, Unfit> {
    let welcome = answer.as_ref().map_err(|reason| Unfit::Refused(reason.clone()))?;
    let named = welcome.config.adoptable.as_ref().ok_or(Unfit::Nameless)?;
    let (worker, generation) = (named.worker, named.generation);
    if usize::from(worker.0) >= workers {
        return Err(Unfit::TooMany(worker, workers));
    }
    let (wanted, has) = (wanted(worker), &welcome.config);
    let same = [
        ("another address", wanted.listen.ip() == has.listen.ip()),
        ("another port", wanted.listen.port() == 0 || wanted.listen.port() == welcome.udp.port()),
        ("other announced addresses", wanted.announced == has.announced),
        ("another announced port", wanted.announced_port == has.announced_port),
    ];
    if let Some((what, _)) = same.into_iter().find(|(_, same)| !same) {
        return Err(Unfit::Settings(what));
    }
    // Who was called lost has lost its rooms; who left has closed them.
    let goes_on = matches!(state.phase, NodePhase::Registered | NodePhase::Draining);
    if !goes_on || state.generations.get(&worker) != Some(&generation) {
        return Err(Unfit::NotRunning);
    }
    Ok(Fit { worker, generation, rooms: welcome.rooms.clone() })
}

#[cfg(test)]
mod tests {
    use roomlog_bus::ids::{EaId, Incarnation};
    use roomlog_sfu::adoption::Adoptable;

    use super::*;

    fn config(worker: WorkerIndex) -> WorkerConfig {
        let adoptable = Adoptable {
            folder: PathBuf::new(),
            ea: EaId::new("ea").unwrap(),
            worker,
            generation: 3,
            incarnation: Incarnation(1),
            within_ms: 1,
        };
        WorkerConfig { adoptable: Some(adoptable), ..WorkerConfig::new("127.0.0.1:0".parse().unwrap()) }
    }

    fn welcome() -> Welcome {
        let rooms = vec![RoomId::new("r").unwrap()];
        let udp = "127.0.0.1:4000".parse().unwrap();
        Welcome { version: "1".into(), config: config(WorkerIndex(1)), udp, rooms }
    }

    fn state() -> NodeState {
        NodeState {
            phase: NodePhase::Registered,
            generations: [(WorkerIndex(0), 2), (WorkerIndex(1), 3)].into(),
            ..NodeState::default()
        }
    }

    #[test]
    fn a_worker_that_the_log_has_as_running_goes_on() {
        let fit = judge(&Ok(welcome()), 2, &state(), config).unwrap();
        assert_eq!((fit.worker, fit.generation, fit.rooms.len()), (WorkerIndex(1), 3, 1));
        let port =
            |port| move |worker| WorkerConfig { listen: ([127, 0, 0, 1], port).into(), ..config(worker) };
        assert!(judge(&Ok(welcome()), 2, &state(), port(4000)).is_ok(), "the port is the one it has");
        assert_eq!(judge(&Ok(welcome()), 2, &state(), port(4001)), Err(Unfit::Settings("another port")));
    }

    #[test]
    fn others_are_ended_and_it_is_said_why() {
        let judged = |answer, workers, state: &NodeState| judge(&answer, workers, state, config).unwrap_err();
        assert_eq!(judged(Err("no answer".into()), 2, &state()), Unfit::Refused("no answer".into()));
        let nameless = Welcome { config: WorkerConfig::new("127.0.0.1:0".parse().unwrap()), ..welcome() };
        assert_eq!(judged(Ok(nameless), 2, &state()), Unfit::Nameless);
        assert_eq!(judged(Ok(welcome()), 1, &state()), Unfit::TooMany(WorkerIndex(1), 1));
        let mut moved = welcome();
        moved.config.announced = vec!["192.0.2.1".parse().unwrap()];
        assert_eq!(judged(Ok(moved), 2, &state()), Unfit::Settings("other announced addresses"));
        let replaced = NodeState { generations: [(WorkerIndex(1), 4)].into(), ..state() };
        assert_eq!(judged(Ok(welcome()), 2, &replaced), Unfit::NotRunning);
        for phase in [NodePhase::Lost, NodePhase::Left] {
            assert_eq!(judged(Ok(welcome()), 2, &NodeState { phase, ..state() }), Unfit::NotRunning);
        }
    }
}
