//! A process of the EA that finds the workers of the one before.

use super::*;

impl World {
    /// The process is gone and another comes: it finds the workers that `lives` names, in the place of others there are new ones.
    fn restart(&mut self, lives: &[bool]) {
        let mut starts = Vec::new();
        for (worker, lives) in lives.iter().enumerate() {
            if !lives {
                self.books[worker] = Books::default();
                self.generations[worker] += 1;
            }
            starts.push(Some(Start {
                generation: self.generations[worker],
                began: Incarnation(if *lives { 1 } else { 2 }),
                adopted: lives.then(|| self.books[worker].routers.keys().cloned().collect()),
            }));
        }
        let limits = Limits { provisional_ttl: TTL, sweep_every: SWEEP };
        self.core = Core::new(EaId::new("ea").unwrap(), Incarnation(2), limits, &starts);
        self.forget();
        self.kept.clear();
        self.input(Input::Tick);
    }

    fn inventory(&self, id: &str) -> &RouterInventory {
        &self.books[0].routers[&room(id)]
    }
}

fn failed(id: &str) -> MediaNotification {
    MediaNotification::TransportState { transport: transport(id), state: TransportState::Failed }
}

use roomlog_bus::media::{RouterInventory, TransportState};

#[test]
fn what_worker_and_log_both_have_stays_untouched_and_is_served() {
    let mut world = World::new(1);
    world.call("r");
    world.commit("r", &[ConsumerResumed { consumer: consumer("c") }.into()]);
    let before = world.inventory("r").clone();
    world.restart(&[true]);
    assert_eq!(world.heard(0), [], "the worker is told nothing");
    assert_eq!(world.notified, []);
    assert_eq!(world.core.load(), Load { rooms: 1, clients: 2, draining: false });
    world.pass(TTL);
    world.pass(SWEEP);
    assert_eq!((world.heard(0), world.inventory("r")), (vec![], &before), "nor later");

    world.media("r", 1, produce("tb", "q")).unwrap();
    world.commit("r", &[ProducerPaused { producer: producer("p") }.into()]);
    assert!(world.inventory("r").producers.iter().any(|p| p.id == producer("p") && p.paused));
    world.commit("r", &[left("a"), left("b")]);
    assert!(world.books[0].routers.is_empty() && world.core.rooms.is_empty());
    assert_eq!(world.core.turns.total(), 0);
}

#[test]
fn what_the_log_ended_while_no_process_followed_it_ends_at_once() {
    let mut world = World::new(1);
    world.call("r");
    world.call("closed");
    world.write("r", &[left("a")]);
    world.write("closed", &[left("a"), left("b"), RoomClosed { reason: "empty".into() }.into()]);
    world.restart(&[true]);
    assert_eq!(world.heard(0), [close_of(MediaObject::Transport(transport("ta")))]);
    world.pass(TTL);
    assert_eq!(world.books[0].routers.keys().collect::<Vec<_>>(), [&room("r")], "a room that is over goes");
    assert_eq!(world.core.turns.total(), 1);
}

#[test]
fn what_the_log_never_had_is_provisional_again() {
    let mut world = World::new(1);
    world.call("r");
    world.media("r", 1, create("late")).unwrap();
    world.media("r", 1, create("never")).unwrap();
    world.restart(&[true]);
    world.pass(TTL / 2);
    world.commit("r", &[transport_created("b", "late")]);
    assert_eq!(world.heard(0), []);
    world.pass(TTL / 2);
    assert_eq!(world.heard(0), [close_of(MediaObject::Transport(transport("never")))]);
}

#[test]
fn what_only_the_log_has_and_what_has_failed_meanwhile_is_told() {
    let mut world = World::new(1);
    world.call("r");
    world.call("s");
    world.commit("s", &[TransportConnected { transport: transport("ta") }.into()]);
    let of_r = &mut world.books[0].routers.get_mut(&room("r")).unwrap();
    of_r.transports.retain(|t| t.id != transport("tb"));
    of_r.transports[0].state = TransportState::Connected;
    let of_s = &mut world.books[0].routers.get_mut(&room("s")).unwrap();
    of_s.transports[0].state = TransportState::Connected;
    of_s.transports[1].state = TransportState::Disconnected;
    world.restart(&[true]);
    let told: Vec<_> = world.notified.iter().map(|n| (n.room.clone(), n.notification.clone())).collect();
    let state = |id, state| MediaNotification::TransportState { transport: transport(id), state };
    let expected = [
        (room("r"), state("ta", TransportState::Connected)),
        (room("r"), failed("tb")),
        (room("s"), state("tb", TransportState::Disconnected)),
    ];
    assert_eq!(told, expected, "and not what the log knows");
    assert!(world.notified.iter().all(|n| n.media_epoch == MediaEpoch(1)));
}

