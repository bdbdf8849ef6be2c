//! Sending what happens in a service's rooms to one receiver, from a cursor in the log on: in order, at least once.
//!
//! ```text
//! log ── follow from the cursor ──→ batch ── POST, again until 2xx ──→ receiver
//!  ↑                                              │
//!  └── WebhookAdvanced, now and then ─────────────┘
//! ```
//! One batch at a time is on its way, so the receiver sees the order of the log. How far it has got goes into the log every
//! [`ADVANCE_EVERY`]: whoever goes on from there after this node repeats that much, and leaves out nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use roomlog_bus::{
    commit::{Cause, Commit},
    events::{Event, WebhookAdvanced, WebhookFailed},
    ids::ServiceId,
    journal::{Cursor, Follow, Followed, follow_again},
    time::Timestamp,
};
use roomlog_projections::service::{Failing, ServiceState, Webhook};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{app::App, events::event_json, ours::Ours, webhooks::deliver::Delivery};

/// The cursor goes into the log at most this often. 30 s: a commit each is nothing beside the events that are sent, and half a minute is
/// soon repeated.
const ADVANCE_EVERY: Duration = Duration::from_secs(30);
/// Where nothing was sent, the log's growth by others is written down this often: whoever goes on from there only reads that much.
const ADVANCE_IDLE_EVERY: Duration = Duration::from_secs(3_600);
/// Events in one request, at most.
const MAX_EVENTS: usize = 100;
/// Once a batch has so many bytes it is sent: receivers commonly take 1 MiB, and one commit more has 120 KiB.
const MAX_BYTES: usize = 256 * 1024;
/// The first pause after a failure, and the longest: a deployment takes seconds, and whoever was down for a day is found within ten minutes.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// A failure is written down once the pause is this long, so that a hiccup costs the log nothing.
const WORTH_TELLING: Duration = Duration::from_secs(30);

/// How long to wait after so many failures one after the other; `draw` of 0 to 255 spreads it over the upper half, so that receivers of many
/// webhooks that come back are not met by all at once.
pub fn pause(failures: u32, draw: u8) -> Duration {
    let whole = FIRST_PAUSE
        .saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX))
        .min(LONGEST_PAUSE);
    whole / 2 + whole / 2 * u32::from(draw) / 255
}

/// What is sent at once.
#[derive(Default)]
struct Batch {
    /// Names it, the same each time it is tried.
    id: String,
    events: Vec<Value>,
    bytes: usize,
    /// Where the log goes on after it.
    after: Cursor,
}

