//! Who looks on while something is done to a cell: a room that must not notice, the journal afterwards, and the EC's counters.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use roomlog_bus::{
    commit::{Commit, StreamKind},
    events::Event,
    journal::{Cursor, Followed},
};
use roomlog_ec::decide;
use roomlog_projections::{
    room::RoomState,
    verify::{Summary, Verifier},
};
use serde_json::json;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::cell::{Cell, eventually};

/// A bystander's request is answered within this, whatever is done to others.
pub const BYSTANDER_WITHIN: Duration = Duration::from_secs(1);

/// A call of two in a room of its own that goes on until [`Bystander::finish`].
pub struct Bystander {
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<(usize, Duration)>>,
}

impl Bystander {
    /// Starts it: from now on, one of the two asks for something every 50 ms, and the other has to hear of it.
    pub async fn start(cell: &Cell) -> anyhow::Result<Self> {
        let (mut ann, _, _) = cell.enter("bystanders", "Ann").await?;
        let (send, _) = ann.join("Ann").await?;
        let (mut bob, _, _) = cell.enter("bystanders", "Bob").await?;
        bob.join("Bob").await?;
        ann.produce_video(&send, 77_000).await?;
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let (mut asked, mut worst) = (0, Duration::ZERO);
            while stopped.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                asked += 1;
                let began = Instant::now();
                ann.ask("changeDisplayName", json!({ "displayName": format!("Ann {asked}") })).await?;
                let took = began.elapsed();
                ensure!(took < BYSTANDER_WITHIN, "a bystander waited {took:?} for its answer");
                worst = worst.max(took);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let heard = || bob.heard_of("peerDisplayNameChanged").len();
            eventually("a bystander hears of every change", BYSTANDER_WITHIN, || async {
                (heard() == asked).then_some(())
            })
            .await
            .with_context(|| format!("it heard {} of {asked}", heard()))?;
            ann.leave().await;
            bob.leave().await;
            Ok((asked, worst))
        });
        Ok(Self { stop, task })
    }

    /// Ends the call; fails if the two noticed anything. Gives the longest wait for an answer.
    pub async fn finish(self) -> anyhow::Result<Duration> {
        let _ = self.stop.send(());
        let (asked, worst) = self.task.await?.context("the bystanders noticed")?;
        println!("bystanders: {asked} requests, the slowest answered in {worst:?}");
        Ok(worst)
    }
}

/// Verifies the whole journal, making every decision again; fails with the findings if there are errors.
pub async fn journal_is_clean(cell: &Cell) -> anyhow::Result<Summary> {
    let mut verifier = Verifier::new(Some(&decide_again));
    let mut follow = cell.journal.follow(Cursor::default()).await?;
    loop {
        match follow.next().await {
            Some(Followed::Entry(entry)) => verifier.commit(&entry.commit),
            Some(Followed::CaughtUp) => break,
            Some(Followed::Broken(error)) => bail!("the journal cannot be followed: {error}"),
            None => bail!("the journal was closed"),
        }
    }
    let verdict = verifier.finish();
    let findings: Vec<String> = verdict.findings.iter().map(ToString::to_string).collect();
    ensure!(verdict.errors() == 0, "the journal is not clean:\n{}", findings.join("\n"));
    println!("journal: {}", verdict.summary);
    Ok(verdict.summary)
}

fn decide_again(state: &RoomState, commit: &Commit) -> Option<Result<Vec<Event>, String>> {
    if commit.writer.node.kind() != StreamKind::Ec || commit.command.0.is_empty() {
        return None;
    }
    let again = || {
        let command: decide::Command = commit.command.decode().map_err(|error| error.to_string())?;
        let facts: decide::Facts = commit.facts.decode().map_err(|error| error.to_string())?;
        decide::decide(state, &command, &facts).map_err(|refusal| refusal.to_string())
    };
    Some(again())
}

/// A counter of the EC, by its name and labels as they are rendered; 0 while it is not there.
pub fn counted(cell: &Cell, series: &str) -> u64 {
    let metrics = cell.ec.metrics();
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// How often requests were refused with `code`.
pub fn refused(cell: &Cell, code: u16) -> u64 {
    counted(cell, &format!("roomlog_ec_requests_refused{{code=\"{code}\"}}"))
}

/// How many sockets ended for this reason.
pub fn closed(cell: &Cell, why: &str) -> u64 {
    counted(cell, &format!("roomlog_ec_sockets_closed{{why=\"{why}\"}}"))
}
