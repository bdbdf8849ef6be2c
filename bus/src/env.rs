//! What a node is given from outside: the clock and the random source. Production passes the machine's, a simulation its own.

use std::sync::{Arc, Mutex, PoisonError};

use rand::{RngCore, SeedableRng, rngs::StdRng};

use crate::time::{Clock, SystemClock, Timestamp};

/// Clock and random source of one node. Clones share both.
#[derive(Clone)]
pub struct Env {
    clock: Arc<dyn Clock>,
    rng: Arc<Mutex<StdRng>>,
}

impl Env {
    /// An environment of given parts.
    pub fn new(clock: Arc<dyn Clock>, seed: [u8; 32]) -> Self {
        Self { clock, rng: Arc::new(Mutex::new(StdRng::from_seed(seed))) }
    }

    /// The machine's clock and the operating system's randomness.
    #[allow(clippy::disallowed_methods, reason = "the one edge where the machine's randomness is taken")]
    pub fn system() -> Self {
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        Self::new(Arc::new(SystemClock), seed)
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Draws from the random source (ChaCha12, seeded with 256 bits: fit for keys and ids).
    pub fn draw<T>(&self, take: impl FnOnce(&mut dyn RngCore) -> T) -> T {
        take(&mut *self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
