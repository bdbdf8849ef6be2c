//! The room's worker: finding one, asking it, hearing from it, and keeping what it holds the same as the log.

use super::*;

impl Room {
    pub(super) async fn notified(&mut self, notification: MediaNotification) {
        match notification {
            MediaNotification::TransportState { transport, state } => {
                let Some(owner) = self.state.transports.get(&transport).map(|t| t.client.clone()) else {
                    return;
                };
                match state {
                    TransportState::Connected => {
                        self.commit_or_retry(Command::TransportConnected { transport }, "notification").await;
                    }
                    TransportState::Disconnected
                        if !self.sessions.get(&owner).is_some_and(Session::connected) =>
                    {
                        self.commit_or_retry(
                            Command::Leave { client: owner, reason: "ice-lost".into() },
                            "notification",
                        )
                        .await;
                    }
                    TransportState::Failed => {
                        let reason = "dtls failed or closed".into();
                        self.commit_or_retry(Command::CloseTransport { transport, reason }, "notification")
                            .await;
                    }
                    TransportState::New | TransportState::Connecting | TransportState::Disconnected => {}
                }
            }
            MediaNotification::ProducerScore { producer, score } => {
                let to = self.state.producers.get(&producer).map(|p| p.client.clone());
                self.inform(to, "producerScore", json!({ "producerId": producer, "score": score }));
            }
            MediaNotification::ConsumerScore { consumer, score } => {
                let to = self.state.consumers.get(&consumer).map(|c| c.client.clone());
                if to.is_some() {
                    self.scores.insert(consumer.clone(), score.clone());
                }
                self.inform(to, "consumerScore", json!({ "consumerId": consumer, "score": score }));
            }
            MediaNotification::ConsumerLayers { consumer, layers } => {
                let to = self.state.consumers.get(&consumer).map(|c| c.client.clone());
                let data = json!({
                    "consumerId": consumer,
                    "spatialLayer": layers.map(|l| l.spatial_layer),
                    "temporalLayer": layers.and_then(|l| l.temporal_layer),
                });
                self.inform(to, "consumerLayersChanged", data);
            }
            MediaNotification::ActiveSpeaker { producer, volume } => {
                let peer = producer.and_then(|p| self.state.producers.get(&p)).map(|p| p.client.clone());
                let everybody: Vec<ClientId> = self
                    .state
                    .clients
                    .iter()
                    .filter(|(_, c)| c.joined.is_some())
                    .map(|(id, _)| id.clone())
                    .collect();
                for client in everybody {
                    self.inform(Some(client), "activeSpeaker", json!({ "peerId": peer, "volume": volume }));
                }
            }
        }
    }

    /// Tells a client something that is not in the log, and so has no version.
    pub(super) fn inform(&mut self, client: Option<ClientId>, method: &str, data: Value) {
        if let Some(session) = client.and_then(|c| self.sessions.get_mut(&c)) {
            session.send(protoo::notification(method, &data));
        }
    }

