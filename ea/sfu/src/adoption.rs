//! How a worker that outlives its EA is found and taken over by the next start of it.
//!
//! A worker that was told a folder ([`Adoptable`]) listens there on a Unix socket, besides serving the pipes it was started with. When those
//! end it goes on forwarding, and waits for somebody to connect:
//!
//! ```text
//! EA      ── Hello ─────────────────────▶  worker     who asks, in which protocol
//!         ◀── Welcome or Refused ────────             what it is and holds
//!         ◀── ToWorker, FromWorker ──▶                as over the pipes
//! ```
//!
//! Frames are those of [`control`](crate::control). `Hello` and its answer may gain fields; that they are understood between versions is what
//! lets a start of an EA end a worker that speaks another protocol in an orderly way.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use roomlog_bus::ids::{EaId, Incarnation, RoomId, WorkerIndex};
use serde::{Deserialize, Serialize};

use crate::control::WorkerConfig;

/// What [`ToWorker`](crate::control::ToWorker), [`FromWorker`](crate::control::FromWorker) and what they carry is called between an EA and a
/// worker of different builds. Raise it when an older worker would misunderstand, or not read, what a newer EA says, or the other way round.
pub const CONTROL_PROTOCOL: u32 = 1;

/// Bytes that the path of a Unix socket may have: 108 with its end (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// What a worker needs to know to be found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoptable {
    /// Where it listens: a folder that only its EA's user can enter.
    pub folder: PathBuf,
    /// Whose worker it is.
    pub ea: EaId,
    /// Which.
    pub worker: WorkerIndex,
    /// Which start of it.
    pub generation: u64,
    /// Which start of the EA began it.
    pub incarnation: Incarnation,
    /// Without an EA it ends after so long, in milliseconds.
    pub within_ms: u64,
}

/// The first frame on a connection: somebody would take the worker over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`CONTROL_PROTOCOL`] of who asks.
    pub protocol: u32,
    /// Who asks.
    pub ea: EaId,
    /// Which start of it. The worker leaves another EA that is still connected only for a later start.
    pub incarnation: Incarnation,
    /// From now on, see [`Adoptable::within_ms`].
    pub within_ms: u64,
}

/// The answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HelloAnswer {
    /// The worker listens to who asked, and to nobody else.
    Welcome(Box<Welcome>),
    /// It does not. The connection ends.
    Refused {
        /// [`CONTROL_PROTOCOL`] of the worker.
        protocol: u32,
        /// Its build.
        version: String,
        /// Why.
        reason: String,
    },
}

/// What a worker is, and which rooms it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// Its build.
    pub version: String,
    /// What it was started with.
    pub config: WorkerConfig,
    /// Where it takes packets.
    pub udp: SocketAddr,
    /// Rooms with a router, sorted.
    pub rooms: Vec<RoomId>,
}

/// What the name of a worker's socket says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketName {
    /// Which worker.
    pub worker: WorkerIndex,
    /// Which start of it.
    pub generation: u64,
    /// Its process, for people who look; nobody is ended by it.
    pub pid: u32,
}

impl SocketName {
    /// Reads a file's name; none for one that is no worker's.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(".sock")?.split('-');
        let worker = WorkerIndex(parts.next()?.parse().ok()?);
        let generation = parts.next()?.parse().ok()?;
        let pid = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Self { worker, generation, pid })
    }
}

impl std::fmt::Display for SocketName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}.sock", self.worker.0, self.generation, self.pid)
    }
}

/// A path that fits into the address of a Unix socket, however deep its folder lies.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// The path may lead through it, so it stays open.
    _folder: Option<File>,
}

impl SocketPath {
    /// The socket called `name` in `folder`.
    pub fn new(folder: &Path, name: &str) -> io::Result<Self> {
        let path = folder.join(name);
        if path.as_os_str().len() <= MAX_SOCKET_PATH {
            return Ok(Self { path, _folder: None });
        }
        // The kernel leads to the folder by its number, which is short.
        let open = File::open(folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", open.as_raw_fd()));
        Ok(Self { path, _folder: Some(open) })
    }

    /// For `bind` and `connect`.
    pub fn as_path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sockets_name_says_whose_it_is() {
        let name = SocketName { worker: WorkerIndex(3), generation: 12, pid: 4711 };
        assert_eq!(SocketName::parse(&name.to_string()), Some(name));
        for other in ["3-12-4711", "3-12.sock", "a-1-1.sock", "1-1-1-1.sock", "1-1--1.sock", ".sock", ""] {
            assert_eq!(SocketName::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_socket_in_a_folder_with_a_long_name_is_reached() {
        use std::os::unix::net::{UnixListener, UnixStream};
        let folder = std::env::temp_dir().join(format!("{}-{}", "long".repeat(40), std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = SocketPath::new(&folder, "0-1-1.sock").unwrap();
        let _listener = UnixListener::bind(path.as_path()).unwrap();
        assert!(folder.join("0-1-1.sock").exists());
        UnixStream::connect(SocketPath::new(&folder, "0-1-1.sock").unwrap().as_path()).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }
}
