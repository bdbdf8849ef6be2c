//! An append that nobody knows the outcome of is settled before anybody is answered: it is stored once, or it is not and says why.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use roomlog_bus::{
    commit::{Commit, StreamId, Writer},
    env::Env,
    events::{Event, RoomCreated},
    ids::{EcId, Incarnation, RoomId, ServiceId, Version},
    journal::{AppendError, Before, Journal, read_all},
    log::{Draft, Log},
    memory_journal::MemoryJournal,
};

/// What becomes of one append.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// It is stored, and the answer is lost.
    StoredUnanswered,
    /// It is lost on the way, and nobody knows.
    Lost,
    /// It is lost, and another writer takes its place meanwhile.
    Overtaken,
}

/// A journal whose next appends have these fates; after them all goes well.
struct Fateful {
    inner: MemoryJournal,
    fates: Mutex<VecDeque<Fate>>,
}

#[async_trait]
impl Before for Fateful {
    fn behind(&self) -> &dyn Journal {
        &self.inner
    }

    async fn append(&self, commit: Commit) -> Result<(), AppendError> {
        let unknown = Err(AppendError::Unknown { stream: commit.stream.clone() });
        let fate = self.fates.lock().unwrap().pop_front();
        match fate {
            None => self.inner.append(commit).await,
            Some(Fate::StoredUnanswered) => {
                self.inner.append(commit).await?;
                unknown
            }
            Some(Fate::Lost) => unknown,
            Some(Fate::Overtaken) => {
                let id = Env::system().draw(|rng| roomlog_bus::commit::CommitId::new(commit.time, rng));
                self.inner.append(Commit { id, ..commit }).await?;
                unknown
            }
        }
    }
}

/// What an append with these fates came to, how long it took, and what the stream then holds.
async fn append(fates: &[Fate]) -> (Result<Arc<Commit>, AppendError>, Duration, Vec<Arc<Commit>>) {
    let journal =
        Arc::new(Fateful { inner: MemoryJournal::new(), fates: Mutex::new(fates.iter().copied().collect()) });
    let writer = Writer { node: StreamId::from(&EcId::new("ec").unwrap()), incarnation: Incarnation(1) };
    let log = Log::new(journal.clone(), Env::system(), writer);
    let stream = StreamId::from(&RoomId::new("room").unwrap());
    let event: Event = RoomCreated {
        service: ServiceId::new("s").unwrap(),
        name: "r".into(),
        eapolicy: Default::default(),
        metadata: Default::default(),
    }
    .into();
    let began = std::time::Instant::now();
    let outcome = log.append(stream.clone(), None, Draft::default(), &[event]).await;
    let stored = read_all(&journal.inner, &stream, Version(1)).await.unwrap();
    (outcome, began.elapsed(), stored)
}

#[tokio::test]
async fn what_was_stored_without_an_answer_is_a_success_and_stored_once() {
    let (outcome, _, stored) = append(&[Fate::StoredUnanswered]).await;
    assert_eq!(stored.len(), 1);
    assert_eq!(outcome.unwrap().id, stored[0].id);
}

#[tokio::test]
async fn what_was_lost_is_appended_again_however_its_second_answer_fares() {
    for fates in [&[Fate::Lost][..], &[Fate::Lost, Fate::Lost, Fate::StoredUnanswered]] {
        let (outcome, _, stored) = append(fates).await;
        assert_eq!(stored.len(), 1, "{fates:?}");
        assert_eq!(outcome.unwrap().id, stored[0].id, "{fates:?}");
    }
}

#[tokio::test]
async fn who_was_overtaken_learns_it_as_a_conflict() {
    let (outcome, _, stored) = append(&[Fate::Overtaken]).await;
    assert_eq!(stored.len(), 1);
    match outcome {
        Err(AppendError::Conflict { head, .. }) => assert_eq!(head, Some(stored[0].head())),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_stays_unknown_is_given_up_as_unknown_once_an_election_would_be_over() {
    let (outcome, took, stored) = append(&[Fate::Lost; 1_000]).await;
    assert!(matches!(outcome, Err(AppendError::Unknown { .. })), "{outcome:?}");
    assert!(stored.is_empty());
    assert!(took > Duration::from_secs(9) && took < Duration::from_secs(12), "{took:?}");
}
