//! What the cluster tests share: a cell of nodes in this process, the real binary as a process, an HTTP caller and a signalling client.

#![forbid(unsafe_code)]

pub mod cell;
pub mod cluster;
pub mod gate;
pub mod native;
pub mod process;
pub mod proxy;
pub mod returner;
pub mod sim;
pub mod witness;

use std::path::PathBuf;

pub use roomlog_client::{http, peer};

/// The built `roomlog` binary: `ROOMLOG_BIN`, else the one beside this test's own target folder. Panics with what to do when there is none.
pub fn roomlog_bin() -> PathBuf {
    if let Some(path) = std::env::var_os("ROOMLOG_BIN") {
        return path.into();
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("roomlog")));
    match beside {
        Some(path) if path.exists() => path,
        _ => panic!(
            "these tests start the real binary: run `cargo build -p roomlog` first, or use ./deploy/test rust"
        ),
    }
}

/// The `roomlog` that was built with the feature `next-version`, as `deploy/test rust` does: `ROOMLOG_NEXT_BIN`. Panics with what to do when
/// there is none.
pub fn roomlog_next_bin() -> PathBuf {
    let missing = "this test starts a binary of the next version too: run `cargo build -p roomlog --features next-version`, copy what it made, and \
                   name the copy in ROOMLOG_NEXT_BIN, or use ./deploy/test rust";
    std::env::var_os("ROOMLOG_NEXT_BIN").map(PathBuf::from).expect(missing)
}