impl Batch {
    fn take(&mut self, commit: &Commit, types: &[String]) {
        for i in 0..commit.events.len() {
            if types.is_empty() || types.iter().any(|kind| **kind == *commit.events[i].kind) {
                let event = event_json(commit, i);
                self.bytes += event.to_string().len();
                if self.events.is_empty() {
                    self.id = format!("{}_{i}", commit.id);
                }
                self.events.push(event);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.events.len() >= MAX_EVENTS || self.bytes >= MAX_BYTES
    }
}

/// One webhook being served.
pub struct Sender {
    app: Arc<App>,
    ours: Ours,
    id: String,
    hook: Webhook,
}

impl Sender {
    pub fn new(app: Arc<App>, service: ServiceId, id: String, hook: Webhook) -> Self {
        Self { app, ours: Ours::of(service), id, hook }
    }

    /// Sends until it is dropped, another was told to, or the journal ends.
    pub async fn run(mut self) {
        let mut cursor = Cursor(self.hook.cursor.clone());
        let mut follow = match self.app.journal.follow(cursor.clone()).await {
            Ok(follow) => follow,
            Err(error) => {
                tracing::warn!(webhook = self.id, %error, "the log does not read for it; tried again");
                return; // the one who started this does so again
            }
        };
        let mut written = Instant::now();
        let mut sent = false;
        loop {
            let due = written + if sent { ADVANCE_EVERY } else { ADVANCE_IDLE_EVERY };
            let Some(batch) = self.collect(&mut follow, &mut cursor, due).await else { return };
            if !batch.events.is_empty() {
                if !self.send(&batch).await {
                    return;
                }
                sent = true;
                cursor = batch.after;
            }
            let wait = if sent { ADVANCE_EVERY } else { ADVANCE_IDLE_EVERY };
            if written.elapsed() < wait && !(sent && self.hook.failing.is_some()) {
                continue;
            }
            if self.hook.cursor != cursor.0 && !self.advance(&cursor).await {
                return;
            }
            (written, sent) = (Instant::now(), false);
        }
    }

    /// The next events there are, and those that are there besides; none by `until`. What is of others only moves the cursor.
    async fn collect(&mut self, follow: &mut Follow, cursor: &mut Cursor, until: Instant) -> Option<Batch> {
        let mut batch = Batch::default();
        loop {
            let followed = if batch.events.is_empty() {
                tokio::select! {
                    followed = follow.next() => followed,
                    () = tokio::time::sleep_until(until) => return Some(batch),
                }
            } else {
                match futures::FutureExt::now_or_never(follow.next()) {
                    Some(followed) => followed,
                    None => return Some(batch),
                }
            };
            match followed {
                Some(Followed::Entry(entry)) => {
                    match self.ours.has(&self.app, &entry.commit).await {
                        Ok(true) => batch.take(&entry.commit, &self.hook.types),
                        Ok(false) => {}
                        Err(error) => {
                            tracing::warn!(webhook = self.id, stream = %entry.commit.stream, %error, "whose room it is cannot be read; tried again from the cursor");
                            return None;
                        }
                    }
                    if batch.events.is_empty() {
                        *cursor = entry.cursor;
                    } else {
                        batch.after = entry.cursor;
                    }
                    if batch.is_full() {
                        return Some(batch);
                    }
                }
                Some(Followed::CaughtUp) => {}
                Some(Followed::Broken(error)) => {
                    // What waits to be sent is read again from the cursor.
                    batch = Batch::default();
                    *follow = follow_again(self.app.journal.as_ref(), cursor, error).await;
                }
                None => return None,
            }
        }
    }

    /// Tries until it is taken; false when another was told to send.
    async fn send(&mut self, batch: &Batch) -> bool {
        let mut failures = 0;
        let mut since = None;
        loop {
            let now = self.app.env.now();
            let timestamp = now.as_millis() / 1_000;
            let body = json!({ "type": "roomlog.events", "timestamp": now.to_string(), "data": { "events": batch.events } });
            let body = body.to_string().into_bytes();
            let id = format!("msg_{}", batch.id);
            let sign = |generation| self.app.webhook_key.sign(&self.id, generation, &id, timestamp, &body);
            let mut signature = sign(self.hook.generation);
            if self.hook.old_until.is_some_and(|until| until > now) {
                signature = format!("{signature} {}", sign(self.hook.generation - 1));
            }
            let url = self.hook.url.clone();
            let delivery = Delivery { url, id, timestamp, signature, body: body.into() };
            let Err(error) = self.app.deliver.deliver(&delivery).await else { return true };
            failures += 1;
            let since = *since.get_or_insert(now);
            let pause = pause(failures, self.app.env.draw(|rng| rng.next_u32() as u8));
            tracing::debug!(webhook = self.id, failures, ?pause, error, "not taken");
            if pause >= WORTH_TELLING && !self.failing(since, failures, &error).await {
                return false;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Writes down how far the receiver has got; false when another was told to send.
    async fn advance(&mut self, cursor: &Cursor) -> bool {
        let event = WebhookAdvanced { webhook: self.id.clone(), cursor: cursor.0.clone() };
        let ours = self.note(event.into()).await;
        if ours {
            self.hook.cursor.clone_from(&cursor.0);
            self.hook.failing = None;
        }
        ours
    }

    /// Writes down that the receiver takes nothing; false when another was told to send.
    async fn failing(&mut self, since: Timestamp, attempts: u32, error: &str) -> bool {
        // What a receiver says may be anything.
        let error: String = error.chars().filter(|c| !c.is_control()).take(200).collect();
        let event = WebhookFailed { webhook: self.id.clone(), since, attempts, error: error.clone() };
        self.hook.failing = Some(Failing { since, attempts, error });
        self.note(event.into()).await
    }

    /// Writes `event` down, as long as nothing else was decided about the webhook; says whether that is so.
    async fn note(&self, event: Event) -> bool {
        let ours = AtomicBool::new(true);
        let decide = |state: &ServiceState| {
            let edition = state.webhooks.get(&self.id).map(|hook| hook.edition);
            let same = edition == Some(self.hook.edition);
            ours.store(same, Ordering::Relaxed);
            Ok(if same { vec![event.clone()] } else { Vec::new() })
        };
        if let Err(problem) = self.app.decide_service(&self.ours.service, Cause::of("webhook"), decide).await
        {
            // What comes after it is sent all the same, and written down with the next.
            tracing::warn!(webhook = self.id, reason = %problem.detail, "how far it has got is not written down");
        }
        ours.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_ten_minutes_and_are_spread() {
        let longest: Vec<u64> = (1..=12).map(|failures| pause(failures, 255).as_secs()).collect();
        assert_eq!(longest, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        assert_eq!(pause(200, 0), LONGEST_PAUSE / 2);
        assert!(pause(3, 0) < pause(3, 128) && pause(3, 128) < pause(3, 255));
    }
}
