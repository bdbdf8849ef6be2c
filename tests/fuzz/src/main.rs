//! The process libFuzzer runs: `ROOMLOG_FUZZ` says which target. `roomlog-fuzz seeds FOLDER` writes first inputs instead, here because only
//! libFuzzer has what code with coverage counters calls.
//!
//! This file cannot forbid unsafe code: libFuzzer calls it through an exported C function, which the macro writes; and the allocator that
//! refuses bombs is one (libFuzzer's own limit needs a sanitizer's hooks, which stable Rust has not).
#![no_main]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::OnceLock,
};

use libfuzzer_sys::fuzz_target;

/// The largest piece of memory an input may make us ask for, bytes: inputs are at most 16 KiB.
const MAX_ALLOCATION: usize = 64 << 20;

struct Bounded;

// SAFETY: each call goes to the system's allocator as it came; a request beyond the bound ends the process and returns nothing.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > MAX_ALLOCATION {
            std::process::abort();
        }
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: it came from the system's allocator with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > MAX_ALLOCATION {
            std::process::abort();
        }
        // SAFETY: it came from the system's allocator with this layout.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

static TARGET: OnceLock<roomlog_fuzz::Target> = OnceLock::new();

fuzz_target!(
    init: {
        let mut words = std::env::args().skip(1);
        if words.next().as_deref() == Some("seeds") {
            let folder = words.next().unwrap_or_else(|| "tests/fuzz/corpus".into());
            if let Err(error) = roomlog_fuzz::seeds::write(folder.as_ref()) {
                eprintln!("first inputs cannot be written to {folder}: {error}");
                std::process::exit(1);
            }
            std::process::exit(0);
        }
        let name = std::env::var("ROOMLOG_FUZZ").unwrap_or_default();
        let names: Vec<_> = roomlog_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
        match roomlog_fuzz::TARGETS.iter().find(|(known, _)| *known == name) {
            Some((_, run)) => {
                let _ = TARGET.set(*run);
            }
            None => {
                eprintln!("ROOMLOG_FUZZ={name:?} is no target: {}", names.join(" "));
                std::process::exit(2);
            }
        }
    },
    |data: &[u8]| {
        TARGET.get().expect("init set it")(data);
    }
);
