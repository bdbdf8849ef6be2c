//! What one room's router is known to hold, and what must be told to the worker so that it follows the log.
//!
//! [`Objects`] is the EA's belief about the worker: everything it asked for and did not close since. [`plan`] compares it with the fold of
//! the room's stream. It is level-triggered: it looks at what is, not at what changed, so a command that was lost is planned again once an
//! inventory has corrected the belief ([`Objects::observe`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use roomlog_bus::{
    ids::{ConsumerId, Epoch, ProducerId, TransportId},
    media::{MediaCommand, MediaObject, RouterInventory},
    ortc::ConsumerLayers,
};
use roomlog_projections::room::RoomState;

/// Where an object comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Ownership epoch of the EC that asked for it.
    pub epoch: Epoch,
    /// When it was asked for, on the EA's monotonic clock.
    pub since: Duration,
    /// The log has had it: from then on only the log ends it. Before, it is provisional.
    pub committed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Producer {
    origin: Origin,
    transport: TransportId,
    paused: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Consumer {
    origin: Origin,
    transport: TransportId,
    producer: ProducerId,
    paused: bool,
    layers: Option<ConsumerLayers>,
    priority: u8,
}

/// What a router is known to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    transports: BTreeMap<TransportId, Origin>,
    producers: BTreeMap<ProducerId, Producer>,
    consumers: BTreeMap<ConsumerId, Consumer>,
}

/// The object a command makes, if it makes one.
pub fn created_by(command: &MediaCommand) -> Option<MediaObject> {
    match command {
        MediaCommand::CreateTransport { transport } => Some(MediaObject::Transport(transport.clone())),
        MediaCommand::Produce { producer, .. } => Some(MediaObject::Producer(producer.clone())),
        MediaCommand::Consume { consumer, .. } => Some(MediaObject::Consumer(consumer.clone())),
        _ => None,
    }
}

impl Objects {
    /// Whether the object is held.
    pub fn contains(&self, object: &MediaObject) -> bool {
        self.origin(object).is_some()
    }

    /// Where a held object comes from; none for one that is not held, and for the router.
    pub fn origin(&self, object: &MediaObject) -> Option<&Origin> {
        match object {
            MediaObject::Router => None,
            MediaObject::Transport(id) => self.transports.get(id),
            MediaObject::Producer(id) => self.producers.get(id).map(|p| &p.origin),
            MediaObject::Consumer(id) => self.consumers.get(id).map(|c| &c.origin),
        }
    }

    /// Counts as held what `command` makes, and as done what it changes. Call it for every command that goes to the worker.
    pub fn sent(&mut self, command: &MediaCommand, origin: impl FnOnce() -> Origin) {
        match command {
            MediaCommand::CreateTransport { transport } => {
                self.transports.entry(transport.clone()).or_insert_with(origin);
            }
            MediaCommand::Produce { transport, producer, paused, .. } => {
                self.producers.entry(producer.clone()).or_insert_with(|| Producer {
                    origin: origin(),
                    transport: transport.clone(),
                    paused: *paused,
                });
            }
            MediaCommand::Consume { transport, consumer, producer, .. } => {
                self.consumers.entry(consumer.clone()).or_insert_with(|| Consumer {
                    origin: origin(),
                    transport: transport.clone(),
                    producer: producer.clone(),
                    paused: true,
                    layers: None,
                    priority: 1,
                });
            }
            MediaCommand::SetPreferredLayers { consumer, layers } => {
                if let Some(consumer) = self.consumers.get_mut(consumer) {
                    consumer.layers = Some(*layers);
                }
            }
            MediaCommand::SetPriority { consumer, priority } => {
                if let Some(consumer) = self.consumers.get_mut(consumer) {
                    consumer.priority = *priority;
                }
            }
            MediaCommand::PauseProducer { producer, paused } => {
                if let Some(producer) = self.producers.get_mut(producer) {
                    producer.paused = *paused;
                }
            }
            MediaCommand::PauseConsumer { consumer, paused } => {
                if let Some(consumer) = self.consumers.get_mut(consumer) {
                    consumer.paused = *paused;
                }
            }
            MediaCommand::Close { object } => self.remove(object),
            MediaCommand::CreateRouter
            | MediaCommand::ConnectTransport { .. }
            | MediaCommand::RestartIce { .. }
            | MediaCommand::RequestKeyFrame { .. }
            | MediaCommand::GetStats { .. }
            | MediaCommand::Inventory => {}
        }
    }

