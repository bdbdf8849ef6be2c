//! The bus in memory: one process, no server. The embedded default, and the bus of tests and of the simulation.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    bus::{Bus, Disconnected, Headers, Message, RequestError, SUBSCRIPTION_QUEUE, Subscription},
    subject::{Pattern, Subject},
};

/// The bus in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryBus {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Held only to look up and to push into queues, never across an await.
    table: Mutex<Table>,
    dropped: AtomicU64,
    inboxes: AtomicU64,
}

#[derive(Default)]
struct Table {
    next_id: u64,
    /// Ordered by id, so that delivery order does not depend on a hash seed.
    subscribers: BTreeMap<u64, Subscriber>,
    /// For each pattern and queue group, how many messages it has had: whose turn it is.
    turns: BTreeMap<String, u64>,
}

struct Subscriber {
    pattern: Pattern,
    queue: Option<String>,
    sender: mpsc::Sender<Message>,
}

struct Guard {
    inner: Weak<Inner>,
    id: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.table.lock().unwrap_or_else(PoisonError::into_inner).subscribers.remove(&self.id);
        }
    }
}

impl MemoryBus {
    /// A new, empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Messages not delivered because a subscriber's queue was full.
    pub fn dropped(&self) -> u64 {
        self.inner.dropped.load(Ordering::Relaxed)
    }

    /// Delivers and says to how many.
    fn deliver(&self, message: &Message) -> usize {
        let mut table = self.inner.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut delivered = 0;
        let mut groups: BTreeMap<&str, Vec<&Subscriber>> = BTreeMap::new();
        let Table { subscribers, turns, .. } = &mut *table;
        for subscriber in subscribers.values().filter(|s| s.pattern.matches(&message.subject)) {
            match &subscriber.queue {
                Some(queue) => groups.entry(queue).or_default().push(subscriber),
                None => delivered += self.push(subscriber, message),
            }
        }
        for (queue, members) in groups {
            let turn = turns.entry(queue.to_owned()).or_default();
            let first = *turn as usize % members.len();
            *turn = turn.wrapping_add(1);
            delivered += self.push(members[first], message);
        }
        delivered
    }

    fn push(&self, subscriber: &Subscriber, message: &Message) -> usize {
        match subscriber.sender.try_send(message.clone()) {
            Ok(()) => 1,
            Err(mpsc::error::TrySendError::Closed(_)) => 0,
            Err(mpsc::error::TrySendError::Full(_)) => {
                let dropped = self.inner.dropped.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::warn!(subject = %message.subject, pattern = %subscriber.pattern, dropped, "subscriber too slow: message dropped");
                1
            }
        }
    }

    fn add(&self, pattern: Pattern, queue: Option<&str>, capacity: usize) -> Subscription {
        let (sender, receiver) = mpsc::channel(capacity);
        let mut table = self.inner.table.lock().unwrap_or_else(PoisonError::into_inner);
        let id = table.next_id;
        table.next_id += 1;
        table.subscribers.insert(id, Subscriber { pattern, queue: queue.map(str::to_owned), sender });
        Subscription::new(receiver, Box::new(Guard { inner: Arc::downgrade(&self.inner), id }))
    }
}

#[async_trait]
impl Bus for MemoryBus {
    async fn publish(&self, message: Message) -> Result<(), Disconnected> {
        self.deliver(&message);
        Ok(())
    }

    async fn subscribe(&self, pattern: Pattern, queue: Option<&str>) -> Result<Subscription, Disconnected> {
        Ok(self.add(pattern, queue, SUBSCRIPTION_QUEUE))
    }

    async fn request(
        &self,
        subject: Subject,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Message, RequestError> {
        let id = self.inner.inboxes.fetch_add(1, Ordering::Relaxed);
        let inbox = Subject::new(&format!("_INBOX.{id}")).expect("a number is a token");
        let mut answers = self.add(inbox.clone().into(), None, 1);
        let message =
            Message { subject: subject.clone(), reply: Some(inbox), headers: Headers::new(), payload };
        if self.deliver(&message) == 0 {
            return Err(RequestError::NoResponders(subject));
        }
        match tokio::time::timeout(timeout, answers.next()).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(RequestError::Disconnected("closed".into())),
            Err(_) => Err(RequestError::Timeout { subject, timeout }),
        }
    }
}
