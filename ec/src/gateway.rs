//! The WebSocket gateway: takes sockets, checks who they are, carries frames between them and their rooms. It knows no room state.

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension, Router,
    extract::{
        ConnectInfo, Query, State,
        rejection::QueryRejection,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
    routing::get,
};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use roomlog_bus::{
    ids::{ClientId, RoomId},
    token::TokenError,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use crate::{
    Current, Shared,
    credentials::{Unverified, hash_of, resume_key},
    decide::Refusal,
    metrics::Closed,
    protoo::{self, Incoming, SUBPROTOCOL},
    room::{Ended, Entered, RoomMessage},
    session::{FINAL, Socket, ToSocket},
};

/// Read from a socket at once; a longer message is read in parts. The crate's own 128 KiB are taken for as long as the socket lives: with
/// 1 000 idle clients that was two thirds of all memory.
const READ_BYTES: usize = 4 * 1024;

/// The path of the gateway.
pub const PATH: &str = "/signal";

/// The path of the EC's own metrics, in Prometheus' text form; NUVE's are at `/metrics`.
pub const METRICS_PATH: &str = "/metrics/ec";

/// Frames that are not protoo, after which a socket is closed: a broken client is not worth the log lines.
const MAX_BAD_FRAMES: u32 = 16;

/// Requests refused before a client is let in, after which its socket is closed: each may cost the reading of a room's stream.
const MAX_REFUSED_STRANGER: u32 = 16;

/// Frames this many times larger than the setting are still taken in, so that their sender can be told why it is closed. Beyond that
/// the connection is cut off: nobody buffers more for a client than this.
const TOLD_TOO_LARGE: usize = 4;

/// A socket that we closed is read this long for the other side's goodbye (RFC 6455 §7.1.1): ended with data unread, TCP would reset it
/// and our reason might be lost.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);

/// The longest reason in a close frame, in bytes (RFC 6455 §5.5).
const MAX_CLOSE_REASON: usize = 123;

/// Ids of sockets, unique within the process.
static NEXT_SOCKET: AtomicU64 = AtomicU64::new(1);

#[derive(Deserialize)]
struct Parameters {
    token: Option<String>,
    resume: Option<String>,
}

/// The routes of the gateway.
pub(crate) fn router(current: Current) -> Router {
    Router::new().route(PATH, get(open)).route(METRICS_PATH, get(metrics)).with_state(current)
}

async fn metrics(State(current): State<Current>) -> String {
    let shared = current.get();
    shared.metrics.render(shared.rooms.len())
}

fn later(shared: &Shared, status: StatusCode, why: &'static str) -> Response {
    shared.metrics.turned_away(status.as_u16());
    (status, [(RETRY_AFTER, HeaderValue::from_static("1"))], why).into_response()
}

/// A refusal before the upgrade, counted.
fn turned_away(shared: &Shared, response: Response) -> Response {
    shared.metrics.turned_away(response.status().as_u16());
    response
}

async fn open(
    State(current): State<Current>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let shared = current.get();
    let Query(parameters) = match parameters {
        Ok(parameters) => parameters,
        Err(rejection) => return turned_away(&shared, rejection.into_response()),
    };
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => return turned_away(&shared, rejection.into_response()),
    };
    if shared.connections.check().is_err() {
        return later(
            &shared,
            StatusCode::TOO_MANY_REQUESTS,
            "this EC takes no more connections this second\n",
        );
    }
    let peer = peer.map(|Extension(ConnectInfo(addr))| addr.ip());
    let counted = match peer {
        Some(address) => match shared.per_address.one_more(address, shared.settings.sockets_per_address) {
            Some(counted) => Some(counted),
            None => {
                return later(
                    &shared,
                    StatusCode::TOO_MANY_REQUESTS,
                    "this address has too many connections open\n",
                );
            }
        },
        None => None,
    };
    if shared.is_suspended() {
        return later(
            &shared,
            StatusCode::SERVICE_UNAVAILABLE,
            "the log is not reached; ask NUVE where the room is\n",
        );
    }
    // A client that resumes has its media already; a new one would find none.
    if parameters.resume.is_none() && !shared.eas.any() {
        return later(
            &shared,
            StatusCode::SERVICE_UNAVAILABLE,
            "no media server is there; try again in a moment\n",
        );
    }
    let addr = peer.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
    let max_frame = shared.settings.max_frame.saturating_mul(TOLD_TOO_LARGE);
    upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(READ_BYTES)
        .max_message_size(max_frame)
        .max_frame_size(max_frame)
        .on_upgrade(move |socket| async move {
            shared.metrics.opened();
            Connection::new(shared.clone(), socket, addr).run(parameters.token).await;
            shared.metrics.ended();
            drop(counted);
        })
}

