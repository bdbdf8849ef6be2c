//! A UDP relay on loopback with a [`Link`] each way for every client: the edge of the emulator that does IO.
//!
//! Each source address gets a socket of its own towards the worker, so that the worker tells clients apart as behind a NAT. Nothing is
//! looked into or rewritten: STUN checks carry the relay's address as the worker sees it, which ICE takes for a NAT.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use rand::{SeedableRng, rngs::StdRng};
use serde::Serialize;
use tokio::{
    net::UdpSocket,
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::link::{Counts, Link, LinkSettings};

/// Longer than any datagram of WebRTC.
const DATAGRAM: usize = 2_048;

/// Clients of one relay; datagrams of further ones are dropped. Tests have some dozens.
const MAX_CLIENTS: usize = 1_024;

/// Datagrams from the worker waiting to be looked at; then they wait in the sockets, and beyond that the kernel drops them.
const QUEUE: usize = 4_096;

/// Kernel buffers: a second of some calls, so that a busy machine does not lose what the links let through.
const SOCKET_BUFFER: usize = 4 << 20;

/// What a relay has done, all clients together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct RelayCounts {
    /// Source addresses seen.
    pub clients: usize,
    /// From clients to the worker.
    pub up: Counts,
    /// From the worker to clients.
    pub down: Counts,
}

enum Command {
    /// Up and down.
    Set(Box<(Option<LinkSettings>, Option<LinkSettings>)>, oneshot::Sender<()>),
    Counts(oneshot::Sender<RelayCounts>),
}

/// A running relay; ends when it is dropped.
#[derive(Debug)]
pub struct Relay {
    /// Where clients send to.
    pub address: SocketAddr,
    commands: mpsc::Sender<Command>,
    _task: JoinSet<()>,
}

impl Relay {
    /// Listens at `listen` (port 0 for a free one) for clients of the worker at `worker`.
    pub async fn start(listen: SocketAddr, worker: SocketAddr, seed: u64) -> io::Result<Self> {
        let front = Arc::new(bind(listen).await?);
        let address = front.local_addr()?;
        let (commands, asked) = mpsc::channel(16);
        let mut task = JoinSet::new();
        let state = State {
            front,
            worker,
            seed,
            settings: Default::default(),
            clients: HashMap::new(),
            due: BinaryHeap::new(),
            number: 0,
            readers: JoinSet::new(),
        };
        task.spawn(state.run(asked));
        Ok(Self { address, commands, _task: task })
    }

    /// From now on the links do this; `None` leaves a direction as it is. What is under way stays so.
    pub async fn set(&self, up: Option<LinkSettings>, down: Option<LinkSettings>) {
        let (done, is_done) = oneshot::channel();
        let _ = self.commands.send(Command::Set(Box::new((up, down)), done)).await;
        is_done.await.expect("the relay runs until it is dropped");
    }

    /// What it has done until now.
    pub async fn counts(&self) -> RelayCounts {
        let (answer, answered) = oneshot::channel();
        let _ = self.commands.send(Command::Counts(answer)).await;
        answered.await.expect("the relay runs until it is dropped")
    }
}

async fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(listen).await?;
    let reference = socket2::SockRef::from(&socket);
    // The kernel gives what it may.
    let _ = reference.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = reference.set_send_buffer_size(SOCKET_BUFFER);
    Ok(socket)
}

struct Client {
    back: Arc<UdpSocket>,
    up: (Link, StdRng),
    down: (Link, StdRng),
}

/// A datagram under way. The number keeps those of one instant in order.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Instant,
    number: u64,
    client: SocketAddr,
    up: bool,
    bytes: Vec<u8>,
}

struct State {
    front: Arc<UdpSocket>,
    worker: SocketAddr,
    seed: u64,
    /// Up and down, for clients to come.
    settings: (LinkSettings, LinkSettings),
    clients: HashMap<SocketAddr, Client>,
    due: BinaryHeap<Reverse<Due>>,
    number: u64,
    readers: JoinSet<()>,
}

