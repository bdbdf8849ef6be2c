//! What clients ask and answer: planned at once, carried out beside the room, finished here.

use super::{media::media_json, *};

impl Room {
    pub(super) async fn frame(&mut self, client: ClientId, frame: protoo::Incoming) {
        match frame {
            protoo::Incoming::Notification => {}
            protoo::Incoming::Request { id, method, data } => self.request(client, id, &method, data),
            protoo::Incoming::Response { id, result } => {
                let Some(consumer) = self.sessions.get_mut(&client).and_then(|s| s.answered_ask(id)) else {
                    return;
                };
                match result {
                    Ok(_) => self.accepted(client, consumer, id).await,
                    Err((code, reason)) => self.refused(client, consumer, format!("{code} {reason}")).await,
                }
            }
        }
    }

    pub(super) async fn accepted(&mut self, client: ClientId, consumer: ConsumerId, request: u64) {
        let cause = Cause { client: Some(client.clone()), request: Some(request), ..Cause::of("request") };
        let command = Command::ResumeConsumer { client: client.clone(), consumer: consumer.clone() };
        if let Err(refusal) = self.commit(command, self.facts(), cause).await {
            tracing::debug!(room = %self.id, %client, %consumer, %refusal, "consumer not resumed");
            return;
        }
        if let (Some(session), Some(c)) =
            (self.sessions.get_mut(&client), self.state.consumers.get(&consumer))
        {
            // Until the worker has counted packets a stream is presumed good, 10 of 10, as mediasoup's clients expect.
            let streams =
                self.state.producers.get(&c.producer).map_or(1, |p| p.rtp_parameters.encodings.len().max(1));
            let presumed =
                || json!({ "score": 10, "producerScore": 10, "producerScores": vec![10; streams] });
            let score = self.scores.get(&consumer).cloned().unwrap_or_else(presumed);
            session.send(protoo::notification(
                "consumerScore",
                &json!({ "consumerId": consumer, "score": score }),
            ));
        }
    }

    pub(super) async fn refused(&mut self, client: ClientId, consumer: ConsumerId, reason: String) {
        self.commit_or_retry(Command::RefuseConsumer { client, consumer, reason }, "request").await;
    }

    /// A client's request: planned now, carried out outside, finished in [`Self::finish`].
    pub(super) fn request(&mut self, client: ClientId, id: u64, method: &str, data: Value) {
        let Some(session) = self.sessions.get_mut(&client) else { return };
        let start = session.start();
        match session.seen(id) {
            Seen::New => {}
            Seen::UnderWay => return,
            Seen::Answered(text) => return session.send(text.to_string()),
            Seen::TooMany => {
                // Not kept as its answer: asked again, it may be worked on.
                let refusal = Refusal::Retry("this client has too many requests under way".into());
                session.send(protoo::error(id, refusal.code(), &refusal.to_string()));
                return self.shared.metrics.refused(refusal.code());
            }
        }
        let env = self.shared.log.env().clone();
        let mut fresh = || env.draw(|rng| roomlog_bus::ids::random_token(rng, 16));
        match requests::plan(&self.state, &client, method, data, &mut fresh) {
            Err(refusal) => self.answer(&client, id, Err(refusal)),
            Ok(plan) => {
                // Counted before the worker is asked: what it makes and the log refuses it would keep for a while.
                if let Some(made) = plan.command.as_ref().and_then(Made::by)
                    && let Some(session) = self.sessions.get_mut(&client)
                {
                    let per_client = self.shared.settings.per_client;
                    if let Err(refusal) = per_client.allows(&self.state, &client, made, session.making(made))
                    {
                        return self.answer(&client, id, Err(refusal));
                    }
                    session.makes(id, made);
                }
                let media = plan.media.clone().map(|command| self.ask_media(Some(client.clone()), command));
                self.work.spawn(async move {
                    let media = match media {
                        Some(asked) => Some(asked.await),
                        None => None,
                    };
                    Done::Request { client, start, request: id, plan: Box::new(plan), media }
                });
            }
        }
    }

    pub(super) async fn finish(&mut self, done: Done) {
        match done {
            Done::Request { client, start, request, plan, media } => {
                // A client that has left or started over meanwhile did not ask for this, nor is the answer for it. What the worker
                // made is not in the log, and the EA takes it away.
                if self.sessions.get(&client).map(Session::start) != Some(start) {
                    return;
                }
                let result = self.finish_request(&client, request, *plan, media).await;
                self.answer(&client, request, result);
            }
            Done::Consumers { wanted, outcomes } => {
                let (mut kept, mut consumers) = (Vec::new(), Vec::new());
                for (want, outcome) in wanted.into_iter().zip(outcomes) {
                    let key = (want.client.clone(), want.producer.clone());
                    match outcome {
                        Some(outcome) => {
                            self.making.remove(&key);
                            kept.push(want);
                            consumers.push(outcome);
                        }
                        None => {
                            self.failed.push(key);
                            self.consume_again = Some(Instant::now() + CONSUME_AGAIN);
                        }
                    }
                }
                let facts = Facts { consumers, ..self.facts() };
                if let Err(refusal) = self
                    .commit(Command::AddConsumers { wanted: kept }, facts, Cause::of("notification"))
                    .await
                {
                    tracing::debug!(room = %self.id, %refusal, "consumers not added");
                }
            }
            Done::Expiry { silent } => self.expire_silent(silent).await,
            Done::Inventory { connected, failed } => {
                for transport in connected {
                    self.commit_or_retry(Command::TransportConnected { transport }, "inventory").await;
                }
                for transport in failed {
                    let reason = "not on the worker any more".into();
                    self.commit_or_retry(Command::CloseTransport { transport, reason }, "inventory").await;
                }
            }
        }
    }

    pub(super) async fn finish_request(
        &mut self,
        client: &ClientId,
        request: u64,
        plan: Plan,
        media: Option<Result<MediaAnswer, Refusal>>,
    ) -> Result<Value, Refusal> {
        let answer = media.transpose()?;
        if let Some(command) = plan.command {
            let mut facts = self.facts();
            if let Some(MediaAnswer::Producer { consumer_type }) = &answer {
                facts.consumer_type = Some(*consumer_type);
            }
            let cause =
                Cause { client: Some(client.clone()), request: Some(request), ..Cause::of("request") };
            self.commit(command, facts, cause).await?;
        }
        Ok(match (plan.answer, answer) {
            (Answer::Empty, _) => json!({}),
            (Answer::Id(id), _) => json!({ "id": id }),
            (Answer::Peers, _) => json!({ "peers": peers(&self.state, client), "v": self.state.version() }),
            (Answer::Media, Some(answer)) => media_json(plan.media.as_ref(), answer),
            (Answer::Media, None) => json!({}),
        })
    }

    pub(super) fn answer(&mut self, client: &ClientId, id: u64, result: Result<Value, Refusal>) {
        let keep = self.shared.settings.stored_answers;
        let Some(session) = self.sessions.get_mut(client) else { return };
        let text = match result {
            Ok(data) => protoo::ok(id, &data),
            Err(refusal) => {
                self.shared.metrics.refused(refusal.code());
                protoo::error(id, refusal.code(), &refusal.to_string())
            }
        };
        session.answer(id, text, keep);
    }
}