/// Who a socket turned out to be.
struct Member {
    client: ClientId,
    room: mpsc::Sender<RoomMessage>,
    token: Option<String>,
    answer: Value,
}

/// One socket, until it ends.
struct Connection {
    shared: Arc<Shared>,
    ws: WebSocket,
    id: u64,
    addr: String,
    /// The sending end of `queue` while no room has it. Once one has, it is the only holder: dropping it there ends the socket.
    sender: Option<mpsc::Sender<ToSocket>>,
    queue: mpsc::Receiver<ToSocket>,
    member: Option<Member>,
    bad_frames: u32,
    messages: DefaultDirectRateLimiter,
    /// Requests refused before it was let in.
    refused: u32,
}

/// Why the loop of a socket ended.
enum End {
    /// The other side said goodbye.
    Left,
    /// It is gone, or has to be.
    Broken(Closed),
    /// We close it.
    Close(Closed, u16, String),
}

impl Connection {
    fn new(shared: Arc<Shared>, ws: WebSocket, addr: String) -> Self {
        let (sender, queue) = mpsc::channel(shared.settings.socket_queue);
        let id = NEXT_SOCKET.fetch_add(1, Ordering::Relaxed);
        let sender = Some(sender);
        let at_least_one = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(at_least_one(shared.settings.messages_per_second));
        let burst = at_least_one(shared.settings.messages_burst);
        let messages = RateLimiter::direct(quota.allow_burst(burst));
        Self { shared, ws, id, addr, sender, queue, member: None, bad_frames: 0, messages, refused: 0 }
    }

    async fn run(mut self, token: Option<String>) {
        let end = match token {
            Some(token) => match self.admit(&token).await {
                Ok(_) => self.carry().await,
                Err(refusal) => {
                    self.shared.metrics.refused(refusal.code());
                    End::Close(Closed::Refused, FINAL, close_reason(&refusal))
                }
            },
            None => self.carry().await,
        };
        let (closed, ended) = match &end {
            End::Left => (Closed::Left, Ended::Left),
            End::Broken(closed) | End::Close(closed, ..) => (*closed, Ended::Broken),
        };
        self.shared.metrics.closed(closed);
        // The room first: it need not wait for the goodbyes.
        if let Some(member) = self.member.take() {
            let message = RoomMessage::SocketEnded { client: member.client, socket: self.id, ended };
            let _ = member.room.send(message).await;
        }
        match end {
            // Reading on is what sends the answer to the other side's close frame (RFC 6455 §5.5.1).
            End::Left | End::Broken(Closed::Broken) => self.goodbye().await,
            End::Broken(_) => {}
            End::Close(_, code, reason) => {
                let frame = CloseFrame { code, reason: shortened(&reason).into() };
                if self.send(Message::Close(Some(frame))).await {
                    self.goodbye().await;
                }
            }
        }
    }

    /// Reads until the other side has closed too, for a moment at most.
    async fn goodbye(&mut self) {
        let _ = timeout(GOODBYE_WITHIN, async { while let Some(Ok(_)) = self.ws.recv().await {} }).await;
    }

