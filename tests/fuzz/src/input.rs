//! Reading a script from the bytes of an input: when they end, everything is zero or empty.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// What is left of an input.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    /// The next two bytes, big endian.
    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// The next four bytes, big endian.
    pub fn long(&mut self) -> u32 {
        u32::from(self.word()) << 16 | u32::from(self.word())
    }

    /// As many bytes as the next one says, or what there is.
    pub fn short(&mut self) -> &'a [u8] {
        let count = usize::from(self.byte());
        self.take(count)
    }

    /// As many bytes as the next two say, or what there is.
    pub fn chunk(&mut self) -> &'a [u8] {
        let count = usize::from(self.word());
        self.take(count)
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A secret of this input alone, the same each time. libFuzzer sees what is compared, and puts it into later inputs: what it learned of a
/// packet sealed with a secret that all inputs share would pass for one that was forged.
pub fn secret(data: &[u8], bytes: usize) -> Vec<u8> {
    let word = |at: usize| {
        let mut hasher = DefaultHasher::new();
        (at, data).hash(&mut hasher);
        hasher.finish().to_be_bytes()
    };
    let mut secret: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(word).collect();
    secret.truncate(bytes);
    secret
}
