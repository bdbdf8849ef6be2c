//! The bus as one node of the simulation has it.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use roomlog_bus::{
    bus::{Bus, Disconnected, Headers, Message, RequestError, SUBSCRIPTION_QUEUE, Subscription},
    subject::{Pattern, Subject},
};
use tokio::sync::{mpsc, watch};

use super::world::{Subscriber, World};

/// One node's bus.
pub struct SimBus {
    world: Arc<World>,
    node: usize,
}

struct Guard {
    world: Weak<World>,
    id: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(world) = self.world.upgrade() {
            world.lock().subscribers.remove(&self.id);
        }
    }
}

impl SimBus {
    /// The bus of `node`.
    pub fn new(world: Arc<World>, node: usize) -> Self {
        Self { world, node }
    }

    fn away(&self) -> Result<(), Disconnected> {
        match self.world.lock().nodes[self.node].knows {
            true => Err(Disconnected("cut off".into())),
            false => Ok(()),
        }
    }

    fn add(&self, pattern: Pattern, queue: Option<&str>, capacity: usize) -> Subscription {
        let (sender, receiver) = mpsc::channel(capacity);
        let mut world = self.world.lock();
        let id = world.id();
        let subscriber = Subscriber { node: self.node, pattern, queue: queue.map(str::to_owned), sender };
        world.subscribers.insert(id, subscriber);
        Subscription::new(receiver, Box::new(Guard { world: Arc::downgrade(&self.world), id }))
    }
}

#[async_trait]
impl Bus for SimBus {
    async fn publish(&self, message: Message) -> Result<(), Disconnected> {
        self.away()?;
        let mut world = self.world.lock();
        if world.nodes[self.node].cut {
            world.fault("message of a node that is cut off");
        } else {
            world.publish(self.node, &message);
        }
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
        self.away().map_err(|Disconnected(why)| RequestError::Disconnected(why))?;
        let (mut answers, delay) = {
            let id = self.world.lock().id();
            let inbox = Subject::new(&format!("_INBOX.{id}")).expect("a number is a token");
            let answers = self.add(inbox.clone().into(), None, 1);
            let message =
                Message { subject: subject.clone(), reply: Some(inbox), headers: Headers::new(), payload };
            let mut world = self.world.lock();
            let cut = world.nodes[self.node].cut;
            let nobody = !cut && world.publish(self.node, &message) == 0;
            let delay = nobody.then(|| world.delay());
            (answers, delay)
        };
        if let Some(delay) = delay {
            tokio::time::sleep(Duration::from_micros(delay)).await;
            return Err(RequestError::NoResponders(subject));
        }
        match tokio::time::timeout(timeout, answers.next()).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(RequestError::Disconnected("closed".into())),
            Err(_) => Err(RequestError::Timeout { subject, timeout }),
        }
    }

    fn connected(&self) -> watch::Receiver<bool> {
        let mut world = self.world.lock();
        let node = &mut world.nodes[self.node];
        let (sender, receiver) = watch::channel(!node.knows);
        node.connected.push(sender);
        receiver
    }
}