    /// Carries frames both ways until something ends it.
    async fn carry(&mut self) -> End {
        let shared = self.shared.clone();
        let settings = &shared.settings;
        let mut ping = tokio::time::interval(settings.ping_every);
        ping.reset();
        let (socket_timeout, token_timeout) = (settings.socket_timeout, settings.token_timeout);
        let opened = Instant::now();
        let mut heard = Instant::now();
        loop {
            let deadline = match self.member {
                Some(_) => heard + socket_timeout,
                None => opened + token_timeout,
            };
            tokio::select! {
                // What is rare or bounded by the room first: a client that floods holds up nobody but itself.
                biased;
                _ = ping.tick() => {
                    if !self.send(Message::Ping(Vec::new().into())).await {
                        return self.unsendable().await;
                    }
                }
                out = self.queue.recv() => match out {
                    Some(ToSocket::Text(text)) => {
                        if !self.send(Message::Text(text.into())).await {
                            return self.unsendable().await;
                        }
                    }
                    Some(ToSocket::Close(code, reason)) => return End::Close(Closed::Told, code, reason),
                    // The room let go of a socket whose queue was full.
                    None => return End::Broken(Closed::Unread),
                },
                received = self.ws.recv() => {
                    heard = Instant::now();
                    if matches!(received, Some(Ok(_))) && self.messages.check().is_err() {
                        return End::Close(Closed::TooMany, FINAL, "too many messages".into());
                    }
                    match received {
                        Some(Ok(Message::Text(text))) => {
                            let text = text.as_str();
                            let max = settings.max_frame;
                            if text.len() > max {
                                self.shared.metrics.bad_frame();
                                let reason = format!("frame too large: {} bytes of {max}", text.len());
                                return End::Close(Closed::TooLarge, FINAL, reason);
                            }
                            if let Err(end) = self.frame(text).await {
                                return end;
                            }
                        }
                        Some(Ok(Message::Binary(_))) => {
                            if let Err(end) = self.bad_frame("binary frame") {
                                return end;
                            }
                        }
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                        Some(Ok(Message::Close(frame))) => return said_goodbye(frame.as_ref()),
                        // Larger than can be told, no WebSocket, or the connection was reset.
                        Some(Err(error)) => {
                            tracing::debug!(socket = self.id, %error, "socket failed");
                            return End::Broken(Closed::Error);
                        }
                        None => return End::Broken(Closed::Broken),
                    }
                }
                () = tokio::time::sleep_until(deadline) => {
                    return match self.member {
                        Some(_) => End::Broken(Closed::Silent),
                        None => End::Close(Closed::NoToken, FINAL, "no token in time".into()),
                    };
                }
            }
        }
    }

    /// What a connection that takes no more frames has come to. A client that says goodbye and vanishes at once (a closed tab) resets it,
    /// so that our next frame fails although its goodbye has arrived and waits to be read.
    async fn unsendable(&mut self) -> End {
        let goodbye = timeout(GOODBYE_WITHIN, async {
            while let Some(Ok(message)) = self.ws.recv().await {
                if let Message::Close(frame) = message {
                    return Some(frame);
                }
            }
            None
        });
        match goodbye.await {
            Ok(Some(frame)) => said_goodbye(frame.as_ref()),
            _ => End::Broken(Closed::Unread),
        }
    }

    async fn send(&mut self, message: Message) -> bool {
        matches!(timeout(self.shared.settings.socket_timeout, self.ws.send(message)).await, Ok(Ok(())))
    }

    fn bad_frame(&mut self, why: &str) -> Result<(), End> {
        self.shared.metrics.bad_frame();
        self.bad_frames += 1;
        tracing::debug!(socket = self.id, why, "bad frame");
        if self.bad_frames > MAX_BAD_FRAMES {
            Err(End::Close(Closed::BadFrames, FINAL, format!("too many bad frames: {why}")))
        } else {
            Ok(())
        }
    }

    async fn frame(&mut self, text: &str) -> Result<(), End> {
        let frame = match protoo::parse(text) {
            Ok(frame) => frame,
            Err(error) => return self.bad_frame(&error.to_string()),
        };
        match (frame, &self.member) {
            (Incoming::Request { id, method, data }, _) if method == "token" => {
                self.token_request(id, &data).await
            }
            (Incoming::Request { id, method, data }, None) if method == "resume" => {
                self.resume_request(id, data).await
            }
            (Incoming::Request { id, method, .. }, None) => {
                let shown: String = method.chars().take(60).collect();
                let refusal = Refusal::WrongState(format!("{shown:?} before `token`: show a token first"));
                self.refuse(id, refusal.code(), &refusal.to_string()).await
            }
            // Nothing is defined that a client could notify of.
            (Incoming::Notification, _) | (_, None) => Ok(()),
            (frame, Some(member)) => {
                let message = RoomMessage::Frame { client: member.client.clone(), socket: self.id, frame };
                // Waiting here is the back pressure on a client that asks faster than its room can work. A room that has ended has said why
                // in this socket's queue, or dropped it.
                let _ = member.room.send(message).await;
                Ok(())
            }
        }
    }

