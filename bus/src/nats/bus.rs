//! The bus on NATS core.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::HeaderMap;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{mpsc, watch};

use super::{connection::Shared, inbox::AskError};
use crate::{
    bus::{Bus, Disconnected, Headers, Message, RequestError, SUBSCRIPTION_QUEUE, Subscription},
    subject::{Pattern, Subject},
};

/// The bus on NATS core. Clones share it.
#[derive(Clone)]
pub struct NatsBus {
    shared: Arc<Shared>,
    dropped: Arc<AtomicU64>,
}

/// Ends a subscription's task, and with it the subscription.
struct Guard(tokio::task::JoinHandle<()>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl NatsBus {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, dropped: Arc::default() }
    }

    /// Messages not delivered because a subscriber's queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn reachable(&self) -> Result<(), Disconnected> {
        if self.shared.is_connected() {
            Ok(())
        } else {
            Err(Disconnected("there is no connection to NATS; it is being made again".into()))
        }
    }
}

fn to_nats(headers: &Headers) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(&**name, value.as_str());
    }
    (!map.is_empty()).then_some(map)
}

/// Sorted by name: NATS headers have no order, and one that differs from message to message helps nobody.
fn from_nats(map: Option<HeaderMap>) -> Headers {
    let Some(map) = map else { return Headers::new() };
    let mut headers: Headers = map
        .iter()
        .flat_map(|(name, values)| {
            let name: Arc<str> = name.to_string().into();
            values.iter().map(move |value| (name.clone(), value.as_str().to_owned()))
        })
        .collect();
    headers.sort_by(|a, b| a.0.cmp(&b.0));
    headers
}

/// None for a subject that is none of ours: NATS allows tokens that we do not.
fn message(message: async_nats::Message) -> Option<Message> {
    Some(Message {
        subject: Subject::new(message.subject.as_str()).ok()?,
        reply: message.reply.and_then(|reply| Subject::new(reply.as_str()).ok()),
        headers: from_nats(message.headers),
        payload: message.payload,
    })
}

#[async_trait]
impl Bus for NatsBus {
    async fn publish(&self, message: Message) -> Result<(), Disconnected> {
        self.reachable()?;
        let client = &self.shared.client;
        let subject = message.subject.as_str().to_owned();
        let headers = to_nats(&message.headers);
        let sent = match (message.reply, headers) {
            (None, None) => client.publish(subject, message.payload).await,
            (None, Some(headers)) => client.publish_with_headers(subject, headers, message.payload).await,
            (Some(reply), None) => {
                client.publish_with_reply(subject, reply.as_str().to_owned(), message.payload).await
            }
            (Some(reply), Some(headers)) => {
                let reply = reply.as_str().to_owned();
                client.publish_with_reply_and_headers(subject, reply, headers, message.payload).await
            }
        };
        sent.map_err(|error| Disconnected(format!("publish on {}: {error}", message.subject)))
    }

    async fn subscribe(&self, pattern: Pattern, queue: Option<&str>) -> Result<Subscription, Disconnected> {
        self.reachable()?;
        let client = &self.shared.client;
        let failed = |error: String| Disconnected(format!("subscribe to {pattern}: {error}"));
        let subject = pattern.as_str().to_owned();
        let mut messages = match queue {
            Some(queue) => client.queue_subscribe(subject, queue.to_owned()).await,
            None => client.subscribe(subject).await,
        }
        .map_err(|error| failed(error.to_string()))?;
        self.shared
            .inbox
            .barrier(self.shared.settings.subscribe_timeout)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let (sender, receiver) = mpsc::channel(SUBSCRIPTION_QUEUE);
        let dropped = self.dropped.clone();
        // The connection lives as long as its subscriptions do.
        let shared = self.shared.clone();
        let task = tokio::spawn(async move {
            let _shared = shared;
            while let Some(next) = messages.next().await {
                let Some(next) = message(next) else { continue };
                match sender.try_send(next) {
                    Ok(()) => {}
                    Err(mpsc::error::TrySendError::Closed(_)) => return,
                    Err(mpsc::error::TrySendError::Full(lost)) => {
                        let dropped = dropped.fetch_add(1, Ordering::Relaxed) + 1;
                        // Once for each time the number doubles: a flood must not become a flood of lines.
                        if dropped.is_power_of_two() {
                            tracing::warn!(subject = %lost.subject, %pattern, dropped, "subscriber too slow: message dropped");
                        }
                    }
                }
            }
        });
        Ok(Subscription::new(receiver, Box::new(Guard(task))))
    }

    async fn request(
        &self,
        subject: Subject,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Message, RequestError> {
        match self.shared.inbox.ask(subject.as_str(), None, payload, timeout).await {
            Ok(answer) => message(answer)
                .ok_or_else(|| RequestError::Disconnected("an answer on a malformed subject".into())),
            Err(AskError::NoResponders) => Err(RequestError::NoResponders(subject)),
            Err(AskError::Timeout(timeout)) => Err(RequestError::Timeout { subject, timeout }),
            Err(error @ (AskError::NotSent(_) | AskError::Broken)) => {
                Err(RequestError::Disconnected(format!("request on {subject}: {error}")))
            }
        }
    }

    fn connected(&self) -> watch::Receiver<bool> {
        self.shared.connected.clone()
    }
}