#[test]
fn a_room_that_was_only_opened_waits_for_its_commit() {
    let mut world = World::new(1);
    let placement = world.open("r", 1);
    world.open("never", 1);
    world.restart(&[true]);
    assert_eq!(world.core.load().rooms, 2);
    world.pass(TTL / 2);
    world.commit("r", &[placed(1), assigned(&placement, 1), admitted("a")]);
    world.media("r", 1, create("t")).unwrap();
    assert_eq!(world.heard(0), [create("t")], "its router is the one that was left");
    world.pass(TTL / 2);
    assert_eq!(world.books[0].routers.keys().collect::<Vec<_>>(), [&room("r")]);
}

#[test]
fn requests_wait_until_the_log_has_been_read() {
    let mut world = World::new(1);
    world.call("r");
    world.workers_slow = true;
    world.journal_away = true;
    world.restart(&[true]);
    world.input(Input::Request { reply: "media", request: media("r", 1, 1, create("t")) });
    world.input(Input::Request { reply: "open", request: open("r", 1, 1) });
    let min_version = Version(1);
    world.input(Input::Request {
        reply: "state",
        request: EaRequest::RoomState { room: room("r"), min_version },
    });
    world.answer_kept();
    world.pass(Duration::from_secs(1));
    assert!(world.replies.is_empty());
    world.journal_away = false;
    world.pass(Duration::from_secs(1));
    assert!(world.replies["media"].is_ok() && world.replies["state"].is_ok(), "{:?}", world.replies);
    let Ok(EaAnswer::Opened { placement, .. }) = &world.replies["open"] else { panic!() };
    assert_eq!((placement.incarnation, placement.generation), (Incarnation(1), 1), "where the log has it");
    assert_eq!(world.core.turns.total(), 1);
}

#[test]
fn lower_epochs_than_the_log_has_are_refused_by_the_next_process_too() {
    let mut world = World::new(1);
    world.call("r");
    world.commit("r", &[placed(4)]);
    world.restart(&[true]);
    assert_eq!(world.media("r", 1, create("t")), refused(MediaError::StaleEpoch { seen: 4 }));
}

#[test]
fn a_worker_that_did_not_live_on_has_lost_its_rooms() {
    let mut world = World::new(2);
    world.call("r0");
    world.call("r1");
    world.restart(&[false, true]);
    assert_eq!(world.media("r0", 1, create("t")), refused(MediaError::NoRoom));
    assert!(world.media("r1", 1, create("t")).is_ok());
    assert!(world.core.rooms.keys().eq([&room("r1")]));
    // One that was taken over and dies is dead like any other.
    world.kill(1);
    let Some(Event::WorkerDied(died)) = world.own.pop() else { panic!("{:?}", world.own) };
    assert_eq!((died.generation, died.rooms), (1, vec![room("r1")]));
    assert!(world.core.rooms.is_empty());
}

#[test]
fn a_worker_that_dies_before_it_was_understood_leaves_nobody_waiting() {
    let mut world = World::new(1);
    world.call("r");
    world.workers_slow = true;
    world.restart(&[true]);
    world.input(Input::Request { reply: "media", request: media("r", 1, 1, create("t")) });
    world.kill(0);
    assert_eq!(world.replies["media"], refused(MediaError::NoRoom));
    assert!(world.core.rooms.is_empty() && world.core.pending.is_empty());
}

#[test]
fn a_room_that_was_placed_while_no_process_followed_is_made_when_it_is_asked_for() {
    let mut world = World::new(1);
    let placement = world.open("other", 1);
    world.write("r", &[placed(1), assigned(&placement, 1), admitted("a")]);
    world.restart(&[true]);
    world.media("r", 1, create("t")).unwrap();
    assert_eq!(world.heard(0), [MediaCommand::CreateRouter, create("t")]);
    assert_eq!(world.media("nowhere", 1, create("t")), refused(MediaError::NoRoom));
    assert!(!world.core.rooms.contains_key(&room("nowhere")));
}

#[test]
fn rooms_go_on_in_turn() {
    let mut world = World::new(2);
    for id in ["r0", "r1", "r2"] {
        world.call(id);
    }
    world.restart(&[true, true]);
    assert_eq!(world.open("r3", 1).worker.0, 1);
}
