//! Real NATS servers for tests: started on loopback with free ports and a folder of their own, paused, killed, started again, ended by pid.
//!
//! `deploy/tools.sh` brings the servers; see [`Servers::find`] for where they are looked for.

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The folder of `nats-server` binaries, instead of `target/tools/nats`.
pub const FOLDER: &str = "ROOMLOG_NATS_SERVERS";

/// How long a server may take until it answers.
const READY: Duration = Duration::from_secs(30);

/// The oldest server supported and the newest there is.
#[derive(Debug, Clone)]
pub struct Servers {
    /// The binary of the oldest version.
    pub oldest: PathBuf,
    /// The binary of the newest version.
    pub newest: PathBuf,
}

impl Servers {
    /// The binaries in `<folder>/<version>/nats-server`, where the folder is in [`FOLDER`], or else `target/tools/nats` of the workspace.
    /// None, with a loud word, where there are none; in CI (`CI` is set) that is a failure.
    pub fn find() -> Option<Self> {
        let folder = std::env::var_os(FOLDER).map(PathBuf::from).or_else(|| {
            // A test runs in its package's folder or is told it.
            let package = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
            package.ancestors().map(|at| at.join("target/tools/nats")).find(|folder| folder.is_dir())
        });
        let mut found: Vec<(Vec<u32>, PathBuf)> = folder
            .iter()
            .filter_map(|folder| std::fs::read_dir(folder).ok())
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let version =
                    entry.file_name().to_str()?.split('.').map(|n| n.parse().ok()).collect::<Option<_>>()?;
                let binary = entry.path().join("nats-server");
                binary.is_file().then_some((version, binary))
            })
            .collect();
        found.sort();
        match found.as_slice() {
            [(_, oldest), .., (_, newest)] => Some(Self { oldest: oldest.clone(), newest: newest.clone() }),
            _ => {
                let missing = format!(
                    "two versions of nats-server are needed in target/tools/nats or ${FOLDER}: run `deploy/test rust`, which brings them"
                );
                assert!(std::env::var_os("CI").is_none(), "{missing}");
                eprintln!("\n*** SKIPPED, NOTHING WAS TESTED: {missing}\n");
                None
            }
        }
    }
}

/// What a server is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether it has JetStream, in its own folder, with `sync_interval: always`.
    pub jetstream: bool,
    /// More lines of its configuration.
    pub more: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { jetstream: true, more: String::new() }
    }
}

/// A server that runs, or can be started again. It is killed when this is dropped; its folder stays.
#[derive(Debug)]
pub struct NatsServer {
    binary: PathBuf,
    folder: PathBuf,
    port: u16,
    child: Option<Child>,
}

/// A port on loopback that nobody has now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

impl NatsServer {
    /// Starts one server; `folder` is made and used for its configuration, its log and its store.
    pub fn start(binary: &Path, folder: &Path, options: &Options) -> Self {
        let server = Self::configure(binary, folder, options, free_port(), "single", "");
        server.started()
    }

    /// Starts a cluster of `count` servers that know each other.
    pub fn cluster(binary: &Path, folder: &Path, count: usize, options: &Options) -> Vec<Self> {
        let routes: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let urls: Vec<String> = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let servers: Vec<Self> = (0..count)
            .map(|i| {
                let cluster = format!(
                    "cluster {{ name: roomlog-test, listen: \"127.0.0.1:{}\", no_advertise: true, routes: [{}] }}",
                    routes[i],
                    urls.join(", ")
                );
                let name = format!("n{i}");
                Self::configure(binary, &folder.join(&name), options, free_port(), &name, &cluster)
            })
            .collect();
        // All at once: one alone would wait for the others.
        let mut servers: Vec<Self> = servers.into_iter().map(Self::spawned).collect();
        servers.iter_mut().for_each(Self::ready);
        servers
    }

    fn configure(
        binary: &Path,
        folder: &Path,
        options: &Options,
        port: u16,
        name: &str,
        cluster: &str,
    ) -> Self {
        std::fs::create_dir_all(folder).expect("the server's folder can be made");
        let store = folder.join("store");
        let jetstream = match options.jetstream {
            true => format!(
                "jetstream {{ store_dir: {:?}, sync_interval: always, max_mem: 64MB, max_file: 2GB }}",
                store
            ),
            false => String::new(),
        };
        let config = format!(
            "server_name: {name}\nlisten: \"127.0.0.1:{port}\"\nlog_file: {:?}\n{jetstream}\n{cluster}\n{}\n",
            folder.join("log"),
            options.more
        );
        std::fs::write(folder.join("conf"), config).expect("the server's configuration can be written");
        Self { binary: binary.to_owned(), folder: folder.to_owned(), port, child: None }
    }

    fn started(self) -> Self {
        let mut server = self.spawned();
        server.ready();
        server
    }

    fn spawned(mut self) -> Self {
        self.spawn();
        self
    }

    fn spawn(&mut self) {
        let child = Command::new(&self.binary)
            .arg("-c")
            .arg(self.folder.join("conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child =
            Some(child.unwrap_or_else(|error| panic!("{} does not start: {error}", self.binary.display())));
    }

    /// Waits until it says hello to a client.
    fn ready(&mut self) {
        let until = Instant::now() + READY;
        loop {
            let hello = TcpStream::connect(("127.0.0.1", self.port)).and_then(|mut stream| {
                stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                let mut hello = [0; 4];
                stream.read_exact(&mut hello).map(|()| hello)
            });
            if hello.is_ok_and(|hello| hello == *b"INFO") {
                return;
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            let log = || std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            assert!(ended.is_none(), "nats-server ended with {ended:?}:\n{}", log());
            assert!(Instant::now() < until, "nats-server is not ready after {READY:?}:\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its port for clients.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its folder: `conf`, `log`, `store`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends it at once, as a power cut would, but for what the operating system has not written.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill(); // it may have ended by itself
            let _ = child.wait();
        }
    }

    /// Starts it again, with the same port and folder, and waits until it answers.
    pub fn start_again(&mut self) {
        self.kill();
        self.spawn();
        self.ready();
    }

    /// Lets it stand still: its sockets stay open, nothing is answered.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill {signal} {pid}");
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}