    async fn answer(&mut self, text: String) -> Result<(), End> {
        if self.send(Message::Text(text.into())).await { Ok(()) } else { Err(End::Broken(Closed::Unread)) }
    }

    /// Refuses a request here, before any room has seen it, and counts that. A stranger is not refused for ever.
    async fn refuse(&mut self, id: u64, code: u16, reason: &str) -> Result<(), End> {
        self.shared.metrics.refused(code);
        self.answer(protoo::error(id, code, reason)).await?;
        if self.member.is_none() {
            self.refused += 1;
            if self.refused > MAX_REFUSED_STRANGER {
                return Err(End::Close(Closed::Refused, FINAL, "too many refused requests".into()));
            }
        }
        Ok(())
    }

    /// This socket, for a room.
    fn socket(&self) -> Result<Socket, Refusal> {
        let queue =
            self.sender.clone().ok_or_else(|| Refusal::WrongState("this socket has a room".into()))?;
        Ok(Socket { id: self.id, queue, addr: self.addr.clone() })
    }

    async fn token_request(&mut self, id: u64, data: &Value) -> Result<(), End> {
        let Some(token) = data.get("token").and_then(Value::as_str) else {
            let refusal = Refusal::BadRequest("token: `token` is not a text".into());
            return self.refuse(id, refusal.code(), &refusal.to_string()).await;
        };
        if let Some(member) = &self.member {
            if member.token.as_deref() == Some(token) {
                let text = protoo::ok(id, &member.answer);
                return self.answer(text).await;
            }
            let refusal = Refusal::WrongState("this socket has shown another token".into());
            return self.refuse(id, refusal.code(), &refusal.to_string()).await;
        }
        match self.admit(token).await {
            Ok(answer) => self.answer(protoo::ok(id, &answer)).await,
            Err(refusal) => {
                self.refuse(id, refusal.code(), &refusal.to_string()).await?;
                Err(End::Close(Closed::Refused, FINAL, close_reason(&refusal)))
            }
        }
    }

    /// Lets a client in by its token.
    async fn admit(&mut self, token: &str) -> Result<Value, TokenRefusal> {
        let now = self.shared.log.env().now();
        let (claims, expired) = self.shared.verifier.verify(self.shared.bus.as_ref(), token, now).await?;
        let key = resume_key(token);
        let (reply, entered) = oneshot::channel();
        let room_id = claims.room.clone();
        let message = RoomMessage::Admit {
            claims: Box::new(claims),
            expired,
            resume_key_hash: hash_of(&key),
            socket: self.socket()?,
            reply,
        };
        let (room, entered) = self.enter(&room_id, message, entered).await?;
        let answer = json!({
            "clientId": entered.client,
            "roomId": room_id,
            "resumeKey": key,
            "locateUrl": format!("/v1/rooms/{room_id}/locate"),
            "ec": self.shared.settings.id,
            "media": entered.media,
            "v": entered.version,
        });
        if let Some(queue) = self.sender.take() {
            let version = json!({ "version": env!("CARGO_PKG_VERSION") });
            let _ = queue.try_send(ToSocket::Text(protoo::notification("mediasoup-version", &version)));
        }
        self.member = Some(Member {
            client: entered.client,
            room,
            token: Some(token.to_owned()),
            answer: answer.clone(),
        });
        Ok(answer)
    }

