//! Rules of a room's stream.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use roomlog_bus::{
    commit::{Commit, StreamId, StreamKind},
    events::{EaPolicy, Event, RoomPlaced},
    ids::{ClientId, ConsumerId, ProducerId, TransportId, Version},
    time::Timestamp,
};

use crate::{
    room::RoomState,
    verify::{GHOST_MS, Redecide, Report, Severity},
    verify_nodes::Nodes,
    verify_turns::Turns,
};

/// A room on its way through the log.
#[derive(Debug, Default)]
pub(crate) struct RoomCheck {
    state: RoomState,
    /// Hashes of the ids of all transports, producers and consumers there ever were. 64 bits: among a million ids of one room two meet
    /// with a chance of 3 in 10^8.
    used: HashSet<u64>,
}

impl RoomCheck {
    pub(crate) fn commit(
        &mut self,
        commit: &Commit,
        events: &[Event],
        nodes: &Nodes,
        turns: &mut Turns,
        redecide: Option<Redecide<'_>>,
        report: &mut Report,
    ) {
        if !report.must(!self.state.deleted, "after-deleted", || {
            format!("{} after the room was deleted", events[0].kind())
        }) {
            return;
        }
        if self.state.head.is_none() {
            let begins = matches!(events[0], Event::RoomCreated(_) | Event::RoomSnapshot(_));
            report.must(begins, "created", || format!("the room begins with {}", events[0].kind()));
            if let Event::RoomSnapshot(_) = &events[0] {
                // Who may write is known from the snapshot itself.
                self.state.apply(&events[0], commit.time);
            }
        }
        // What was decided there rests on what was purged.
        let restarts = self.state.head.is_none() && matches!(events[0], Event::RoomSnapshot(_));
        if self.writer(commit, events, nodes, report)
            && !restarts
            && let Some(again) = redecide.and_then(|redecide| redecide(&self.state, commit))
        {
            report.summary.redecided += 1;
            same_decision(again, events, report);
        }
        for (version, event) in (commit.version.0..).zip(events) {
            report.at_version(Version(version));
            if report.must(!self.state.deleted, "after-deleted", || {
                format!("{} after the room was deleted", event.kind())
            }) {
                self.event(commit, event, report);
            }
            self.turns(event, turns, report);
            self.state.apply(event, commit.time);
        }
        self.state.head = Some(commit.head());
        if self.state.deleted {
            // Only that it is deleted is still needed.
            *self = Self {
                state: RoomState { head: self.state.head, deleted: true, ..RoomState::default() },
                used: HashSet::new(),
            };
        }
    }

    /// One owner: whether the commit was written by who may.
    fn writer(&self, commit: &Commit, events: &[Event], nodes: &Nodes, report: &mut Report) -> bool {
        let writer = &commit.writer;
        let placed = events.iter().find_map(|e| if let Event::RoomPlaced(p) = e { Some(p) } else { None });
        let may = match writer.node.kind() {
            StreamKind::Nuve => {
                let foreign = events.iter().find(|e| {
                    !matches!(e, Event::RoomCreated(_) | Event::RoomPlaced(_) | Event::RoomDeleted(_))
                });
                report.must(foreign.is_none(), "not-owner", || {
                    format!("{} wrote {}, which is the owner's", writer.node, foreign.map_or("", Event::kind))
                })
            }
            StreamKind::Ec => match placed {
                Some(placed) => self.places_itself(commit, placed, report),
                None => {
                    let owner = self.state.owner.as_ref();
                    let is_owner = owner.is_some_and(|o| {
                        StreamId::from(&o.ec) == writer.node && o.incarnation == writer.incarnation
                    });
                    report.must(is_owner, "not-owner", || {
                        let owner = owner.map_or("nobody".to_owned(), |o| {
                            format!("ec.{} start {}, epoch {}", o.ec, o.incarnation, o.epoch)
                        });
                        format!(
                            "{} start {} wrote {}; the owner is {owner}",
                            writer.node,
                            writer.incarnation,
                            events[0].kind()
                        )
                    })
                }
            },
            StreamKind::Ea | StreamKind::Room | StreamKind::Service => {
                report.must(false, "not-owner", || format!("{} wrote into a room", writer.node))
            }
        };
        if !may {
            return false;
        }
        report.check(!nodes.is_superseded(writer), Severity::Warning, "zombie", || {
            format!(
                "{} start {} wrote into a room after a later start of it had registered",
                writer.node, writer.incarnation
            )
        });
        if let Some(owner) = self.state.owner.as_ref().filter(|_| {
            writer.node.kind() == StreamKind::Nuve
                && events.iter().any(|e| matches!(e, Event::RoomDeleted(_)))
        }) {
            // NUVE judges by heartbeats, which are not in the log.
            report.check(!nodes.is_alive(owner), Severity::Warning, "deleted-beside-owner", || {
                format!(
                    "{} deleted the room itself, and the log does not say that EC {} was gone",
                    writer.node, owner.ec
                )
            });
        }
        let epoch = self.state.epoch();
        // A commit that places the room was decided under the old epoch, and founds the new one.
        let fits = commit.epoch == epoch || placed.is_some_and(|p| commit.epoch == p.epoch);
        report.must(fits, "epoch", || format!("written under epoch {}, the room is in {epoch}", commit.epoch))
    }

