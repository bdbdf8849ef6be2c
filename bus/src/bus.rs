//! The bus: subjects, queue groups, request and reply. What NATS core gives, as a trait, with an engine in memory beside it.
//!
//! Delivery is at most once and in order per subject and subscriber. Nothing that must not be lost goes only here: that is what the
//! [`Journal`](crate::journal::Journal) is for.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::subject::{Pattern, Subject};

/// Name and value pairs beside a payload.
pub type Headers = Vec<(Arc<str>, String)>;

/// Header on `roomlog.ev` messages: the event types in the commit, separated by commas, so a subscriber can skip without decoding.
pub const TYPE_HEADER: &str = "Roomlog-Type";

/// What travels on the bus.
#[derive(Debug, Clone)]
pub struct Message {
    /// Where it was sent.
    pub subject: Subject,
    /// Where an answer goes, if one is wanted.
    pub reply: Option<Subject>,
    /// Headers.
    pub headers: Headers,
    /// The content.
    pub payload: Bytes,
}

/// How a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Nobody listens there; known at once, not after a timeout.
    #[error("nobody answers on {0}")]
    NoResponders(Subject),
    /// Somebody listens, but no answer came in time.
    #[error("no answer on {subject} within {timeout:?}")]
    Timeout {
        /// Where.
        subject: Subject,
        /// How long was waited.
        timeout: Duration,
    },
    /// The bus itself is away.
    #[error("the bus is away: {0}")]
    Disconnected(String),
}

/// The bus itself is away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the bus is away: {0}")]
pub struct Disconnected(pub String);

/// A running subscription. Dropping it ends it.
pub struct Subscription {
    receiver: mpsc::Receiver<Message>,
    /// Ends the subscription at the engine when dropped.
    _guard: Box<dyn Send + Sync>,
}

impl Subscription {
    /// Used by engines: `guard` is dropped with the subscription.
    pub fn new(receiver: mpsc::Receiver<Message>, guard: Box<dyn Send + Sync>) -> Self {
        Self { receiver, _guard: guard }
    }

    /// The next message, or none once the bus is closed.
    pub async fn next(&mut self) -> Option<Message> {
        self.receiver.recv().await
    }
}

/// Subjects, queue groups, request and reply.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Sends to all who subscribe to it now, and to one member of each queue group. A subscriber whose queue of
    /// [`SUBSCRIPTION_QUEUE`] is full misses the message, which is counted and logged: one slow reader never holds up the others.
    async fn publish(&self, message: Message) -> Result<(), Disconnected>;

    /// Listens. Once this returns, every later publish that matches is delivered. Members of one `queue` share the messages.
    async fn subscribe(&self, pattern: Pattern, queue: Option<&str>) -> Result<Subscription, Disconnected>;

    /// Sends and waits for one answer.
    async fn request(
        &self,
        subject: Subject,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Message, RequestError>;

    /// Whether the bus is there: changes at each loss and each return. What others sent in between was not heard.
    fn connected(&self) -> watch::Receiver<bool> {
        watch::channel(true).1
    }
}

/// Messages waiting for one subscriber, at most. 65 536 is what NATS clients use; at 1 KiB each that is 64 MiB in the worst case.
pub const SUBSCRIPTION_QUEUE: usize = 65_536;

/// Answers `request` if it asked for an answer.
pub async fn respond(bus: &dyn Bus, request: &Message, payload: Bytes) -> Result<(), Disconnected> {
    match &request.reply {
        Some(reply) => {
            bus.publish(Message { subject: reply.clone(), reply: None, headers: Headers::new(), payload })
                .await
        }
        None => Ok(()),
    }
}
