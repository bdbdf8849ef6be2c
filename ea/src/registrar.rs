//! The registrar writes the node's own stream, `ea.<id>`: registration, workers that start and die, the end. One task owns the stream's head.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use roomlog_bus::{
    commit::{Cause, Commit, StreamId, Writer},
    env::Env,
    events::{AdoptedWorker, Event, NodeLeft, NodeRegistered, WorkerStarted},
    ids::{EaId, Incarnation, Version, WorkerIndex},
    journal::{AppendError, Journal, ReadError, read_all},
    log::{Draft, Log},
};
use roomlog_projections::node::NodeState;
use tokio::sync::{mpsc, oneshot};

use crate::settings::EaError;

/// Between two tries while the journal takes nothing.
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// Tries after a conflict before giving up: others append to this stream only that the node is lost or draining, which happens once each.
const CONFLICT_TRIES: u32 = 20;

/// Events waiting to be appended, at most: deaths and starts of workers, which a journal that is away for an hour may collect. What comes on
/// top is dropped with an error in the log of the process.
pub const REGISTRAR_QUEUE: usize = 1_024;

/// What the registrar is asked.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one is asked, done and gone; none are kept")]
pub enum Order {
    /// Append this.
    Append(Event),
    /// Register as a new incarnation with these workers.
    Reregister(Vec<(WorkerIndex, u64)>),
    /// Say that the node leaves, and end.
    Leave(oneshot::Sender<()>),
}

/// What the registrar reports.
#[derive(Debug)]
pub enum Report {
    /// This start of the worker is in the log.
    Announced(WorkerIndex, u64),
    /// The node is registered as this incarnation.
    Registered(Incarnation),
    /// Another process registered under this id.
    Superseded(Incarnation),
}

/// Owner of the node's own stream.
pub struct Registrar {
    id: EaId,
    stream: StreamId,
    journal: Arc<dyn Journal>,
    env: Env,
    state: NodeState,
    /// Highest generation of each worker that the stream has seen.
    generations: BTreeMap<WorkerIndex, u64>,
    /// What this process is registered as; none before it is.
    incarnation: Option<Incarnation>,
    /// The password with which others may ask its workers whether they live.
    probe: String,
    address: String,
    workers: u16,
}

impl Registrar {
    /// Folds the node's own stream.
    pub async fn open(id: EaId, journal: Arc<dyn Journal>, env: Env, probe: String) -> Result<Self, EaError> {
        let mut registrar = Self {
            stream: StreamId::from(&id),
            id,
            journal,
            env,
            state: NodeState::default(),
            generations: BTreeMap::new(),
            incarnation: None,
            probe,
            address: String::new(),
            workers: 0,
        };
        registrar.catch_up().await.map_err(|source| EaError::Read { id: registrar.id.clone(), source })?;
        Ok(registrar)
    }

    /// The fold of the node's own stream.
    pub fn state(&self) -> &NodeState {
        &self.state
    }

    /// Workers that run on know the password of the start before: it stays. Gives it, if there was one.
    pub fn keep_probe(&mut self) -> String {
        if let Some(probe) = &self.state.probe {
            self.probe.clone_from(probe);
        }
        self.probe.clone()
    }

    /// The generation the next worker of this slot has: it rises over the node's whole life.
    pub fn next_generation(&self, worker: WorkerIndex) -> u64 {
        self.generations.get(&worker).map_or(1, |last| last + 1)
    }