    /// The object is gone, and what hung on it.
    pub fn remove(&mut self, object: &MediaObject) {
        match object {
            MediaObject::Router => *self = Self::default(),
            MediaObject::Transport(id) => {
                self.transports.remove(id);
                self.consumers.retain(|_, c| &c.transport != id);
                let producers: Vec<_> = self
                    .producers
                    .iter()
                    .filter(|(_, p)| &p.transport == id)
                    .map(|(id, _)| id.clone())
                    .collect();
                producers.into_iter().for_each(|id| self.remove(&MediaObject::Producer(id)));
            }
            MediaObject::Producer(id) => {
                self.producers.remove(id);
                self.consumers.retain(|_, c| &c.producer != id);
            }
            MediaObject::Consumer(id) => {
                self.consumers.remove(id);
            }
        }
    }

    /// What the fold has is committed.
    pub fn mark_committed(&mut self, fold: &RoomState) {
        for (id, origin) in &mut self.transports {
            origin.committed |= fold.transports.contains_key(id);
        }
        for (id, producer) in &mut self.producers {
            producer.origin.committed |= fold.producers.contains_key(id);
        }
        for (id, consumer) in &mut self.consumers {
            consumer.origin.committed |= fold.consumers.contains_key(id);
        }
    }

    /// Closes for every object whose origin is `doomed`; what goes with its transport or producer is not named twice.
    pub fn close_where(&self, doomed: impl Fn(&Origin) -> bool) -> Vec<MediaCommand> {
        let mut closing = Closing::default();
        for (id, _) in self.transports.iter().filter(|(_, origin)| doomed(origin)) {
            closing.transport(id);
        }
        for (id, producer) in &self.producers {
            if closing.takes_producer(id, producer) || doomed(&producer.origin) {
                closing.producer(id, producer);
            }
        }
        for (id, consumer) in self.consumers.iter().filter(|(_, c)| doomed(&c.origin)) {
            closing.consumer(id, consumer);
        }
        closing.commands
    }

    /// Objects that are not committed.
    pub fn provisional(&self) -> impl Iterator<Item = &Origin> {
        (self.transports.values())
            .chain(self.producers.values().map(|p| &p.origin))
            .chain(self.consumers.values().map(|c| &c.origin))
            .filter(|origin| !origin.committed)
    }

    /// Corrects the belief by what the worker says it holds. `asked` is when the inventory was asked for: what was asked for later may be
    /// missing from it. Gives back the closes of what the worker holds, nobody asked for and the log does not have.
    pub fn observe(
        &mut self,
        inventory: &RouterInventory,
        fold: &RoomState,
        asked: Duration,
    ) -> Vec<MediaCommand> {
        let origin = || Origin { epoch: fold.epoch(), since: asked, committed: true };
        let mut ghosts = Self::default();

        let seen: BTreeSet<_> = inventory.transports.iter().map(|t| &t.id).collect();
        self.transports.retain(|id, origin| origin.since >= asked || seen.contains(id));
        for transport in &inventory.transports {
            let home = if fold.transports.contains_key(&transport.id) { &mut *self } else { &mut ghosts };
            home.transports.entry(transport.id.clone()).or_insert_with(origin);
        }
        ghosts.transports.retain(|id, _| !self.transports.contains_key(id));

        let seen: BTreeMap<_, _> = inventory.producers.iter().map(|p| (&p.id, p.paused)).collect();
        self.producers.retain(|id, p| p.origin.since >= asked || seen.contains_key(id));
        for (id, producer) in &mut self.producers {
            producer.paused = seen.get(id).copied().unwrap_or(producer.paused);
        }
        for p in &inventory.producers {
            let home = if fold.producers.contains_key(&p.id) { &mut *self } else { &mut ghosts };
            home.producers.entry(p.id.clone()).or_insert_with(|| Producer {
                origin: origin(),
                transport: p.transport.clone(),
                paused: p.paused,
            });
        }
        ghosts.producers.retain(|id, _| !self.producers.contains_key(id));

        let seen: BTreeMap<_, _> = inventory.consumers.iter().map(|c| (&c.id, c.paused)).collect();
        self.consumers.retain(|id, c| c.origin.since >= asked || seen.contains_key(id));
        for (id, consumer) in &mut self.consumers {
            consumer.paused = seen.get(id).copied().unwrap_or(consumer.paused);
        }
        for c in &inventory.consumers {
            let home = if fold.consumers.contains_key(&c.id) { &mut *self } else { &mut ghosts };
            home.consumers.entry(c.id.clone()).or_insert_with(|| Consumer {
                origin: origin(),
                transport: c.transport.clone(),
                producer: c.producer.clone(),
                paused: c.paused,
                layers: None,
                priority: 1,
            });
        }
        ghosts.consumers.retain(|id, _| !self.consumers.contains_key(id));

        ghosts.close_where(|_| true)
    }
}