    fn places_itself(&self, commit: &Commit, placed: &RoomPlaced, report: &mut Report) -> bool {
        let writer = &commit.writer;
        let on_itself = StreamId::from(&placed.ec) == writer.node && placed.incarnation == writer.incarnation;
        let after_itself = self
            .state
            .owner
            .as_ref()
            .is_some_and(|o| o.ec == placed.ec && o.incarnation < placed.incarnation);
        report.must(on_itself && after_itself, "placed-by", || {
            let owner = self.state.owner.as_ref();
            let owner =
                owner.map_or("nobody's".to_owned(), |o| format!("ec.{} start {}'s", o.ec, o.incarnation));
            format!(
                "{} start {} gave the room to ec.{} start {}; it was {owner}",
                writer.node, writer.incarnation, placed.ec, placed.incarnation
            )
        })
    }

    /// Round robin needs every room that comes to an EA or leaves it.
    fn turns(&self, event: &Event, turns: &mut Turns, report: &mut Report) {
        match event {
            Event::EaAssigned(e) => turns.given(&e.placement.ea, e.placement.worker),
            Event::EaReleased(e) => turns.ended(&e.ea, report),
            Event::MediaMoved(e) => {
                if let Some(from) = &e.from {
                    turns.ended(&from.ea, report);
                }
                if let Some(to) = &e.to {
                    turns.given(&to.ea, to.worker);
                }
            }
            Event::RoomClosed(_) | Event::RoomDeleted(_) => {
                self.state.placements.keys().for_each(|ea| turns.ended(ea, report));
            }
            _ => {}
        }
    }