    async fn resume_request(&mut self, id: u64, data: Value) -> Result<(), End> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Resume {
            client_id: ClientId,
            room_id: RoomId,
            resume_key: String,
            #[serde(default)]
            since: u64,
        }
        let resume: Resume = match serde_json::from_value(data) {
            Ok(resume) => resume,
            Err(error) => {
                let refusal = Refusal::BadRequest(format!("resume: {error}"));
                return self.refuse(id, refusal.code(), &refusal.to_string()).await;
            }
        };
        let socket = match self.socket() {
            Ok(socket) => socket,
            Err(refusal) => return self.refuse(id, refusal.code(), &refusal.to_string()).await,
        };
        let (reply, entered) = oneshot::channel();
        let message = RoomMessage::Resume {
            client: resume.client_id,
            resume_key_hash: hash_of(&resume.resume_key),
            since: resume.since,
            socket,
            reply,
        };
        match self.enter(&resume.room_id, message, entered).await {
            Ok((room, entered)) => {
                let mut answer = json!({
                    "clientId": entered.client,
                    "roomId": resume.room_id,
                    "ec": self.shared.settings.id,
                    "media": entered.media,
                    "mediaEpoch": entered.media["mediaEpoch"],
                    "v": entered.version,
                });
                if let (Some(answer), Some(Value::Object(missed))) = (answer.as_object_mut(), entered.missed)
                {
                    answer.extend(missed);
                }
                self.sender = None;
                self.member =
                    Some(Member { client: entered.client, room, token: None, answer: answer.clone() });
                self.answer(protoo::ok(id, &answer)).await
            }
            Err(refusal) => {
                // For whoever wants to come back there is no difference between a client that is gone and a key that is wrong.
                let code = if matches!(refusal, TokenRefusal::Room(Refusal::NoClient(_))) {
                    1002
                } else {
                    refusal.code()
                };
                self.refuse(id, code, &refusal.to_string()).await
            }
        }
    }

    async fn enter(
        &mut self,
        room: &RoomId,
        message: RoomMessage,
        entered: oneshot::Receiver<Result<Entered, Refusal>>,
    ) -> Result<(mpsc::Sender<RoomMessage>, Entered), TokenRefusal> {
        let inbox = self.shared.rooms.send(&self.shared, room, message)?;
        match entered.await {
            Ok(Ok(entered)) => Ok((inbox, entered)),
            Ok(Err(refusal)) => Err(refusal.into()),
            Err(_) => Err(Refusal::Retry("the room ended meanwhile".into()).into()),
        }
    }
}

/// Why a token did not open the room.
#[derive(Debug, thiserror::Error)]
enum TokenRefusal {
    /// The token itself.
    #[error(transparent)]
    Token(TokenError),
    /// It could not be checked.
    #[error(
        "the token is signed with key {kid:?}, and NUVE could not be asked for that key: try again in a second"
    )]
    Unchecked {
        /// The key that it names.
        kid: String,
    },
    /// The room.
    #[error(transparent)]
    Room(#[from] Refusal),
}

impl From<Unverified> for TokenRefusal {
    fn from(unverified: Unverified) -> Self {
        match unverified {
            Unverified::Bad(error) => Self::Token(error),
            Unverified::NotAsked { kid } => Self::Unchecked { kid },
        }
    }
}

impl TokenRefusal {
    fn code(&self) -> u16 {
        match self {
            Self::Unchecked { .. } => 1003,
            Self::Token(_) => 1004,
            Self::Room(refusal) => refusal.code(),
        }
    }
}

/// The reason in the close frame: a fixed word where clients act on it, at most 123 bytes (RFC 6455 §5.5).
fn close_reason(refusal: &TokenRefusal) -> String {
    match refusal {
        TokenRefusal::Token(_) | TokenRefusal::Room(Refusal::TokenEnded) => "bad token".into(),
        TokenRefusal::Unchecked { .. } => "try again later".into(),
        TokenRefusal::Room(Refusal::UsedToken) => "used token".into(),
        TokenRefusal::Room(Refusal::WrongHost) => "moved".into(),
        TokenRefusal::Room(Refusal::NoRoom) => "no such room".into(),
        TokenRefusal::Room(Refusal::NoMedia) => "no media available".into(),
        TokenRefusal::Room(Refusal::RoomFull(_)) => "room full".into(),
        TokenRefusal::Room(Refusal::Retry(_)) => "try again later".into(),
        TokenRefusal::Room(_) => "refused".into(),
    }
}

/// What the other side's close frame means. RFC 6455 §7.4.1: no code at all reads as 1005.
fn said_goodbye(frame: Option<&CloseFrame>) -> End {
    match frame.map_or(1005, |f| f.code) {
        1000 | 1001 | 1005 => End::Left,
        _ => End::Broken(Closed::Broken),
    }
}

/// As much of a close frame's reason as fits into one.
fn shortened(reason: &str) -> &str {
    let mut end = reason.len().min(MAX_CLOSE_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}
