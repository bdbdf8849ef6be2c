//! Webhooks: what happens in a service's rooms, sent to where the service wants it.
//!
//! ```text
//!  registered ──→ claimed by a NUVE ──→ sends from the cursor on ──→ writes down how far the receiver has got
//!                   ↑                                                      │
//!                   └── another, when that one is lost ←───────────────────┘
//! ```
//! A webhook is a cursor on the log, kept in the stream of its service. One NUVE at a time sends for it: the one that the log names. When
//! that one is lost another claims it and goes on from the cursor. What is decided about a webhook, a claim too, gives it a new edition;
//! whoever sends under an earlier one writes nothing down any more. So nothing is left out, and what was sent but not yet written down comes
//! twice.

use std::{collections::BTreeMap, time::Duration};

use roomlog_bus::{
    commit::{Cause, StreamId},
    events::WebhookClaimed,
    ids::ServiceId,
};
use roomlog_projections::{
    membership::Health,
    service::{ServiceState, Webhook},
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use crate::app::{App, AppState, stopped};

pub mod api;
pub mod deliver;
mod sender;
mod sign;
pub mod targets;

pub use sign::MasterKey;

/// Which webhooks are this node's to serve is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A webhook: whose, and its id.
type Key = (ServiceId, String);

/// Serves the webhooks that are this node's until told to stop.
pub async fn serve(app: AppState, mut stop: watch::Receiver<bool>) {
    // Dropped with this, and all tasks with it.
    let mut tasks = JoinSet::new();
    let mut serving: BTreeMap<Key, (u64, AbortHandle)> = BTreeMap::new();
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let connected = app.bus.connected();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            _ = every.tick() => {}
        }
        while tasks.try_join_next().is_some() {}
        // Cut off, this node cannot know whether another was told to send.
        let ours = if *connected.borrow() { app.webhooks_to_serve() } else { BTreeMap::new() };
        serving.retain(|key, (edition, task)| {
            let goes_on = ours.get(key).is_some_and(|hook| hook.edition == *edition) && !task.is_finished();
            if !goes_on {
                task.abort();
            }
            goes_on
        });
        for (key, hook) in ours {
            if serving.contains_key(&key) {
                continue;
            }
            let (app, edition, (service, id)) = (app.clone(), hook.edition, key.clone());
            let task = match hook.node == Some(app.node.clone()) && app.signs(&hook) {
                true => tasks.spawn(sender::Sender::new(app, service, id, hook).run()),
                false => tasks.spawn(async move { app.claim(&service, &id, &hook).await }),
            };
            serving.insert(key, (edition, task));
        }
    }
}

impl App {
    /// Whether this node can compute the secret of `hook`.
    fn signs(&self, hook: &Webhook) -> bool {
        hook.key == self.webhook_key.fingerprint()
    }

    /// The webhooks that are on and that this node sends for, is to claim, or is to let go of.
    fn webhooks_to_serve(&self) -> BTreeMap<Key, Webhook> {
        let directory = self.directory.read();
        let is_lost = |node: &StreamId| {
            directory
                .nodes
                .get(node)
                .is_none_or(|state| self.ecs.observer.health(node, state) == Health::Lost)
        };
        let ours = |hook: &Webhook| match &hook.node {
            Some(node) if *node == self.node => true,
            Some(node) => self.signs(hook) && is_lost(node),
            None => self.signs(hook),
        };
        let alive = directory.services.iter().filter(|(_, state)| !state.deleted);
        let hooks = alive.flat_map(|(service, state)| state.webhooks.iter().map(move |hook| (service, hook)));
        hooks
            .filter(|(_, (_, hook))| hook.enabled && ours(hook))
            .map(|(service, (id, hook))| ((service.clone(), id.clone()), hook.clone()))
            .collect()
    }

    /// Says in the log that this node sends for a webhook, or, where it cannot sign for it, that it does not.
    async fn claim(&self, service: &ServiceId, id: &str, hook: &Webhook) {
        let node = self.signs(hook).then(|| self.node.clone());
        let claimed = WebhookClaimed { webhook: id.to_owned(), node };
        let decide = |state: &ServiceState| match state.webhooks.get(id) {
            Some(current) if current.edition == hook.edition => Ok(vec![claimed.clone().into()]),
            // Somebody else was quicker.
            _ => Ok(Vec::new()),
        };
        match self.decide_service(service, Cause::of("webhook"), decide).await {
            Ok(_) => tracing::info!(webhook = id, node = ?claimed.node, "who sends for it"),
            Err(problem) => {
                tracing::warn!(webhook = id, reason = %problem.detail, "it is not claimed; tried again")
            }
        }
    }
}