    /// Whether an event fits the state it meets.
    fn event(&mut self, commit: &Commit, event: &Event, report: &mut Report) {
        let state = &self.state;
        let kind = event.kind();
        match event {
            Event::RoomCreated(_) => {
                report.must(state.info.is_none(), "created", || "made a second time".into());
            }
            Event::RoomPlaced(e) => {
                report.must(e.epoch == state.epoch().next(), "placed-epoch", || {
                    format!("placed under epoch {}, after {}", e.epoch, state.epoch())
                });
            }
            Event::RoomOpened(_) => {
                report.must(!state.open, "session", || "opened while it was open".into());
            }
            Event::EaAssigned(e) => {
                self.in_session(kind, report);
                let ea = &e.placement.ea;
                let cascades = state.info.as_ref().is_some_and(|i| i.eapolicy == EaPolicy::TtlBest);
                let free = state.placements.is_empty() || (cascades && !state.placements.contains_key(ea));
                report.must(free, "placement", || {
                    let on: Vec<String> = state
                        .placements
                        .values()
                        .map(|p| format!("EA {} worker {}", p.ea, p.worker))
                        .collect();
                    format!("given to EA {ea} worker {} while on {}", e.placement.worker, on.join(" and "))
                });
                let further = cascades && !state.placements.is_empty() && e.media_epoch == state.media_epoch;
                report.must(further || e.media_epoch == state.media_epoch.next(), "media-epoch", || {
                    format!("{kind} with media epoch {}, after {}", e.media_epoch, state.media_epoch)
                });
            }
            Event::EaReleased(e) => {
                report.must(state.placements.contains_key(&e.ea), "placement", || {
                    format!("released from EA {}, which did not have it", e.ea)
                });
            }
            Event::MediaMoved(e) => {
                let from_there = match &e.from {
                    Some(from) => state.placements.get(&from.ea) == Some(from),
                    None => state.placements.is_empty(),
                };
                let stays = |ea| e.from.as_ref().is_none_or(|from| &from.ea != ea);
                let cascades = state.info.as_ref().is_some_and(|i| i.eapolicy == EaPolicy::TtlBest);
                let to_free = e.to.as_ref().is_none_or(|to| {
                    !state.placements.keys().any(|ea| stays(ea) && (!cascades || *ea == to.ea))
                });
                report.must(from_there && to_free, "placement", || {
                    format!("moved from {:?} to {:?}, while on {:?}", e.from, e.to, state.placements)
                });
                report.must(e.media_epoch == state.media_epoch.next(), "media-epoch", || {
                    format!("{kind} with media epoch {}, after {}", e.media_epoch, state.media_epoch)
                });
            }
            Event::RoomClosed(_) => {
                self.in_session(kind, report);
                self.empty("closed", report);
            }
            // NUVE deletes a room whose owner is gone as it is.
            Event::RoomDeleted(_) if commit.writer.node.kind() == StreamKind::Nuve => {}
            Event::RoomDeleted(_) => self.empty("deleted", report),
            Event::RoomSnapshot(e) => {
                // At the beginning of a compacted stream there is nothing to compare with.
                if state.head.is_some() {
                    let same = e
                        .state
                        .decode::<RoomState>()
                        .is_ok_and(|snapshot| RoomState { head: state.head, ..snapshot } == *state);
                    report.must(same, "snapshot", || "it is not what the events before it give".into());
                }
            }
            Event::ClientAdmitted(e) => {
                self.in_session(kind, report);
                report.must(!state.clients.contains_key(&e.client), "client", || {
                    format!("client {} let in while it was in", e.client)
                });
                let spent = state.spent_tokens.get(&e.token);
                report.must(spent.is_none(), "token-spent", || {
                    let before = spent.map_or("", |spent| spent.client.as_str());
                    format!("client {} let in by token {}, which had let in {before}", e.client, e.token)
                });
            }
            Event::ClientRightsChanged(e) => {
                self.client(kind, &e.client, report);
            }
            Event::ClientBound(e) => {
                let _ = self.client(kind, &e.client, report)
                    && report.must(state.placements.contains_key(&e.ea), "placement", || {
                        format!("client {} given EA {}, which does not have the room", e.client, e.ea)
                    });
            }
            Event::ClientAttached(e) => {
                let _ = self.client(kind, &e.client, report)
                    && report.must(state.clients[&e.client].ea.as_ref() == Some(&e.ea), "placement", || {
                        format!("client {} made by EA {}, which it was not given", e.client, e.ea)
                    });
            }
            Event::ClientJoined(e) => {
                let _ = self.client(kind, &e.client, report)
                    && report.must(state.clients[&e.client].joined.is_none(), "client-phase", || {
                        format!("client {} joined a second time", e.client)
                    });
            }
            Event::DisplayNameChanged(e) => {
                self.joined(kind, &e.client, report);
            }
            Event::ClientDisconnected(e) => {
                let _ = self.client(kind, &e.client, report)
                    && report.must(state.clients[&e.client].resume_until.is_none(), "client-phase", || {
                        format!("client {} disconnected while it was away", e.client)
                    });
            }
            Event::ClientResumed(e) => {
                // By its token it may come in again over a socket that nobody knew was broken.
                let _ = self.client(kind, &e.client, report)
                    && report.must(
                        e.how == "reattach" || state.clients[&e.client].resume_until.is_some(),
                        "client-phase",
                        || format!("client {} resumed without having been away", e.client),
                    );
            }
            Event::ClientLeft(e) => {
                self.client(kind, &e.client, report);
            }
            Event::TransportCreated(e) => {
                self.client(kind, &e.client, report);
                self.fresh("transport", e.transport.as_str(), report);
            }
            Event::TransportConnected(e) => {
                self.transport(kind, &e.transport, report);
            }
            Event::TransportClosed(e) => {
                self.transport(kind, &e.transport, report);
            }
            Event::ProducerCreated(e) => {
                let _ = self.joined(kind, &e.client, report)
                    && self.own_transport(kind, &e.client, &e.transport, report)
                    && report.must(state.transports[&e.transport].producing, "object", || {
                        format!("{kind} on transport {}, which is not for sending", e.transport)
                    });
                self.fresh("producer", e.producer.as_str(), report);
            }
            Event::ProducerMuted(e) => self.producer(kind, &e.producer, report),
            Event::ProducerUnmuted(e) => self.producer(kind, &e.producer, report),
            Event::ProducerPaused(e) => self.producer(kind, &e.producer, report),
            Event::ProducerResumed(e) => self.producer(kind, &e.producer, report),
            Event::ProducerClosed(e) => self.producer(kind, &e.producer, report),
            Event::ConsumerCreated(e) => {
                if self.joined(kind, &e.client, report)
                    && self.own_transport(kind, &e.client, &e.transport, report)
                {
                    report.must(state.transports[&e.transport].consuming, "object", || {
                        format!("{kind} on transport {}, which is not for receiving", e.transport)
                    });
                }
                self.producer(kind, &e.producer, report);
                self.fresh("consumer", e.consumer.as_str(), report);
            }
            Event::ConsumerPaused(e) => self.consumer(kind, &e.consumer, report),
            Event::ConsumerResumed(e) => self.consumer(kind, &e.consumer, report),
            Event::ConsumerLayersPreferred(e) => self.consumer(kind, &e.consumer, report),
            Event::ConsumerPrioritySet(e) => self.consumer(kind, &e.consumer, report),
            Event::ConsumerClosed(e) => self.consumer(kind, &e.consumer, report),
            Event::ConsumerRefused(e) => {
                if self.client(kind, &e.client, report) {
                    self.producer(kind, &e.producer, report);
                }
            }
            Event::RoomChanged(_) | Event::Unknown(_) => {}
            Event::ServiceCreated(_)
            | Event::ServiceKeyRotated(_)
            | Event::ServiceOldKeyRevoked(_)
            | Event::ServiceChanged(_)
            | Event::WebhookSet(_)
            | Event::WebhookClaimed(_)
            | Event::WebhookAdvanced(_)
            | Event::WebhookFailed(_)
            | Event::WebhookRemoved(_)
            | Event::ServiceDeleted(_)
            | Event::NodeRegistered(_)
            | Event::NodeLost(_)
            | Event::NodeDraining(_)
            | Event::NodeLeft(_)
            | Event::LimitShared(_)
            | Event::WorkerStarted(_)
            | Event::WorkerDied(_) => {
                report.must(false, "wrong-stream", || format!("{kind} in the stream of a room"));
            }
        }
    }

