//! What an EC counts, in Prometheus' text form. Labels are bounded: codes and reasons from fixed tables, never ids or names.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Why a socket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closed {
    /// The client said goodbye.
    Left,
    /// The connection ended without one.
    Broken,
    /// The connection was reset, or spoke no WebSocket, or sent a frame too large even to be told so.
    Error,
    /// Nothing was heard for the socket timeout, not even answers to pings.
    Silent,
    /// It does not read what it is sent.
    Unread,
    /// It showed no token in time.
    NoToken,
    /// Its token was refused, or too many requests before one.
    Refused,
    /// Too many frames were not protoo.
    BadFrames,
    /// A frame was too large.
    TooLarge,
    /// It sent too many messages.
    TooMany,
    /// Its room closed it: replaced, kicked, room closed, moved, restarting.
    Told,
}

impl Closed {
    /// Its label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Broken => "broken",
            Self::Error => "error",
            Self::Silent => "silent",
            Self::Unread => "unread",
            Self::NoToken => "no_token",
            Self::Refused => "refused",
            Self::BadFrames => "bad_frames",
            Self::TooLarge => "too_large",
            Self::TooMany => "too_many",
            Self::Told => "told",
        }
    }
}

/// Counters of one EC.
#[derive(Debug, Default)]
pub struct Metrics {
    refused: Mutex<BTreeMap<u16, u64>>,
    closed: Mutex<BTreeMap<Closed, u64>>,
    turned_away: Mutex<BTreeMap<u16, u64>>,
    bad_frames: AtomicU64,
    sockets: AtomicU64,
}

/// Adds one to what `label` counts. Each lock is held for one addition.
fn count<L: Ord>(counts: &Mutex<BTreeMap<L, u64>>, label: L) {
    *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(label).or_default() += 1;
}

impl Metrics {
    /// A request was refused with this code.
    pub fn refused(&self, code: u16) {
        count(&self.refused, code);
    }

    /// A frame was not protoo.
    pub fn bad_frame(&self) {
        self.bad_frames.fetch_add(1, Ordering::Relaxed);
    }

    /// A socket opened.
    pub fn opened(&self) {
        self.sockets.fetch_add(1, Ordering::Relaxed);
    }

    /// A socket is gone.
    pub fn ended(&self) {
        self.sockets.fetch_sub(1, Ordering::Relaxed);
    }

    /// Why a socket ended.
    pub fn closed(&self, why: Closed) {
        count(&self.closed, why);
    }

    /// A connection was refused before the upgrade, with this HTTP status.
    pub fn turned_away(&self, status: u16) {
        count(&self.turned_away, status);
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
        let _ = writeln!(out, "# TYPE roomlog_ec_turned_away counter");
        for (status, count) in self.turned_away.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "roomlog_ec_turned_away{{status=\"{status}\"}} {count}");
        }
        let _ = writeln!(out, "# TYPE roomlog_ec_sockets_closed counter");
        for (why, count) in self.closed.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "roomlog_ec_sockets_closed{{why=\"{}\"}} {count}", why.as_str());
        }
        let _ = writeln!(out, "# TYPE roomlog_ec_requests_refused counter");
        for (code, count) in self.refused.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "roomlog_ec_requests_refused{{code=\"{code}\"}} {count}");
        }
        out
    }
}
