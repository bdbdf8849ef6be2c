//! What an EC counts, in Prometheus' text form. Labels are bounded: codes and reasons from fixed tables, never ids or names.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Counters of one EC.
#[derive(Debug, Default)]
pub struct Metrics {
    refused: Mutex<BTreeMap<u16, u64>>,
    bad_frames: AtomicU64,
    sockets: AtomicU64,
    turned_away: AtomicU64,
}

impl Metrics {
    /// A request was refused with this code.
    pub fn refused(&self, code: u16) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
    }

    /// A frame was not protoo.
    pub fn bad_frame(&self) {
        self.bad_frames.fetch_add(1, Ordering::Relaxed);
    }

    /// A socket opened.
    pub fn opened(&self) {
        self.sockets.fetch_add(1, Ordering::Relaxed);
    }

    /// A socket closed.
    pub fn closed(&self) {
        self.sockets.fetch_sub(1, Ordering::Relaxed);
    }

    /// A connection was refused before the upgrade.
    pub fn turned_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }

    /// Open sockets.
    pub fn sockets(&self) -> u64 {
        self.sockets.load(Ordering::Relaxed)
    }

    /// All of it, with the number of running rooms.
    pub fn render(&self, rooms: usize) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "# TYPE roomlog_ec_rooms gauge\nroomlog_ec_rooms {rooms}");
        let _ = writeln!(out, "# TYPE roomlog_ec_sockets gauge\nroomlog_ec_sockets {}", self.sockets());
        let _ = writeln!(
            out,
            "# TYPE roomlog_ec_bad_frames counter\nroomlog_ec_bad_frames {}",
            self.bad_frames.load(Ordering::Relaxed)
        );
        let _ = writeln!(
            out,
            "# TYPE roomlog_ec_turned_away counter\nroomlog_ec_turned_away {}",
            self.turned_away.load(Ordering::Relaxed)
        );
        let _ = writeln!(out, "# TYPE roomlog_ec_requests_refused counter");
        for (code, count) in self.refused.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "roomlog_ec_requests_refused{{code=\"{code}\"}} {count}");
        }
        out
    }
}