    fn in_session(&self, kind: &str, report: &mut Report) -> bool {
        report.must(self.state.open, "session", || format!("{kind} while no session was on"))
    }

    /// Nobody and nothing is left when a session ends.
    fn empty(&self, how: &str, report: &mut Report) {
        let state = &self.state;
        report.must(state.clients.is_empty(), "closed-with-clients", || {
            format!("{how} with {} clients in it", state.clients.len())
        });
        report.must(state.placements.is_empty(), "closed-with-media", || {
            let eas: Vec<&str> = state.placements.keys().map(|ea| ea.as_str()).collect();
            format!("{how} while on EA {}", eas.join(", "))
        });
    }

    fn client(&self, kind: &str, client: &ClientId, report: &mut Report) -> bool {
        report.must(self.state.clients.contains_key(client), "client", || {
            format!("{kind} of client {client}, who is not in the room")
        })
    }

    fn joined(&self, kind: &str, client: &ClientId, report: &mut Report) -> bool {
        self.client(kind, client, report)
            && report.must(self.state.clients[client].joined.is_some(), "client-phase", || {
                format!("{kind} of client {client}, who has not joined")
            })
    }

    fn transport(&self, kind: &str, id: &TransportId, report: &mut Report) -> bool {
        report.must(self.state.transports.contains_key(id), "object", || {
            format!("{kind} of transport {id}, which is not there")
        })
    }