/// What is being closed, so that nothing is closed twice.
#[derive(Default)]
struct Closing {
    transports: BTreeSet<TransportId>,
    producers: BTreeSet<ProducerId>,
    commands: Vec<MediaCommand>,
}

impl Closing {
    fn transport(&mut self, id: &TransportId) {
        self.transports.insert(id.clone());
        self.commands.push(MediaCommand::Close { object: MediaObject::Transport(id.clone()) });
    }

    /// Whether the producer goes with its transport.
    fn takes_producer(&self, _id: &ProducerId, producer: &Producer) -> bool {
        self.transports.contains(&producer.transport)
    }

    fn producer(&mut self, id: &ProducerId, producer: &Producer) {
        if !self.transports.contains(&producer.transport) {
            self.commands.push(MediaCommand::Close { object: MediaObject::Producer(id.clone()) });
        }
        self.producers.insert(id.clone());
    }

    /// Whether the consumer goes with its transport or its producer.
    fn takes_consumer(&self, consumer: &Consumer) -> bool {
        self.transports.contains(&consumer.transport) || self.producers.contains(&consumer.producer)
    }

    fn consumer(&mut self, id: &ConsumerId, consumer: &Consumer) {
        if !self.takes_consumer(consumer) {
            self.commands.push(MediaCommand::Close { object: MediaObject::Consumer(id.clone()) });
        }
    }
}

/// What the worker must be told so that it holds what the log says: committed objects that the log has ended are closed, and those that are
/// there are paused, resumed and set as the log says. What is provisional is left alone. Parents before children, closes as high as they go.
pub fn plan(fold: &RoomState, held: &Objects) -> Vec<MediaCommand> {
    let mut closing = Closing::default();
    let mut changes = Vec::new();
    for (id, origin) in &held.transports {
        if origin.committed && !fold.transports.contains_key(id) {
            closing.transport(id);
        }
    }
    for (id, producer) in &held.producers {
        match fold.producers.get(id) {
            _ if closing.takes_producer(id, producer) => closing.producer(id, producer),
            None if producer.origin.committed => closing.producer(id, producer),
            Some(wanted) if wanted.paused != producer.paused => {
                changes.push(MediaCommand::PauseProducer { producer: id.clone(), paused: wanted.paused });
            }
            _ => {}
        }
    }
    for (id, consumer) in &held.consumers {
        match fold.consumers.get(id) {
            _ if closing.takes_consumer(consumer) => {}
            None if consumer.origin.committed => closing.consumer(id, consumer),
            Some(wanted) => {
                // Layers and rank first, so that a consumer that is resumed starts with them.
                if let Some(layers) = wanted.preferred_layers.filter(|l| Some(*l) != consumer.layers) {
                    changes.push(MediaCommand::SetPreferredLayers { consumer: id.clone(), layers });
                }
                if wanted.priority != consumer.priority {
                    changes
                        .push(MediaCommand::SetPriority { consumer: id.clone(), priority: wanted.priority });
                }
                if wanted.paused != consumer.paused {
                    changes.push(MediaCommand::PauseConsumer { consumer: id.clone(), paused: wanted.paused });
                }
            }
            None => {}
        }
    }
    closing.commands.extend(changes);
    closing.commands
}
