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
use futures::{StreamExt, stream::FuturesUnordered};
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

/// How long an answer may take before the same is asked once more. A server that does not lead a stream drops what is asked of it without a
/// word, so while a leader is elected a question just gets lost. Default 1 s: nothing is asked twice on a cluster that is well, where the
/// slowest answers take tens of milliseconds, and users wait at most this much longer than the election.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

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

    /// Asks, and asks the same once more every [`AGAIN_AFTER`] while no answer comes; the first answer is taken, whichever question it is to.
    /// Only for what may be said twice. Where it was said more than once, an answer that is none by `counts`, and any word of failure, leave
    /// open what became of the others, and are passed over.
    pub(super) async fn ask_again(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
        timeout: Duration,
        counts: impl Fn(&Message) -> bool,
    ) -> Result<Message, AskError> {
        let mut asked = FuturesUnordered::new();
        let answer = tokio::time::timeout(timeout, async {
            for tries in 1_u64.. {
                asked.push(self.ask_for_ever(subject, headers.clone(), payload.clone()));
                let only = tries == 1;
                let again = tokio::time::sleep(AGAIN_AFTER);
                tokio::pin!(again);
                loop {
                    tokio::select! {
                        Some(answer) = asked.next() => match answer {
                            Ok(message) if only || counts(&message) => return Ok(message),
                            Err(AskError::Broken) => return Err(AskError::Broken),
                            Err(error) if only => return Err(error),
                            Ok(_) | Err(_) => {}
                        },
                        () = &mut again => break,
                    }
                }
            }
            unreachable!("it is asked for as long as the time lasts")
        });
        answer.await.unwrap_or(Err(AskError::Timeout(timeout)))
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