    fn own_transport(&self, kind: &str, client: &ClientId, id: &TransportId, report: &mut Report) -> bool {
        self.transport(kind, id, report)
            && report.must(&self.state.transports[id].client == client, "object", || {
                format!("{kind} of client {client} on transport {id}, which is another's")
            })
    }

    fn producer(&self, kind: &str, id: &ProducerId, report: &mut Report) {
        report.must(self.state.producers.contains_key(id), "object", || {
            format!("{kind} of producer {id}, which is not there")
        });
    }

    fn consumer(&self, kind: &str, id: &ConsumerId, report: &mut Report) {
        report.must(self.state.consumers.contains_key(id), "object", || {
            format!("{kind} of consumer {id}, which is not there")
        });
    }

    fn fresh(&mut self, what: &'static str, id: &str, report: &mut Report) {
        // Fixed keys: the same log gives the same verdict every time.
        let mut hasher = DefaultHasher::new();
        (what, id).hash(&mut hasher);
        let new = self.used.insert(hasher.finish());
        report.must(new, "id-reused", || format!("{what} {id} was there before"));
    }

    /// At the end of the log: whoever is gone has left.
    pub(crate) fn ghosts(&self, end: Timestamp, nodes: &Nodes, report: &mut Report) {
        let late = |since: Timestamp| end.millis_since(since) > GHOST_MS;
        for (id, client) in &self.state.clients {
            let until = client.resume_until;
            report.check(!until.is_some_and(late), Severity::Warning, "ghost", || {
                let until = until.unwrap_or_default();
                format!(
                    "client {id} could come back until {until}, the log goes on to {end}, and it never left"
                )
            });
        }
        if self.state.clients.is_empty() {
            return;
        }
        let owner = self.state.owner.as_ref().and_then(|owner| nodes.owner_gone(owner));
        let media = self.state.placements.values().find_map(|place| nodes.media_gone(place));
        for (gone, what) in [(owner, "it was not given another EC"), (media, "its media was not moved")] {
            report.check(
                !gone.as_ref().is_some_and(|(since, _)| late(*since)),
                Severity::Warning,
                "ghost",
                || {
                    let how = gone.map_or(String::new(), |(_, how)| how);
                    format!("{} clients are in the room; {how}, and {what}", self.state.clients.len())
                },
            );
        }
    }
}

/// Compares a decision made again with what was decided, as far as this build knows the events.
fn same_decision(again: Result<Vec<Event>, String>, events: &[Event], report: &mut Report) {
    let known: Vec<Event> = events.iter().filter(|e| !matches!(e, Event::Unknown(_))).cloned().collect();
    let events = known.as_slice();
    let problem = match &again {
        Err(reason) => Some(reason.clone()),
        Ok(again) if again == events => None,
        Ok(again) => {
            let kinds =
                |events: &[Event]| events.iter().map(|e| e.kind().to_owned()).collect::<Vec<_>>().join(", ");
            let different = again.iter().zip(events).find(|(a, b)| a != b);
            Some(match different {
                Some((now, then)) if now.kind() == then.kind() => {
                    format!("now {:?}, then {:?}", now.encode(), then.encode())
                }
                _ => format!("now [{}], then [{}]", kinds(again), kinds(events)),
            })
        }
    };
    report.must(problem.is_none(), "redecide", || {
        format!("the decision cannot be made again: {}", problem.unwrap_or_default())
    });
}