    /// Registers the next incarnation with the workers that run on from the one before and those that are ready.
    pub async fn register(
        &mut self,
        address: String,
        workers: u16,
        adopted: &[AdoptedWorker],
        ready: &[(WorkerIndex, u64)],
    ) -> Result<Incarnation, EaError> {
        self.address = address;
        self.workers = workers;
        for _ in 0..CONFLICT_TRIES {
            self.still_ours()?;
            let incarnation = self.state.incarnation.next();
            let registered = NodeRegistered {
                incarnation,
                address: self.address.clone(),
                workers: self.workers,
                version: env!("CARGO_PKG_VERSION").into(),
                probe: Some(self.probe.clone()),
                adopted: adopted.to_vec(),
            };
            let mut events: Vec<Event> = vec![registered.into()];
            events.extend(
                ready.iter().map(|&(worker, generation)| WorkerStarted { worker, generation }.into()),
            );
            match self.append_once(incarnation, &events).await {
                Ok(()) => {
                    self.incarnation = Some(incarnation);
                    tracing::info!(ea = %self.id, %incarnation, address = self.address, adopted = adopted.len(), workers = ready.len(), "EA registered");
                    return Ok(incarnation);
                }
                Err(AppendError::Conflict { .. } | AppendError::Unknown { .. }) => {
                    self.catch_up().await.map_err(|source| EaError::Read { id: self.id.clone(), source })?;
                    // An append whose outcome was unknown has landed after all: no two processes have the same ports.
                    if self.state.incarnation == incarnation && self.state.address == self.address {
                        self.incarnation = Some(incarnation);
                        return Ok(incarnation);
                    }
                }
                Err(source) => return Err(EaError::Append { id: self.id.clone(), source }),
            }
        }
        Err(EaError::Append { id: self.id.clone(), source: self.gave_up() })
    }

    /// Serves orders until told to leave or until the orders end.
    pub async fn run(mut self, mut orders: mpsc::Receiver<Order>, reports: mpsc::Sender<Report>) {
        while let Some(order) = orders.recv().await {
            let report = match order {
                Order::Append(event) => match self.append_surely(&event).await {
                    Ok(()) => match event {
                        Event::WorkerStarted(e) => Report::Announced(e.worker, e.generation),
                        _ => continue,
                    },
                    Err(EaError::Superseded { theirs, .. }) => Report::Superseded(theirs),
                    Err(error) => {
                        tracing::error!(%error, event = event.kind(), "an event of this node is not in the log");
                        continue;
                    }
                },
                Order::Reregister(ready) => match self.reregister(&ready).await {
                    Ok(incarnation) => Report::Registered(incarnation),
                    Err(theirs) => Report::Superseded(theirs),
                },
                Order::Leave(done) => {
                    if let Some(incarnation) = self.incarnation
                        && let Err(error) = self.append_surely(&NodeLeft { incarnation }.into()).await
                    {
                        tracing::warn!(%error, "that this node leaves is not in the log; it will be found lost");
                    }
                    let _ = done.send(());
                    return;
                }
            };
            if reports.send(report).await.is_err() {
                return;
            }
        }
    }

    /// Registers again, however long the journal is away; an error is the incarnation of another process.
    async fn reregister(&mut self, ready: &[(WorkerIndex, u64)]) -> Result<Incarnation, Incarnation> {
        loop {
            match self.register(self.address.clone(), self.workers, &[], ready).await {
                Ok(incarnation) => return Ok(incarnation),
                Err(EaError::Superseded { theirs, .. }) => return Err(theirs),
                Err(error) => {
                    tracing::warn!(%error, "registering again failed; trying on");
                    tokio::time::sleep(RETRY_EVERY).await;
                }
            }
        }
    }

    /// Appends, however long the journal is away.
    async fn append_surely(&mut self, event: &Event) -> Result<(), EaError> {
        let ours = self.incarnation.expect("the registrar runs once the node is registered");
        let mut conflicts = 0;
        loop {
            self.still_ours()?;
            match self.append_once(ours, std::slice::from_ref(event)).await {
                Ok(()) => return Ok(()),
                Err(AppendError::Conflict { .. }) if conflicts < CONFLICT_TRIES => {
                    conflicts += 1;
                    if let Err(error) = self.catch_up().await {
                        tracing::warn!(%error, "the node's own stream cannot be read; trying on");
                        tokio::time::sleep(RETRY_EVERY).await;
                    }
                }
                Err(AppendError::Unavailable { reason }) => {
                    tracing::warn!(reason, event = event.kind(), "the journal takes nothing; trying on");
                    tokio::time::sleep(RETRY_EVERY).await;
                }
                // It may be stored after all, and must not be stored twice: look first.
                Err(AppendError::Unknown { .. }) => {
                    let is_it = |commit: &Arc<Commit>| {
                        commit.writer.incarnation == ours && commit.events.contains(&event.encode())
                    };
                    match self.catch_up().await {
                        Ok(commits) if commits.iter().any(is_it) => return Ok(()),
                        _ => tokio::time::sleep(RETRY_EVERY).await,
                    }
                }
                Err(source) => return Err(EaError::Append { id: self.id.clone(), source }),
            }
        }
    }