    /// A request to the room's worker, to be awaited elsewhere.
    pub(super) fn ask_media(
        &self,
        client: Option<ClientId>,
        command: MediaCommand,
    ) -> impl Future<Output = Result<MediaAnswer, Refusal>> + Send + 'static {
        let placement = self.state.placements.values().next().cloned();
        let request = EaRequest::Media {
            room: self.id.clone(),
            epoch: self.state.epoch(),
            media_epoch: self.state.media_epoch,
            client,
            command,
        };
        let shared = self.shared.clone();
        async move {
            let placement = placement.ok_or(Refusal::NoMedia)?;
            let subject = Subject::rpc(&StreamId::from(&placement.ea));
            match ask::<_, EaAnswer>(shared.bus.as_ref(), subject, &request, shared.settings.rpc_timeout)
                .await
            {
                Ok(EaAnswer::Media { answer }) => Ok(answer),
                Ok(other) => Err(Refusal::MediaFailed(format!("unexpected answer {other:?}"))),
                Err(error) => Err(media_refusal(error)),
            }
        }
    }

    /// Finds a worker for the room in its next media epoch.
    pub(super) async fn assign(&self) -> Option<Assignment> {
        let media_epoch = self.state.media_epoch.next();
        for _ in 0..EA_TRIES {
            let (ea, candidates) = self.shared.eas.pick(&self.id, |views| {
                let choice = room_best::choose(views);
                (choice.ea, choice.candidates)
            });
            let ea = ea?;
            match self.open_on(&ea, self.state.epoch(), media_epoch).await {
                Ok((placement, rooms)) => {
                    self.shared.eas.reported(&ea, rooms);
                    return Some(Assignment { placement, media_epoch, candidates });
                }
                Err(error) => {
                    tracing::warn!(room = %self.id, %ea, %error, "an EA did not take the room");
                    self.shared.eas.released(&ea, &self.id);
                    if matches!(error, RpcError::Unreachable { .. }) {
                        self.shared.eas.unanswering(&ea);
                    }
                }
            }
        }
        None
    }

    pub(super) async fn open_on(
        &self,
        ea: &roomlog_bus::ids::EaId,
        epoch: Epoch,
        media_epoch: MediaEpoch,
    ) -> Result<(roomlog_bus::events::Placement, u64), RpcError> {
        let request = EaRequest::OpenRoom { room: self.id.clone(), epoch, media_epoch };
        let subject = Subject::rpc(&StreamId::from(ea));
        match ask::<_, EaAnswer>(
            self.shared.bus.as_ref(),
            subject,
            &request,
            self.shared.settings.rpc_timeout,
        )
        .await?
        {
            EaAnswer::Opened { placement, rooms } => Ok((placement, rooms)),
            other => Err(RpcError::Malformed { reason: format!("unexpected answer {other:?}") }),
        }
    }

    /// Moves the media if the worker that carries it is not the one that was assigned any more.
    pub(super) async fn check_placement(&mut self) {
        self.move_again = None;
        if self.lost || !owns(&self.state, &self.facts()) {
            return;
        }
        let Some(placement) = self.state.placements.values().next().cloned() else { return };
        let Some(reason) = self.shared.gone(&placement) else { return };
        match self.assign().await {
            Some(assignment) => {
                let facts = Facts { assignment: Some(assignment.clone()), ..self.facts() };
                if let Err(refusal) = self
                    .commit(Command::MoveMedia { reason: reason.into() }, facts, Cause::of("recovery"))
                    .await
                {
                    tracing::warn!(room = %self.id, %refusal, "media not moved");
                    if !self.state.placements.contains_key(&assignment.placement.ea) {
                        self.shared.eas.released(&assignment.placement.ea, &self.id);
                    }
                    self.move_again = Some(Instant::now() + TRY_AGAIN);
                }
            }
            None => {
                tracing::warn!(room = %self.id, reason, "no EA can take over the room's media; looking again soon");
                self.move_again = Some(Instant::now() + TRY_AGAIN);
            }
        }
    }

    /// Asks the worker what it holds; what it does not hold any more is closed, what has connected meanwhile is noted.
    pub(super) fn compare_inventory(&mut self) {
        if self.state.placements.is_empty() || !owns(&self.state, &self.facts()) {
            return;
        }
        let asked = self.ask_media(None, MediaCommand::Inventory);
        let known: BTreeMap<_, _> =
            self.state.transports.iter().map(|(id, t)| (id.clone(), t.connected)).collect();
        self.work.spawn(async move {
            let Ok(MediaAnswer::Inventory { inventory }) = asked.await else {
                return Done::Inventory { connected: Vec::new(), failed: Vec::new() };
            };
            let there: BTreeMap<_, _> = inventory.transports.into_iter().map(|t| (t.id, t.state)).collect();
            let connected = known
                .iter()
                .filter(|(id, connected)| !**connected && there.get(id) == Some(&TransportState::Connected))
                .map(|(id, _)| id.clone())
                .collect();
            let failed = known
                .keys()
                .filter(|id| there.get(id).is_none_or(|state| *state == TransportState::Failed))
                .cloned()
                .collect();
            Done::Inventory { connected, failed }
        });
    }

    /// After everything: make the consumers that should be.
    pub(super) async fn follow_up(&mut self) {
        if self.lost || self.move_again.is_some() {
            return;
        }
        let env = self.shared.log.env().clone();
        let wanted: Vec<WantedConsumer> = self
            .state
            .missing_consumers()
            .into_iter()
            .filter(|(client, _, producer)| self.making.insert((client.clone(), producer.clone())))
            .map(|(client, transport, producer)| WantedConsumer {
                consumer: env.draw(|rng| ConsumerId::random(rng)),
                client,
                transport,
                producer,
            })
            .collect();
        if wanted.is_empty() {
            return;
        }
        let asked: Vec<_> = wanted
            .iter()
            .map(|want| {
                let rtp_capabilities = self.state.clients[&want.client]
                    .joined
                    .as_ref()
                    .and_then(|j| j.rtp_capabilities.clone())
                    .unwrap_or_default();
                let command = MediaCommand::Consume {
                    transport: want.transport.clone(),
                    consumer: want.consumer.clone(),
                    producer: want.producer.clone(),
                    rtp_capabilities,
                };
                self.ask_media(Some(want.client.clone()), command)
            })
            .collect();
        self.work.spawn(async move {
            let outcomes = join_all(asked).await.into_iter().map(outcome_of_consume).collect();
            Done::Consumers { wanted, outcomes }
        });
    }
}

