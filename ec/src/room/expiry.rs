//! Clients whose time to resume is over. Who still sends is there, whatever became of the socket: the worker is asked first, and nobody is
//! removed whose ICE it reports alive.

use super::*;

/// How often the worker is asked again about a client that does not resume and still sends. With the worker's own patience this is how late
/// such a client's end may be noticed when the worker's word of it is lost.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

impl Room {
    /// Removes those whose time is over and of whom no worker can say that they are there; asks for the others.
    pub(super) async fn expire(&mut self) {
        let now = self.shared.log.env().now();
        let away = &self.state.clients;
        self.look_again.retain(|id, _| away.get(id).is_some_and(|client| client.resume_until.is_some()));
        let at = Instant::now();
        let due: Vec<ClientId> = (self.state.clients.iter())
            .filter(|(_, client)| client.resume_until.is_some_and(|until| until <= now))
            .filter(|(id, _)| self.look_again.get(*id).is_none_or(|again| *again <= at))
            .map(|(id, _)| id.clone())
            .collect();
        let (asked, over): (Vec<_>, Vec<_>) = due.into_iter().partition(|id| self.may_send(id));
        if !over.is_empty() {
            self.commit_or_retry(Command::Expire { clients: over }, "timer").await;
        }
        if asked.is_empty() {
            return;
        }
        for client in &asked {
            self.look_again.insert(client.clone(), at + LOOK_AGAIN);
        }
        let Some(placement) = self.state.placements.values().next().cloned() else { return };
        let request = EaRequest::Media {
            room: self.id.clone(),
            epoch: self.state.epoch(),
            media_epoch: self.state.media_epoch,
            client: None,
            command: MediaCommand::Inventory,
        };
        let shared = self.shared.clone();
        let transports: Vec<(ClientId, _)> = (self.state.transports.iter())
            .filter(|(_, transport)| asked.contains(&transport.client))
            .map(|(id, transport)| (transport.client.clone(), id.clone()))
            .collect();
        self.work.spawn(async move {
            let subject = Subject::rpc(&StreamId::from(&placement.ea));
            let asked_ea =
                ask::<_, EaAnswer>(shared.bus.as_ref(), subject, &request, shared.settings.rpc_timeout);
            let there: BTreeMap<_, _> = match asked_ea.await {
                Ok(EaAnswer::Media { answer: MediaAnswer::Inventory { inventory } }) => {
                    inventory.transports.into_iter().map(|t| (t.id, t.state)).collect()
                }
                // Nobody knows: its EA is back soon, or is called lost and the media moved.
                Err(RpcError::Unreachable { .. } | RpcError::Retry { .. }) => {
                    return Done::Expiry { silent: Vec::new() };
                }
                Ok(_) | Err(_) => BTreeMap::new(),
            };
            let sends = |client: &ClientId| {
                let mut own = transports.iter().filter(|(of, _)| of == client);
                own.any(|(_, id)| there.get(id) == Some(&TransportState::Connected))
            };
            Done::Expiry { silent: asked.into_iter().filter(|client| !sends(client)).collect() }
        });
    }

    /// Removes those who have not come back while they were asked for.
    pub(super) async fn expire_silent(&mut self, mut silent: Vec<ClientId>) {
        let now = self.shared.log.env().now();
        silent.retain(|id| {
            let client = self.state.clients.get(id);
            client.and_then(|client| client.resume_until).is_some_and(|until| until <= now)
        });
        if !silent.is_empty() {
            self.commit_or_retry(Command::Expire { clients: silent }, "timer").await;
        }
    }

    /// Whether a worker that has not gone may have media of this client.
    fn may_send(&self, id: &ClientId) -> bool {
        self.state.transports.values().any(|transport| transport.client == *id)
            && self.state.placements.values().any(|placement| self.shared.gone(placement).is_none())
    }

    /// When the next client's time is over, or one is to be looked at again.
    pub(super) fn next_expiry(&self, now: Timestamp) -> Option<Instant> {
        let at = Instant::now();
        let away = self.state.clients.iter().filter_map(|(id, client)| Some((id, client.resume_until?)));
        // A millisecond more, since the log's clock counts in microseconds and the deadline must have passed.
        away.map(|(id, until)| {
            let over = at + Duration::from_millis(until.millis_since(now) + 1);
            self.look_again.get(id).map_or(over, |again| over.max(*again))
        })
        .min()
    }
}
