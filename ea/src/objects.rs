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
    commit::Commit,
    ids::{ConsumerId, Epoch, ProducerId, TransportId},
    media::{MediaCommand, MediaObject, RouterInventory},
    ortc::ConsumerLayers,
};
use roomlog_projections::room::RoomState;
use serde::Deserialize;

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

    /// What a worker holds of which nobody here knows how it came there, found at `since`. Until the log has been read all of it is
    /// provisional.
    pub fn found(inventory: &RouterInventory, since: Duration) -> Self {
        let origin = || Origin { epoch: Epoch(0), since, committed: false };
        let transports = inventory.transports.iter().map(|t| (t.id.clone(), origin()));
        let producers = inventory.producers.iter().map(|p| {
            let producer = Producer { origin: origin(), transport: p.transport.clone(), paused: p.paused };
            (p.id.clone(), producer)
        });
        let consumers = inventory.consumers.iter().map(|c| {
            let (transport, producer) = (c.transport.clone(), c.producer.clone());
            let (layers, priority) = (None, 1); // not told: what the log has of them is said again
            let consumer =
                Consumer { origin: origin(), transport, producer, paused: c.paused, layers, priority };
            (c.id.clone(), consumer)
        });
        Self {
            transports: transports.collect(),
            producers: producers.collect(),
            consumers: consumers.collect(),
        }
    }

    /// What is provisional counts as asked for under `epoch`: it is left to expire, or for a higher epoch to pass.
    pub fn asked_under(&mut self, epoch: Epoch) {
        (self.transports.values_mut())
            .chain(self.producers.values_mut().map(|p| &mut p.origin))
            .chain(self.consumers.values_mut().map(|c| &mut c.origin))
            .for_each(|origin| origin.epoch = epoch);
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

    /// Marks as committed what the log has, and says what the worker must be told after a commit that `touched` this much.
    pub fn follow(&mut self, fold: &RoomState, touched: &Touched) -> Vec<MediaCommand> {
        match touched {
            Touched::All => {
                self.mark_committed(fold);
                let passed = |origin: &Origin| !origin.committed && origin.epoch < fold.epoch();
                let mut commands = self.close_where(passed);
                commands.extend(plan(fold, self));
                commands
            }
            Touched::Objects(objects) => {
                let mut commands = Vec::new();
                for (at, object) in objects.iter().enumerate() {
                    if objects[..at].contains(object) {
                        continue; // the state is the same the second time, but it would be told twice
                    }
                    self.mark_one(fold, object);
                    commands.extend(plan_one(fold, self, object));
                }
                commands
            }
        }
    }

    fn mark_one(&mut self, fold: &RoomState, object: &MediaObject) {
        match object {
            MediaObject::Router => {}
            MediaObject::Transport(id) => {
                if let Some(origin) = self.transports.get_mut(id) {
                    origin.committed |= fold.transports.contains_key(id);
                }
            }
            MediaObject::Producer(id) => {
                if let Some(producer) = self.producers.get_mut(id) {
                    producer.origin.committed |= fold.producers.contains_key(id);
                }
            }
            MediaObject::Consumer(id) => {
                if let Some(consumer) = self.consumers.get_mut(id) {
                    consumer.origin.committed |= fold.consumers.contains_key(id);
                }
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
            if closing.takes_producer(producer) || doomed(&producer.origin) {
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
    fn takes_producer(&self, producer: &Producer) -> bool {
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
            _ if closing.takes_producer(producer) => closing.producer(id, producer),
            None if producer.origin.committed => closing.producer(id, producer),
            None => {}
            Some(wanted) => change_producer(&mut changes, id, producer, wanted),
        }
    }
    for (id, consumer) in &held.consumers {
        match fold.consumers.get(id) {
            _ if closing.takes_consumer(consumer) => {}
            None if consumer.origin.committed => closing.consumer(id, consumer),
            None => {}
            Some(wanted) => change_consumer(&mut changes, id, consumer, wanted),
        }
    }
    closing.commands.extend(changes);
    closing.commands
}

/// [`plan`] for one object: a commit that names few objects in a room of thousands must not cost a look at all of them.
pub fn plan_one(fold: &RoomState, held: &Objects, object: &MediaObject) -> Vec<MediaCommand> {
    let mut commands = Vec::new();
    let ended = match object {
        MediaObject::Router => return plan(fold, held),
        MediaObject::Transport(id) => {
            held.transports.get(id).is_some_and(|o| o.committed) && !fold.transports.contains_key(id)
        }
        MediaObject::Producer(id) => match (held.producers.get(id), fold.producers.get(id)) {
            (Some(producer), Some(wanted)) => {
                change_producer(&mut commands, id, producer, wanted);
                false
            }
            (producer, _) => producer.is_some_and(|p| p.origin.committed),
        },
        MediaObject::Consumer(id) => match (held.consumers.get(id), fold.consumers.get(id)) {
            (Some(consumer), Some(wanted)) => {
                change_consumer(&mut commands, id, consumer, wanted);
                false
            }
            (consumer, _) => consumer.is_some_and(|c| c.origin.committed),
        },
    };
    if ended {
        commands.push(MediaCommand::Close { object: object.clone() });
    }
    commands
}

fn change_producer(
    changes: &mut Vec<MediaCommand>,
    id: &ProducerId,
    held: &Producer,
    wanted: &roomlog_projections::room::Producer,
) {
    if wanted.paused != held.paused {
        changes.push(MediaCommand::PauseProducer { producer: id.clone(), paused: wanted.paused });
    }
}

fn change_consumer(
    changes: &mut Vec<MediaCommand>,
    id: &ConsumerId,
    held: &Consumer,
    wanted: &roomlog_projections::room::Consumer,
) {
    // Layers and rank first, so that a consumer that is resumed starts with them.
    if let Some(layers) = wanted.preferred_layers.filter(|layers| Some(*layers) != held.layers) {
        changes.push(MediaCommand::SetPreferredLayers { consumer: id.clone(), layers });
    }
    if wanted.priority != held.priority {
        changes.push(MediaCommand::SetPriority { consumer: id.clone(), priority: wanted.priority });
    }
    if wanted.paused != held.paused {
        changes.push(MediaCommand::PauseConsumer { consumer: id.clone(), paused: wanted.paused });
    }
}

/// What a commit can have changed about objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// These and what hangs on them.
    Objects(Vec<MediaObject>),
    /// Anything.
    All,
}

/// Reads from a commit what it can have changed, without reading the events' other fields.
pub fn touched(commit: &Commit) -> Touched {
    /// The names an event about an object may have.
    #[derive(Deserialize)]
    struct Names {
        transport: Option<TransportId>,
        producer: Option<ProducerId>,
        consumer: Option<ConsumerId>,
    }
    let mut objects = Vec::new();
    for event in &commit.events {
        let kind = event.kind.as_str();
        let about = ["Transport", "Producer", "Consumer"].into_iter().find(|about| kind.starts_with(about));
        match (about, kind) {
            // `ConsumerRefused` names no consumer, and the others nothing that a worker holds.
            (_, "ConsumerRefused" | "ClientAdmitted" | "ClientBound" | "ClientAttached" | "ClientJoined") => {
            }
            (_, "ClientDisconnected" | "ClientResumed" | "DisplayNameChanged") => {}
            (Some(about), _) => {
                let object = event.data.decode::<Names>().ok().and_then(|names| match about {
                    "Transport" => names.transport.map(MediaObject::Transport),
                    "Producer" => names.producer.map(MediaObject::Producer),
                    _ => names.consumer.map(MediaObject::Consumer),
                });
                match object {
                    Some(object) => objects.push(object),
                    None => return Touched::All,
                }
            }
            (None, _) => return Touched::All,
        }
    }
    Touched::Objects(objects)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use roomlog_bus::{events::*, ids::MediaEpoch, time::Timestamp};

    use super::*;
    use crate::testing::*;

    /// A room of `a` and `b`, and the belief of an EA that has made it.
    fn call() -> (Pen, RoomState, Objects) {
        let mut pen = Pen::new("room.r".parse().unwrap());
        let mut fold = RoomState::default();
        let mut held = Objects::default();
        let events = [
            placed(1),
            admitted("a"),
            admitted("b"),
            transport_created("a", "ta"),
            transport_created("b", "tb"),
            producer_created("a", "ta", "p"),
            producer_created("a", "ta", "q"),
            consumer_created("b", "tb", "cp", "p"),
            consumer_created("b", "tb", "cq", "q"),
        ];
        fold.apply_commit(&pen.write(&events)).unwrap();
        let commands = [
            create("ta"),
            create("tb"),
            produce("ta", "p"),
            produce("ta", "q"),
            consume("tb", "cp", "p"),
            consume("tb", "cq", "q"),
        ];
        let origin = || Origin { epoch: Epoch(1), since: Duration::ZERO, committed: false };
        commands.iter().for_each(|command| held.sent(command, origin));
        held.mark_committed(&fold);
        (pen, fold, held)
    }

    #[test]
    fn what_goes_with_its_parent_is_not_closed_by_itself() {
        let (_, mut fold, held) = call();
        fold.apply(&left("a"), Timestamp(1));
        assert_eq!(plan(&fold, &held), [close_of(MediaObject::Transport(transport("ta")))]);
        let (_, mut fold, held) = call();
        fold.apply(
            &ProducerClosed { producer: producer("p"), reason: Default::default() }.into(),
            Timestamp(1),
        );
        assert_eq!(plan(&fold, &held), [close_of(MediaObject::Producer(producer("p")))]);
    }

    #[test]
    fn a_resume_is_told_after_the_layers_it_should_start_with() {
        let (_, mut fold, held) = call();
        let layers = ConsumerLayers { spatial_layer: 1, temporal_layer: None };
        let consumer = consumer("cp");
        let events: [Event; 2] = [
            ConsumerResumed { consumer: consumer.clone() }.into(),
            ConsumerLayersPreferred { consumer: consumer.clone(), layers }.into(),
        ];
        events.iter().for_each(|event| fold.apply(event, Timestamp(1)));
        let expected = [
            MediaCommand::SetPreferredLayers { consumer: consumer.clone(), layers },
            MediaCommand::PauseConsumer { consumer, paused: false },
        ];
        assert_eq!(plan(&fold, &held), expected);
    }

    #[test]
    fn an_object_made_and_ended_before_it_was_seen_is_provisional_and_left_to_expire() {
        let (_, fold, mut held) = call();
        held.sent(&create("late"), || Origin { epoch: Epoch(1), since: Duration::ZERO, committed: false });
        assert_eq!(plan(&fold, &held), []);
    }

    fn event() -> impl Strategy<Value = Event> {
        let consumer_id = prop_oneof![Just("cp"), Just("cq"), Just("none")];
        let producer_id = prop_oneof![Just("p"), Just("q"), Just("none")];
        prop_oneof![
            consumer_id.clone().prop_map(|c| ConsumerResumed { consumer: consumer(c) }.into()),
            consumer_id.clone().prop_map(|c| ConsumerPaused { consumer: consumer(c) }.into()),
            (consumer_id.clone(), 1..9u8).prop_map(|(c, priority)| ConsumerPrioritySet {
                consumer: consumer(c),
                priority
            }
            .into()),
            (consumer_id.clone(), 0..3u8).prop_map(|(c, spatial_layer)| {
                let layers = ConsumerLayers { spatial_layer, temporal_layer: None };
                ConsumerLayersPreferred { consumer: consumer(c), layers }.into()
            }),
            consumer_id.prop_map(|c| ConsumerClosed { consumer: consumer(c), reason: "x".into() }.into()),
            producer_id.clone().prop_map(|p| ProducerPaused { producer: producer(p) }.into()),
            producer_id.clone().prop_map(|p| ProducerResumed { producer: producer(p) }.into()),
            producer_id.prop_map(|p| ProducerClosed { producer: producer(p), reason: "x".into() }.into()),
            prop_oneof![Just("ta"), Just("tb")].prop_map(|t| TransportClosed {
                transport: transport(t),
                reason: "x".into()
            }
            .into()),
            Just(left("a")),
            Just(left("b")),
            Just(admitted("c")),
            Just(RoomClosed { reason: "x".into() }.into()),
            Just(placed(2)),
            Just(
                MediaMoved {
                    from: None,
                    to: None,
                    reason: "x".into(),
                    media_epoch: MediaEpoch(2),
                    candidates: Vec::new()
                }
                .into()
            ),
        ]
    }

    proptest! {
        /// After any commits, planning only for what each one names leaves nothing for a full plan to do.
        #[test]
        fn planning_for_what_a_commit_names_is_enough(commits in prop::collection::vec(prop::collection::vec(event(), 1..4), 0..12)) {
            let (mut pen, mut fold, mut held) = call();
            for events in commits {
                let commit = pen.write(&events);
                fold.apply_commit(&commit).unwrap();
                for command in held.follow(&fold, &touched(&commit)) {
                    held.sent(&command, || unreachable!());
                }
                prop_assert_eq!(plan(&fold, &held), Vec::new());
            }
        }

        /// A worker that keeps books and does what is planned holds in the end what the log says.
        #[test]
        fn a_worker_that_does_what_is_planned_holds_what_the_log_says(events in prop::collection::vec(event(), 0..30)) {
            let (_, mut fold, mut held) = call();
            let mut books = Books::default();
            let r = room("r");
            let made = [
                MediaCommand::CreateRouter, create("ta"), create("tb"), produce("ta", "p"), produce("ta", "q"),
                consume("tb", "cp", "p"), consume("tb", "cq", "q"),
            ];
            made.iter().for_each(|command| { books.answer(&r, command).unwrap(); });
            for event in events {
                fold.apply(&event, Timestamp(1));
                for command in plan(&fold, &held) {
                    books.answer(&r, &command).unwrap();
                    held.sent(&command, || unreachable!());
                }
                let inventory = &books.routers[&r];
                let transports: Vec<_> = inventory.transports.iter().map(|t| &t.id).collect();
                prop_assert_eq!(transports, fold.transports.keys().collect::<Vec<_>>());
                let producers: Vec<_> = inventory.producers.iter().map(|p| (&p.id, p.paused)).collect();
                prop_assert_eq!(producers, fold.producers.iter().map(|(id, p)| (id, p.paused)).collect::<Vec<_>>());
                let consumers: Vec<_> = inventory.consumers.iter().map(|c| (&c.id, c.paused)).collect();
                prop_assert_eq!(consumers, fold.consumers.iter().map(|(id, c)| (id, c.paused)).collect::<Vec<_>>());
            }
        }
    }
}
