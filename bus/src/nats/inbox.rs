//! Answers to requests: one subscription for the whole connection, a number for each request.
//!
//! The client library has the same, but keeps the entry of every request that was never answered. This one forgets a request when its
//! asker does, and is a mirror too: a message to oneself that has come back proves that the server has seen all that was sent before.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, HeaderMap, Message, StatusCode};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{oneshot, watch};

use super::connection::ConnectionState;

/// How asking failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AskError {
    /// Nothing was sent.
    #[error("{0}")]
    NotSent(String),
    /// It was sent, and the server says that nobody listens.
    #[error("nobody listens")]
    NoResponders,
    /// It was sent, and no answer came in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// It was sent, then the connection broke.
    #[error("the connection broke before an answer came")]
    Broken,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Message>>>>;

/// Requests of one connection that wait for an answer.
pub(super) struct Inbox {
    client: Client,
    state: watch::Receiver<ConnectionState>,
    prefix: String,
    next: AtomicU64,
    waiting: Waiting,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Forgets a request when its asker goes away.
struct Forget<'a> {
    waiting: &'a Waiting,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.waiting).remove(&self.number);
    }
}

fn lock(waiting: &Waiting) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Message>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inbox {
    pub(super) async fn open(
        client: Client,
        state: watch::Receiver<ConnectionState>,
    ) -> Result<Self, String> {
        let prefix = client.new_inbox();
        let mut answers = client.subscribe(format!("{prefix}.*")).await.map_err(|error| error.to_string())?;
        let waiting = Waiting::default();
        let reader = tokio::spawn({
            let (waiting, skip) = (waiting.clone(), prefix.len() + 1);
            async move {
                while let Some(answer) = answers.next().await {
                    let number = answer.subject.as_str().get(skip..).and_then(|n| n.parse().ok());
                    let asker = number.and_then(|number: u64| lock(&waiting).remove(&number));
                    if let Some(asker) = asker {
                        let _ = asker.send(answer); // gone: nobody wants to know any more
                    }
                }
            }
        });
        Ok(Self { client, state, prefix, next: AtomicU64::new(0), waiting, reader })
    }

    /// Publishes with a reply address of ours and waits for what comes there.
    pub(super) async fn ask(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Message, AskError> {
        match tokio::time::timeout(timeout, self.ask_for_ever(subject, headers, payload)).await {
            Ok(answer) => answer,
            Err(_) => Err(AskError::Timeout(timeout)),
        }
    }

    async fn ask_for_ever(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Message, AskError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let reply = format!("{}.{number}", self.prefix);
        let (client, subject) = (&self.client, subject.to_owned());
        self.exchange(number, async {
            match headers {
                Some(headers) => {
                    client.publish_with_reply_and_headers(subject, reply, headers, payload).await
                }
                None => client.publish_with_reply(subject, reply, payload).await,
            }
        })
        .await
    }

    /// Returns once the server has seen all that was sent on this connection before.
    pub(super) async fn barrier(&self, timeout: Duration) -> Result<(), AskError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let own = format!("{}.{number}", self.prefix);
        let back = self.exchange(number, self.client.publish(own, Bytes::new()));
        match tokio::time::timeout(timeout, back).await {
            Ok(back) => back.map(drop),
            Err(_) => Err(AskError::Timeout(timeout)),
        }
    }

    /// Does `send` and waits for what comes to the address with this `number`.
    async fn exchange(
        &self,
        number: u64,
        send: impl Future<Output = Result<(), async_nats::PublishError>>,
    ) -> Result<Message, AskError> {
        let mut state = self.state.clone();
        let connection = state.borrow_and_update().connects();
        if self.client.connection_state() != async_nats::connection::State::Connected {
            return Err(AskError::NotSent("there is no connection to NATS".into()));
        }
        let (sender, answer) = oneshot::channel();
        lock(&self.waiting).insert(number, sender);
        let _forget = Forget { waiting: &self.waiting, number };
        send.await.map_err(|error| AskError::NotSent(error.to_string()))?;
        tokio::select! {
            biased;
            answer = answer => match answer {
                Ok(answer) if answer.status == Some(StatusCode::NO_RESPONDERS) => Err(AskError::NoResponders),
                Ok(answer) => Ok(answer),
                Err(_) => Err(AskError::Broken),
            },
            _ = state.wait_for(|now| now.connects() != connection || !now.is_connected()) => Err(AskError::Broken),
        }
    }
}