    /// Fails once another process has registered under this id.
    fn still_ours(&self) -> Result<(), EaError> {
        let theirs = self.state.incarnation;
        match self.incarnation {
            Some(ours) if theirs > ours => Err(EaError::Superseded { id: self.id.clone(), ours, theirs }),
            _ => Ok(()),
        }
    }

    async fn append_once(&mut self, incarnation: Incarnation, events: &[Event]) -> Result<(), AppendError> {
        let writer = Writer { node: self.stream.clone(), incarnation };
        let log = Log::new(self.journal.clone(), self.env.clone(), writer);
        let draft = Draft { cause: Cause::of("timer"), ..Draft::default() };
        let commit = log.append(self.stream.clone(), self.state.head, draft, events).await?;
        self.fold(&commit);
        Ok(())
    }

    /// Reads what others appended.
    async fn catch_up(&mut self) -> Result<Vec<Arc<Commit>>, ReadError> {
        let from = self.state.head.map_or(Version(1), |h| h.version.next());
        let commits = read_all(self.journal.as_ref(), &self.stream, from).await?;
        commits.iter().for_each(|commit| self.fold(commit));
        Ok(commits)
    }

    fn fold(&mut self, commit: &Commit) {
        for event in commit.events.iter().filter_map(|raw| Event::decode(raw).ok()) {
            let (worker, generation) = match event {
                Event::WorkerStarted(e) => (e.worker, e.generation),
                Event::WorkerDied(e) => (e.worker, e.generation),
                _ => continue,
            };
            let highest = self.generations.entry(worker).or_default();
            *highest = generation.max(*highest);
        }
        if let Err(error) = self.state.apply_commit(commit) {
            tracing::error!(stream = %self.stream, %error, "a commit of the node's own stream was not folded");
        }
    }

    fn gave_up(&self) -> AppendError {
        AppendError::Conflict {
            stream: self.stream.clone(),
            version: self.state.head.map_or(Version(1), |h| h.version.next()),
            head: self.state.head,
        }
    }
}

#[cfg(test)]
mod tests {
    use roomlog_bus::{events::NodeDraining, memory_journal::MemoryJournal};

    use super::*;

    async fn open(journal: &Arc<dyn Journal>) -> Registrar {
        Registrar::open(EaId::new("ea").unwrap(), journal.clone(), Env::system(), String::new())
            .await
            .unwrap()
    }

    fn started(generation: u64) -> Event {
        WorkerStarted { worker: WorkerIndex(0), generation }.into()
    }

    #[tokio::test]
    async fn what_others_append_between_is_read_and_appended_after() {
        let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
        let mut ours = open(&journal).await;
        let incarnation = ours.register("a".into(), 1, &[], &[(WorkerIndex(0), 1)]).await.unwrap();
        let writer = Writer { node: "nuve.n".parse().unwrap(), incarnation: Incarnation(1) };
        let other = Log::new(journal.clone(), Env::system(), writer);
        let draining = NodeDraining { incarnation, deadline: None };
        let head = journal.head(&ours.stream).await.unwrap();
        other.append(ours.stream.clone(), head, Draft::default(), &[draining.into()]).await.unwrap();

        ours.append_surely(&started(2)).await.unwrap();
        assert_eq!(ours.state.head, journal.head(&ours.stream).await.unwrap());
        assert_eq!(ours.state.phase, roomlog_projections::node::NodePhase::Draining);
        assert_eq!(ours.next_generation(WorkerIndex(0)), 3);
    }

    #[tokio::test]
    async fn a_process_whose_id_was_taken_writes_no_more() {
        let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
        let mut older = open(&journal).await;
        let ours = older.register("a".into(), 1, &[], &[]).await.unwrap();
        let theirs = open(&journal).await.register("b".into(), 1, &[], &[]).await.unwrap();
        assert_eq!((ours, theirs), (Incarnation(1), Incarnation(2)));
        let head = journal.head(&older.stream).await.unwrap();
        let superseded = EaError::Superseded { id: older.id.clone(), ours, theirs };
        assert_eq!(older.append_surely(&started(1)).await, Err(superseded.clone()));
        assert_eq!(older.register("a".into(), 1, &[], &[]).await, Err(superseded));
        assert_eq!(journal.head(&older.stream).await.unwrap(), head);
    }
}