/// A consumer that was made, one that cannot be, or nothing to keep: the worker was away or the object gone, and it is tried anew
/// when something changes.
fn outcome_of_consume(result: Result<MediaAnswer, Refusal>) -> Option<Result<ConsumerMade, String>> {
    match result {
        Ok(MediaAnswer::Consumer { kind, rtp_parameters, consumer_type }) => {
            Some(Ok(ConsumerMade { kind, rtp_parameters, consumer_type }))
        }
        Ok(other) => Some(Err(format!("unexpected answer {other:?}"))),
        Err(Refusal::WrongState(reason)) => Some(Err(reason)),
        Err(_) => None,
    }
}

/// What a media error means to the client.
fn media_refusal(error: RpcError) -> Refusal {
    match error {
        RpcError::Media(MediaError::NoObject { what, id }) => Refusal::NoObject(
            if what == "transport" {
                "transport"
            } else if what == "producer" {
                "producer"
            } else {
                "consumer"
            },
            id,
        ),
        RpcError::Media(MediaError::BadParameters { reason }) => Refusal::BadRequest(reason),
        RpcError::Media(MediaError::WrongState { reason }) => Refusal::WrongState(reason),
        RpcError::Media(error @ MediaError::CannotConsume { .. }) => Refusal::WrongState(error.to_string()),
        RpcError::Media(error) => Refusal::MediaFailed(error.to_string()),
        RpcError::Unreachable { no_responders: false, .. } => Refusal::MediaTimeout,
        error => Refusal::MediaFailed(error.to_string()),
    }
}

/// A worker's answer in the shape clients expect.
pub(super) fn media_json(command: Option<&MediaCommand>, answer: MediaAnswer) -> Value {
    match answer {
        MediaAnswer::Router { rtp_capabilities } => json!(rtp_capabilities),
        MediaAnswer::Transport { ice_parameters, ice_candidates, dtls_parameters } => {
            let id = match command {
                Some(MediaCommand::CreateTransport { transport }) => Some(transport),
                _ => None,
            };
            json!({ "id": id, "iceParameters": ice_parameters, "iceCandidates": ice_candidates, "dtlsParameters": dtls_parameters })
        }
        MediaAnswer::Ice { ice_parameters } => json!(ice_parameters),
        MediaAnswer::Stats { stats } => stats,
        MediaAnswer::Done
        | MediaAnswer::Producer { .. }
        | MediaAnswer::Consumer { .. }
        | MediaAnswer::Inventory { .. } => json!({}),
    }
}
