//! Rooms spread over EAs and workers as the design says (invariants 5 to 7).

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, stream};
use roomlog_bus::ids::WorkerIndex;
use roomlog_tests::cell::{Cell, Shape, eventually};

/// Rooms opened at once.
const ROOMS: usize = 1_000;
/// Calls under way at once: enough that assignments overlap all the time, few enough for the machine's file handles.
const AT_ONCE: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_rooms_at_once_spread_evenly_and_leave_nothing_behind() -> anyhow::Result<()> {
    let cell = Cell::start(Shape { eas: vec![2, 2, 4], ..Shape::default() }).await?;
    let opened: Vec<_> = stream::iter(0..ROOMS)
        .map(|i| {
            let cell = &cell;
            async move {
                let name = format!("room-{i}");
                let (peer, room, _) = cell.enter(&name, "Ann").await?;
                anyhow::Ok((peer, room))
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let opened = opened.into_iter().collect::<anyhow::Result<Vec<_>>>()?;

    let mut per_ea = Vec::new();
    for ea in &cell.eas {
        let rooms = cell.rooms_on(ea.id()).await?;
        let mut per_worker: BTreeMap<WorkerIndex, usize> = BTreeMap::new();
        for (_, placement) in &rooms {
            *per_worker.entry(placement.worker).or_default() += 1;
        }
        let counts: Vec<usize> = per_worker.values().copied().collect();
        println!("{}: {} rooms, per worker {counts:?}", ea.id(), rooms.len());
        assert!(
            counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1,
            "workers of {}: {counts:?}",
            ea.id()
        );
        per_ea.push(rooms.len());
    }
    assert_eq!(per_ea.iter().sum::<usize>(), ROOMS);
    assert!(per_ea.iter().max().unwrap() - per_ea.iter().min().unwrap() <= 1, "EAs: {per_ea:?}");

    // Whoever joins a room later comes to the worker that has it.
    let (second, room, entered) = cell.enter("room-7", "Bob").await?;
    let state = cell.folded(&room).await?;
    assert_eq!((state.clients.len(), state.placements.len()), (2, 1));
    assert_eq!(entered["media"]["ea"], serde_json::json!(state.placements.keys().next()));
    second.leave().await;

    for (peer, _) in opened {
        peer.leave().await;
    }
    eventually("no EA holds a room without clients", Duration::from_secs(2), || async {
        for ea in &cell.eas {
            if !cell.rooms_on(ea.id()).await.ok()?.is_empty() {
                return None;
            }
        }
        (cell.ec.running_rooms() == 0).then_some(())
    })
    .await?;
    cell.stop().await;
    Ok(())
}
