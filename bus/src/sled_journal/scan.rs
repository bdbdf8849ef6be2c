//! Finding the blocks in a segment's file without sled.
//!
//! sled puts a value into its log as one contiguous run of bytes (its log messages never cross its own segments, and nothing is
//! compressed), so a block can be found by its first bytes and proven by its checksum. Three things rest on it:
//!
//! * a closed segment needs no sled: its manifest says where each block is;
//! * a reader beside a running process needs neither its lock nor a copy;
//! * sled's own recovery is checked. It takes the first record that fails its checksum for the end of the log and clears what follows:
//!   right after a crash, silent loss after damage in the middle. What sled gives back is compared with what was found before it opened.
//!
//! A block may be found more than once: sled moves pages. Copies are equal; of two different blocks with one number the higher
//! generation counts.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt};

use memchr::memmem;

use super::{
    block::{Block, HEADER_BYTES, Header, MAGIC, MAX_BLOCK_BYTES},
    facts::JournalId,
};

/// Bytes read at once. Large enough that system calls do not matter, small enough for any machine.
const WINDOW: usize = 4 << 20;

/// Where an intact block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub header: Header,
    pub offset: u64,
}

/// What a scan found.
#[derive(Debug, Default, Clone)]
pub(super) struct Scan {
    /// Intact blocks by number.
    pub blocks: BTreeMap<u32, Found>,
    /// Places that begin like a block of this segment but fail their checksum, by the number they give.
    pub broken: BTreeMap<u32, Found>,
    /// Bytes of the file.
    pub file_bytes: u64,
}

impl Scan {
    /// How many blocks were on disk for certain, by what the blocks say themselves: 0 to `n - 1`.
    pub(super) fn durable(&self) -> u32 {
        self.blocks.values().map(|found| found.header.durable).max().unwrap_or(0)
    }

    /// The end of the longest run of whole groups from block 0 on: what a reader may serve.
    pub(super) fn whole_groups(&self) -> u32 {
        let mut end = 0;
        let mut next = 0;
        while let Some(found) = self.blocks.get(&next) {
            let Header { part, parts, .. } = found.header;
            next += 1;
            if part + 1 == parts {
                end = next;
            }
        }
        end
    }
}

/// Scans `file` for the blocks of `segment`, of `id`'s journal.
pub(super) fn scan(file: &File, id: &JournalId, segment: u32) -> io::Result<Scan> {
    let mut found = Scan::default();
    let finder = memmem::Finder::new(&MAGIC);
    let mut window: Vec<u8> = Vec::new();
    let mut base = 0_u64; // offset of the window's first byte
    let mut ended = false;
    loop {
        if !ended {
            ended = fill(file, &mut window, base)?;
        }
        let mut at = 0;
        loop {
            let Some(hit) = finder.find(&window[at..]).map(|hit| at + hit) else {
                // A block may begin in the last bytes.
                at = window.len().saturating_sub(MAGIC.len() - 1).max(at);
                break;
            };
            at = hit;
            if window.len() - at < MAX_BLOCK_BYTES && !ended {
                break;
            }
            at += take(&mut found, id, segment, &window[at..], base + at as u64);
        }
        if ended {
            found.file_bytes = base + window.len() as u64;
            return Ok(found);
        }
        window.drain(..at);
        base += at as u64;
    }
}

/// Looks at what begins like a block; says how many bytes are dealt with.
fn take(found: &mut Scan, id: &JournalId, segment: u32, bytes: &[u8], offset: u64) -> usize {
    let Ok(header) = Header::peek(bytes) else { return 1 };
    let length = header.bytes as usize;
    let intact = bytes.get(..length).is_some_and(|bytes| Block::parse(id, bytes).is_ok());
    if header.segment != segment {
        return if intact { length } else { 1 };
    }
    if !intact {
        found.broken.insert(header.number, Found { header, offset });
        return 1;
    }
    let new = Found { header, offset };
    let newer =
        found.blocks.get(&header.number).is_none_or(|known| known.header.generation < header.generation);
    if newer {
        found.blocks.insert(header.number, new);
    }
    // What is inside an intact block is its content, whatever it looks like.
    length
}

/// Reads on until the window is full; says whether the file ended.
fn fill(file: &File, window: &mut Vec<u8>, base: u64) -> io::Result<bool> {
    let mut length = window.len();
    window.resize(WINDOW.max(length + MAX_BLOCK_BYTES + HEADER_BYTES), 0);
    let mut ended = false;
    while length < window.len() {
        match file.read_at(&mut window[length..], base + length as u64) {
            Ok(0) => {
                ended = true;
                break;
            }
            Ok(n) => length += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    window.truncate(length);
    Ok(ended)
}