impl State {
    async fn run(mut self, mut asked: mpsc::Receiver<Command>) {
        let (from_worker, mut answers) = mpsc::channel(QUEUE);
        let front = self.front.clone();
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let next = self.due.peek().map(|Reverse(due)| due.at);
            let wait = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                command = asked.recv() => match command {
                    None => return,
                    Some(Command::Set(settings, done)) => {
                        let (up, down) = *settings;
                        self.set(up, down);
                        let _ = done.send(());
                    }
                    Some(Command::Counts(answer)) => {
                        let _ = answer.send(self.counts());
                    }
                },
                () = wait => {}
                Some((client, bytes)) = answers.recv() => self.take(client, false, bytes),
                Ok((length, client)) = front.recv_from(&mut buffer) => {
                    if self.clients.contains_key(&client) || self.admit_client(client, &from_worker).await {
                        self.take(client, true, buffer[..length].to_vec());
                    }
                }
            }
            self.deliver().await;
        }
    }

    fn set(&mut self, up: Option<LinkSettings>, down: Option<LinkSettings>) {
        self.settings = (up.unwrap_or(self.settings.0), down.unwrap_or(self.settings.1));
        for client in self.clients.values_mut() {
            (client.up.0.settings, client.down.0.settings) = self.settings;
        }
    }

    fn counts(&self) -> RelayCounts {
        let mut counts = RelayCounts { clients: self.clients.len(), ..RelayCounts::default() };
        for client in self.clients.values() {
            counts.up += client.up.0.counts;
            counts.down += client.down.0.counts;
        }
        counts
    }

    /// Makes the socket and the links of a client; false when there are too many.
    async fn admit_client(
        &mut self,
        address: SocketAddr,
        from_worker: &mpsc::Sender<(SocketAddr, Vec<u8>)>,
    ) -> bool {
        if self.clients.len() >= MAX_CLIENTS {
            return false;
        }
        let Ok(back) = bind(SocketAddr::new(self.worker.ip(), 0)).await else { return false };
        let back = Arc::new(back);
        let (reader, from_worker, worker) = (back.clone(), from_worker.clone(), self.worker);
        self.readers.spawn(async move {
            let mut buffer = vec![0; DATAGRAM];
            loop {
                // Neither a stranger nor an ICMP answer, which comes when the worker is not there for a while.
                if let Ok((length, from)) = reader.recv_from(&mut buffer).await
                    && from == worker
                    && from_worker.send((address, buffer[..length].to_vec())).await.is_err()
                {
                    return;
                }
            }
        });
        // Links draw apart from each other, so that what one client sends does not change what happens to another.
        let rng = |way| {
            StdRng::seed_from_u64(self.seed.wrapping_mul(1_000_003) + 2 * self.clients.len() as u64 + way)
        };
        let (up, down) = self.settings;
        let client = Client { back, up: (Link::new(up), rng(0)), down: (Link::new(down), rng(1)) };
        self.clients.insert(address, client);
        true
    }

    fn take(&mut self, address: SocketAddr, up: bool, bytes: Vec<u8>) {
        let Some(client) = self.clients.get_mut(&address) else { return };
        let (link, rng) = if up { &mut client.up } else { &mut client.down };
        for at in link.admit(Instant::now(), bytes.len(), rng).into_iter().flatten() {
            self.number += 1;
            let due = Due { at, number: self.number, client: address, up, bytes: bytes.clone() };
            self.due.push(Reverse(due));
        }
    }

    /// Sends what is due. Errors are those of a network: the datagram is gone.
    async fn deliver(&mut self) {
        let now = Instant::now();
        while let Some(Reverse(due)) = self.due.peek()
            && due.at <= now
        {
            let Some(Reverse(due)) = self.due.pop() else { return };
            let Some(client) = self.clients.get(&due.client) else { continue };
            let _ = if due.up {
                client.back.send_to(&due.bytes, self.worker).await
            } else {
                self.front.send_to(&due.bytes, due.client).await
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use super::*;

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    /// A worker that sends back what it gets, and tells from where it came.
    async fn echo() -> (SocketAddr, mpsc::Receiver<SocketAddr>, JoinSet<()>) {
        let socket = UdpSocket::bind(loopback()).await.unwrap();
        let address = socket.local_addr().unwrap();
        let (seen, sources) = mpsc::channel(10_000);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut buffer = [0; DATAGRAM];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let _ = seen.send(from).await;
                let _ = socket.send_to(&buffer[..length], from).await;
            }
        });
        (address, sources, task)
    }

    /// What comes to a client until nothing has come for a while.
    async fn all(client: &UdpSocket) -> Vec<u8> {
        let mut got = Vec::new();
        let mut buffer = [0; DATAGRAM];
        while let Ok(Ok((length, _))) =
            tokio::time::timeout(Duration::from_millis(300), client.recv_from(&mut buffer)).await
        {
            assert_eq!(length, 100);
            got.push(buffer[0]);
        }
        got
    }

    #[tokio::test]
    async fn each_client_is_another_one_to_the_worker_and_gets_its_own_answers() {
        let (worker, mut sources, _task) = echo().await;
        let relay = Relay::start(loopback(), worker, 1).await.unwrap();
        let clients =
            [UdpSocket::bind(loopback()).await.unwrap(), UdpSocket::bind(loopback()).await.unwrap()];
        for number in 0..50u8 {
            for (index, client) in clients.iter().enumerate() {
                client.send_to(&[100 * index as u8 + number; 100], relay.address).await.unwrap();
            }
        }
        assert_eq!(all(&clients[0]).await, (0..50).collect::<Vec<_>>());
        assert_eq!(all(&clients[1]).await, (100..150).collect::<Vec<_>>());
        let mut seen = HashSet::new();
        while let Ok(source) = sources.try_recv() {
            seen.insert(source);
        }
        assert_eq!(seen.len(), 2);
        assert!(!seen.contains(&clients[0].local_addr().unwrap()));
        let counts = relay.counts().await;
        assert_eq!((counts.clients, counts.up.packets, counts.down.packets), (2, 100, 100));
    }

    #[tokio::test]
    async fn directions_are_set_apart_while_it_runs() {
        let (worker, mut sources, _task) = echo().await;
        let relay = Relay::start(loopback(), worker, 1).await.unwrap();
        let client = UdpSocket::bind(loopback()).await.unwrap();
        let lossy = LinkSettings { loss: 1.0, ..Default::default() };
        relay.set(None, Some(lossy)).await;
        client.send_to(&[1; 100], relay.address).await.unwrap();
        assert!(all(&client).await.is_empty());
        assert!(sources.try_recv().is_ok(), "the way up was whole");
        let late = LinkSettings { delay_ms: 150.0, ..Default::default() };
        relay.set(Some(late), Some(LinkSettings::default())).await;
        let sent = Instant::now();
        client.send_to(&[2; 100], relay.address).await.unwrap();
        assert_eq!(client.recv(&mut [0; DATAGRAM]).await.unwrap(), 100);
        let took = sent.elapsed();
        assert!(took >= Duration::from_millis(150), "{took:?}");
        let counts = relay.counts().await;
        assert_eq!((counts.down.lost, counts.up.lost, counts.up.packets), (1, 0, 2));
    }
}
