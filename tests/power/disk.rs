//! What a disk may hold when the power goes: the record of `shim.c`, played up to any point, and the folder as it may then be found.
//!
//! ```text
//!  file       content at its last sync ── then ── changes since: any of them may be there, any sector by itself
//!  directory  entries at its last sync ── then ── changes since: any of them may be there
//! ```
//! A sector holds what it held at its last sync or at any change since; the file's length is one it had since. That is what a page cache
//! does that writes back when it likes. Sectors are written whole. A failed sync is the kernel's: what it should have written may be
//! there or not, and no later sync makes it so.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    os::unix::fs::FileExt,
    path::Path,
};

use rand::{Rng, rngs::StdRng};

/// What disks write whole. Modern ones write 4096 and say so; the smaller one tears more.
pub const SECTOR: usize = 512;

const HEADER: usize = 40;
const MAGIC: u32 = 0x3152_5750;

/// One record of the shim.
#[derive(Debug)]
pub enum Record<'a> {
    Created { inode: u64, path: &'a str },
    Opened { inode: u64, path: &'a str },
    Wrote { inode: u64, at: u64, bytes: &'a [u8] },
    Cut { inode: u64, length: u64 },
    SyncBegan { token: u64 },
    SyncEnded { inode: u64, token: u64, error: u64 },
    Renamed { from: &'a str, to: &'a str },
    Unlinked { path: &'a str },
    MadeDirectory { inode: u64, path: &'a str },
    RemovedDirectory { path: &'a str },
    Linked { from: &'a str, to: &'a str },
    Said { text: &'a [u8] },
    Range,
    Fault { error: u64, name: &'a str },
}

/// Reads the records in `log`; a last one that the kill cut short never happened.
pub fn records(log: &[u8]) -> Vec<Record<'_>> {
    let mut all = Vec::new();
    let mut rest = log;
    while rest.len() >= HEADER {
        let u32_at =
            |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().expect("as many bytes as were taken"));
        let u64_at =
            |at: usize| u64::from_ne_bytes(rest[at..at + 8].try_into().expect("as many bytes as were taken"));
        assert_eq!(u32_at(0), MAGIC, "record {} of the shim is none", all.len());
        let (kind, inode, a, b) = (rest[4], u64_at(8), u64_at(16), u64_at(24));
        let (first, second) = (u32_at(32) as usize, u32_at(36) as usize);
        let Some(texts) = rest.get(HEADER..HEADER + first + second) else { break };
        rest = &rest[HEADER + first + second..];
        let (bytes, second) = texts.split_at(first);
        let text = |bytes| std::str::from_utf8(bytes).unwrap_or_default();
        all.push(match kind {
            1 => Record::Created { inode, path: text(bytes) },
            2 => Record::Wrote { inode, at: a, bytes },
            3 => Record::Cut { inode, length: a },
            4 => Record::SyncBegan { token: a },
            5 => Record::SyncEnded { inode, token: a, error: b },
            6 => Record::Renamed { from: text(bytes), to: text(second) },
            7 => Record::Unlinked { path: text(bytes) },
            8 => Record::MadeDirectory { inode, path: text(bytes) },
            9 => Record::RemovedDirectory { path: text(bytes) },
            10 => Record::Linked { from: text(bytes), to: text(second) },
            11 => Record::Said { text: bytes },
            12 => Record::Range,
            13 => Record::Fault { error: a, name: text(bytes) },
            14 => Record::Opened { inode, path: text(bytes) },
            other => panic!("the shim has no record of kind {other}"),
        });
    }
    all
}

type NodeId = usize;

#[derive(Debug, Clone)]
enum Change {
    Write { at: u64, bytes: Vec<u8> },
    Length(u64),
}

#[derive(Debug)]
enum Node {
    File {
        durable: Vec<u8>,
        /// With the number of the record, and whether a sync of it has failed.
        since: Vec<(u64, Change, bool)>,
    },
    Directory {
        durable: BTreeMap<String, NodeId>,
        now: BTreeMap<String, NodeId>,
    },
}

/// A change of directories; whole or not at all.
#[derive(Debug)]
struct Move {
    number: u64,
    /// Directory, name, and what is there afterwards.
    sets: Vec<(NodeId, String, Option<NodeId>)>,
}

/// The disk at a point of the record.
#[derive(Debug)]
pub struct Disk {
    nodes: Vec<Node>,
    by_inode: HashMap<u64, NodeId>,
    moves: Vec<Move>,
    /// Syncs under way, by token: the number of the record each began at.
    syncs: HashMap<u64, u64>,
    played: u64,
}

/// How much of what was not synced is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Nothing,
    Everything,
    /// What came first, the last of it torn.
    Beginning,
    /// Anything.
    Any,
}

impl Kept {
    pub fn draw(rng: &mut StdRng) -> Self {
        [Self::Nothing, Self::Everything, Self::Beginning, Self::Any, Self::Any][rng.random_range(0..5)]
    }
}

const ROOT: NodeId = 0;

impl Disk {
    /// A disk on which all of `folder` is safe.
    pub fn load(folder: &Path) -> io::Result<Self> {
        let mut disk = Self {
            nodes: Vec::new(),
            by_inode: HashMap::new(),
            moves: Vec::new(),
            syncs: HashMap::new(),
            played: 0,
        };
        disk.load_directory(folder)?;
        Ok(disk)
    }

    fn load_directory(&mut self, path: &Path) -> io::Result<NodeId> {
        let id = self.add(Node::Directory { durable: BTreeMap::new(), now: BTreeMap::new() });
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let child = if entry.file_type()?.is_dir() {
                self.load_directory(&entry.path())?
            } else {
                let durable = fs::read(entry.path())?;
                self.add(Node::File { durable, since: Vec::new() })
            };
            entries.insert(entry.file_name().into_string().expect("our names are text"), child);
        }
        self.nodes[id] = Node::Directory { durable: entries.clone(), now: entries };
        Ok(id)
    }

    fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn now(&mut self, directory: NodeId) -> &mut BTreeMap<String, NodeId> {
        match &mut self.nodes[directory] {
            Node::Directory { now, .. } => now,
            Node::File { .. } => panic!("a file is used as a directory"),
        }
    }

    /// The directory of `path` and the last part of it.
    fn place(&mut self, path: &str) -> (NodeId, String) {
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut at = ROOT;
        for part in parents.split('/').filter(|part| !part.is_empty()) {
            at = *self.now(at).get(part).unwrap_or_else(|| panic!("{path}: there is no {part}"));
        }
        (at, name.to_owned())
    }

    fn find(&mut self, path: &str) -> Option<NodeId> {
        if path.is_empty() {
            return Some(ROOT);
        }
        let (directory, name) = self.place(path);
        self.now(directory).get(&name).copied()
    }

    fn set(&mut self, sets: Vec<(NodeId, String, Option<NodeId>)>) {
        for (directory, name, node) in sets.clone() {
            match node {
                Some(node) => self.now(directory).insert(name, node),
                None => self.now(directory).remove(&name),
            };
        }
        self.moves.push(Move { number: self.played, sets });
    }

    fn make(&mut self, inode: u64, path: &str, node: Node) {
        let node = self.add(node);
        self.by_inode.insert(inode, node);
        let (directory, name) = self.place(path);
        self.set(vec![(directory, name, Some(node))]);
    }

    fn change(&mut self, inode: u64, change: Change) {
        let number = self.played;
        let node = self.by_inode[&inode];
        match &mut self.nodes[node] {
            Node::File { since, .. } => since.push((number, change, false)),
            Node::Directory { .. } => panic!("a directory is written to"),
        }
    }

    /// Plays the next record.
    pub fn play(&mut self, record: &Record<'_>) {
        self.played += 1;
        match *record {
            Record::Created { inode, path } => {
                self.make(inode, path, Node::File { durable: Vec::new(), since: Vec::new() });
            }
            Record::MadeDirectory { inode, path } => {
                self.make(inode, path, Node::Directory { durable: BTreeMap::new(), now: BTreeMap::new() });
            }
            Record::Opened { inode, path } => {
                let node = self.find(path).unwrap_or_else(|| panic!("{path} was opened and is not there"));
                self.by_inode.insert(inode, node);
            }
            Record::Wrote { inode, at, bytes } => {
                self.change(inode, Change::Write { at, bytes: bytes.to_vec() });
            }
            Record::Cut { inode, length } => self.change(inode, Change::Length(length)),
            Record::SyncBegan { token } => {
                self.syncs.insert(token, self.played);
            }
            Record::SyncEnded { inode, token, error } => {
                let began = self.syncs.remove(&token).expect("a sync begins before it ends");
                self.synced(self.by_inode[&inode], began, error != 0);
            }
            Record::Renamed { from, to } => {
                let node = self.find(from).expect("what is renamed is there");
                let (from, to) = (self.place(from), self.place(to));
                self.set(vec![(from.0, from.1, None), (to.0, to.1, Some(node))]);
            }
            Record::Linked { from, to } => {
                let node = self.find(from).expect("what is linked is there");
                let to = self.place(to);
                self.set(vec![(to.0, to.1, Some(node))]);
            }
            Record::Unlinked { path } | Record::RemovedDirectory { path } => {
                let (directory, name) = self.place(path);
                self.set(vec![(directory, name, None)]);
            }
            Record::Said { .. } | Record::Range | Record::Fault { .. } => {}
        }
    }

    /// A sync of `node` that began at record `began` has ended.
    fn synced(&mut self, node: NodeId, began: u64, failed: bool) {
        match &mut self.nodes[node] {
            Node::File { durable, since } => {
                if failed {
                    since.iter_mut().filter(|change| change.0 < began).for_each(|change| change.2 = true);
                    return;
                }
                let (now, later) = std::mem::take(since)
                    .into_iter()
                    .partition::<Vec<_>, _>(|(number, _, lost)| *number < began && !lost);
                *since = later;
                for (_, change, _) in now {
                    apply(durable, &change);
                }
            }
            Node::Directory { .. } if failed => {}
            Node::Directory { .. } => {
                let (now, later) = std::mem::take(&mut self.moves)
                    .into_iter()
                    .partition::<Vec<_>, _>(|m| m.number < began && m.sets.iter().any(|set| set.0 == node));
                self.moves = later;
                for moved in now {
                    for (directory, name, node) in moved.sets {
                        let Node::Directory { durable, .. } = &mut self.nodes[directory] else { continue };
                        match node {
                            Some(node) => durable.insert(name, node),
                            None => durable.remove(&name),
                        };
                    }
                }
            }
        }
    }

    /// Bytes that a power cut may take now.
    pub fn unsynced(&self) -> u64 {
        let bytes = |change: &Change| match change {
            Change::Write { bytes, .. } => bytes.len() as u64,
            Change::Length(_) => 0,
        };
        self.nodes
            .iter()
            .map(|node| match node {
                Node::File { since, .. } => since.iter().map(|(_, change, _)| bytes(change)).sum(),
                Node::Directory { .. } => 0,
            })
            .sum()
    }

    /// Builds in `folder`, which must not be there, what may be found after a power cut now.
    pub fn cut(&self, folder: &Path, entries: Kept, content: Kept, rng: &mut StdRng) -> io::Result<()> {
        let mut directories: HashMap<NodeId, BTreeMap<String, NodeId>> = HashMap::new();
        for (id, node) in self.nodes.iter().enumerate() {
            if let Node::Directory { durable, .. } = node {
                directories.insert(id, durable.clone());
            }
        }
        let beginning = rng.random_range(0..=self.moves.len());
        for (i, moved) in self.moves.iter().enumerate() {
            let there = match entries {
                Kept::Nothing => false,
                Kept::Everything => true,
                Kept::Beginning => i < beginning,
                Kept::Any => rng.random_bool(0.5),
            };
            for (directory, name, node) in moved.sets.iter().filter(|_| there) {
                let entries = directories.get_mut(directory).expect("every directory is in it");
                match node {
                    Some(node) => entries.insert(name.clone(), *node),
                    None => entries.remove(name),
                };
            }
        }
        self.write_directory(ROOT, folder, &directories, content, rng)
    }

    fn write_directory(
        &self,
        id: NodeId,
        path: &Path,
        directories: &HashMap<NodeId, BTreeMap<String, NodeId>>,
        content: Kept,
        rng: &mut StdRng,
    ) -> io::Result<()> {
        fs::create_dir(path)?;
        for (name, child) in &directories[&id] {
            let path = path.join(name);
            match &self.nodes[*child] {
                Node::Directory { .. } => self.write_directory(*child, &path, directories, content, rng)?,
                Node::File { durable, since } => {
                    write_sparse(&path, &found(durable, since, content, rng))?;
                }
            }
        }
        Ok(())
    }
}

/// A file's content as it may be found.
fn found(durable: &[u8], since: &[(u64, Change, bool)], kept: Kept, rng: &mut StdRng) -> Vec<u8> {
    let mut content = durable.to_vec();
    match kept {
        Kept::Nothing => {}
        Kept::Everything => since.iter().for_each(|(_, change, _)| apply(&mut content, change)),
        Kept::Beginning => {
            let n = rng.random_range(0..=since.len());
            since[..n].iter().for_each(|(_, change, _)| apply(&mut content, change));
            if let Some((_, Change::Write { at, bytes }, _)) = since.get(n) {
                // The file may have the last write's sectors up to some point, where on the disk a sector ends.
                let end = (*at as usize + rng.random_range(0..=bytes.len())) / SECTOR * SECTOR;
                let torn = end.saturating_sub(*at as usize).min(bytes.len());
                apply(&mut content, &Change::Write { at: *at, bytes: bytes[..torn].to_vec() });
            }
        }
        Kept::Any => {
            // What each sector was at each time, and a time for each.
            let mut dirty: BTreeMap<usize, usize> = BTreeMap::new();
            let mut lengths = vec![durable.len() as u64];
            let (mut whole, mut times) = (durable.to_vec(), Vec::new());
            for (time, (_, change, _)) in since.iter().enumerate() {
                let mut touched = BTreeSet::new();
                if let Change::Write { at, bytes } = change
                    && !bytes.is_empty()
                {
                    touched.extend(*at as usize / SECTOR..=(*at as usize + bytes.len() - 1) / SECTOR);
                }
                for sector in &touched {
                    dirty.entry(*sector).or_insert_with(|| rng.random_range(0..=since.len()));
                }
                lengths.push(match change {
                    Change::Write { at, bytes } => lengths[time].max(at + bytes.len() as u64),
                    Change::Length(length) => *length,
                });
                times.push(touched);
            }
            let mut chosen: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
            for (sector, _) in dirty.iter().filter(|(_, time)| **time == 0) {
                chosen.insert(*sector, sector_of(&whole, *sector));
            }
            for (time, (_, change, _)) in since.iter().enumerate() {
                apply(&mut whole, change);
                for sector in &times[time] {
                    if dirty[sector] > time {
                        chosen.insert(*sector, sector_of(&whole, *sector));
                    }
                }
            }
            let length = lengths[rng.random_range(0..lengths.len())] as usize;
            for (sector, bytes) in chosen {
                apply(&mut content, &Change::Write { at: (sector * SECTOR) as u64, bytes });
            }
            content.resize(length, 0);
        }
    }
    content
}

fn sector_of(content: &[u8], sector: usize) -> Vec<u8> {
    let start = (sector * SECTOR).min(content.len());
    let mut bytes = content[start..(start + SECTOR).min(content.len())].to_vec();
    bytes.resize(SECTOR, 0);
    bytes
}

fn apply(content: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(length) => content.resize(*length as usize, 0),
        Change::Write { bytes, .. } if bytes.is_empty() => {}
        Change::Write { at, bytes } => {
            let end = *at as usize + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*at as usize..end].copy_from_slice(bytes);
        }
    }
}

/// Writes a file, leaving out what is zero: sled's are mostly that.
fn write_sparse(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = fs::File::create(path)?;
    file.set_len(content.len() as u64)?;
    for (i, page) in content.chunks(64 * 1024).enumerate() {
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(page, (i * 64 * 1024) as u64)?;
        }
    }
    Ok(())
}
