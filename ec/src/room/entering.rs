//! Coming in and coming back: by token, by resume key, and what is told to whoever was away.

use super::*;

impl Room {
    pub(super) async fn admit(
        &mut self,
        claims: Claims,
        expired: bool,
        resume_key_hash: String,
        socket: Socket,
    ) -> Result<Entered, Refusal> {
        let client = claims.client.clone();
        // Asked of the client, not of the tokens used: those are forgotten once they have ended.
        if self.state.clients.get(&client).is_some_and(|living| living.token == claims.jti) {
            self.commit(Command::Reattach { client: client.clone() }, self.facts(), Cause::of("request"))
                .await?;
            let session = self.sessions.entry(client.clone()).or_default();
            session.attach(socket);
            session.start_over();
            return Ok(self.entered(client, None));
        }
        if expired {
            let spent = self.state.spent_tokens.contains_key(&claims.jti);
            return Err(if spent { Refusal::UsedToken } else { Refusal::TokenEnded });
        }
        let mut facts = self.facts();
        let assigned = if self.state.placements.is_empty()
            && self.state.info.is_some()
            && !self.state.deleted
            && owns(&self.state, &facts)
        {
            Some(self.assign().await.ok_or(Refusal::NoMedia)?)
        } else {
            None
        };
        facts.assignment = assigned.clone();
        let command = Command::Admit {
            client: client.clone(),
            user: claims.sub,
            role: claims.role,
            rights: claims.rights,
            addr: socket.addr.clone(),
            token: claims.jti,
            token_expires: roomlog_bus::time::Timestamp(claims.exp.saturating_mul(1_000_000)),
            resume_key_hash,
        };
        let committed =
            self.commit(command, facts, Cause { client: Some(client.clone()), ..Cause::of("request") }).await;
        if let (Err(_), Some(assignment)) = (&committed, assigned) {
            self.shared.eas.released(&assignment.placement.ea, &self.id);
        }
        committed?;
        self.sessions.entry(client.clone()).or_default().attach(socket);
        Ok(self.entered(client, None))
    }

    pub(super) async fn resume(
        &mut self,
        client: &ClientId,
        key_hash: &str,
        since: u64,
        socket: Socket,
    ) -> Result<Entered, Refusal> {
        let known = self.state.clients.get(client).ok_or_else(|| Refusal::NoClient(client.clone()))?;
        if known.resume_key_hash != key_hash {
            return Err(Refusal::UsedToken);
        }
        self.commit(
            Command::Resume { client: client.clone() },
            self.facts(),
            Cause { client: Some(client.clone()), ..Cause::of("request") },
        )
        .await?;
        let missed = self.missed(client, since).await?;
        self.sessions.entry(client.clone()).or_default().attach(socket);
        Ok(self.entered(client.clone(), Some(missed)))
    }

    /// What `client` was not told after `since`: the notifications, or the whole state where they cannot be had.
    pub(super) async fn missed(&self, client: &ClientId, since: u64) -> Result<Value, Refusal> {
        let all = json!({ "state": { "peers": peers(&self.state, client) } });
        if since == 0 || since > self.state.version().0 {
            return Ok(all);
        }
        let commits = read_all(self.shared.log.journal().as_ref(), &self.stream, Version(1))
            .await
            .map_err(|error| Refusal::Retry(error.to_string()))?;
        let mut state = RoomState::default();
        let mut events = Vec::new();
        for commit in commits.iter().take_while(|c| c.version <= self.state.version()) {
            let Ok(told) = fold_and_tell(&mut state, commit) else { return Ok(all) };
            for told in told {
                if let Told::Notification { client: to, method, data } = told
                    && &to == client
                    && data["v"].as_u64().is_some_and(|v| v > since)
                {
                    events.push(json!({ "method": method, "data": data }));
                }
            }
        }
        Ok(json!({ "events": events }))
    }

    pub(super) fn entered(&self, client: ClientId, missed: Option<Value>) -> Entered {
        let placement = self.state.placements.values().next();
        let media = json!({
            "ea": placement.map(|p| &p.ea),
            "worker": placement.map(|p| p.worker),
            "mediaEpoch": self.state.media_epoch,
        });
        Entered { client, version: self.state.version(), media, missed }
    }

    /// Asks `client` about the consumers that it has not accepted.
    pub(super) fn ask_again(&mut self, client: &ClientId) {
        let open: Vec<ConsumerId> = self
            .state
            .consumers
            .iter()
            .filter(|(_, c)| &c.client == client && !c.accepted)
            .map(|(id, _)| id.clone())
            .collect();
        for consumer in open {
            if !self.sessions.get(client).is_some_and(|s| s.is_asked(&consumer)) {
                self.ask_consumer(client, &consumer);
            }
        }
    }
}
