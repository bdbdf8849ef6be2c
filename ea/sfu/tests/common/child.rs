//! The worker as a child process.

use std::{
    io::{Read, Write},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use roomlog_sfu::control::{FrameDecoder, WorkerConfig, encode};
use serde::de::DeserializeOwned;

/// For a machine that is slow and busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Starts `examples/sfu_worker`, and tells it `config`.
pub fn start(config: &WorkerConfig) -> Child {
    // Examples are built beside the tests of a package.
    let mut program = std::env::current_exe().unwrap();
    program.pop();
    program.pop();
    program.push("examples/sfu_worker");
    let mut child = Command::new(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}; cargo build --examples makes it", program.display()));
    child.stdin.as_mut().unwrap().write_all(&encode(config).unwrap()).unwrap();
    child
}

/// The next frame; none at the end.
pub fn read<T: DeserializeOwned>(from: &mut impl Read, decoder: &mut FrameDecoder) -> Option<T> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(message) = decoder.next().unwrap() {
            return Some(message);
        }
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(count) => decoder.push(&buffer[..count]),
        }
    }
}

/// Waits until it has ended.
pub fn ended(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < until, "still running");
        std::thread::sleep(Duration::from_millis(5));
    }
}
