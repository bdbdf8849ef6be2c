//! No crate of Roomlog has unsafe code: the compiler refuses it in each, and nobody takes that refusal away.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::{fs, path::Path};

/// What may not say so, and why. Neither is in the `roomlog` binary.
const EXCEPTIONS: &[(&str, &str)] = &[
    // libFuzzer calls a C function, which its macro exports, and memory is bounded by an allocator; the targets themselves are in a
    // library that forbids unsafe code.
    ("tests/fuzz/src/main.rs", "libFuzzer's entry point"),
];

/// Crate roots below `folder`: `lib.rs` and `main.rs` of every package.
fn crate_roots(folder: &Path, roots: &mut Vec<String>, base: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !["target", "node_modules", ".git", ".data"].contains(&name.as_str()) {
            if path.join("Cargo.toml").exists() {
                for root in ["src/lib.rs", "src/main.rs"].map(|file| path.join(file)) {
                    if root.exists() {
                        roots.push(root.strip_prefix(base).unwrap().to_string_lossy().into_owned());
                    }
                }
            }
            crate_roots(&path, roots, base);
        }
    }
}

#[test]
fn every_crate_forbids_unsafe_code() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
    let mut roots = Vec::new();
    crate_roots(&base, &mut roots, &base);
    assert!(roots.len() >= 8, "crates are not found: {roots:?}");
    for root in &roots {
        let text = fs::read_to_string(base.join(root)).unwrap();
        let forbids = text.lines().any(|line| line == "#![forbid(unsafe_code)]");
        let excepted = EXCEPTIONS.iter().any(|(file, _)| file == root);
        assert!(forbids != excepted, "{root}: forbids unsafe code: {forbids}, excepted: {excepted}");
    }
    // Tests, examples and build scripts are crates of their own: the manifest's lint reaches those too.
    let workspace = fs::read_to_string(base.join("Cargo.toml")).unwrap();
    assert!(workspace.contains("unsafe_code = \"forbid\""), "the workspace's lint is gone");
    for root in roots.iter().filter(|root| !root.starts_with("tests/fuzz/")) {
        let manifest = base.join(root).parent().unwrap().parent().unwrap().join("Cargo.toml");
        let text = fs::read_to_string(&manifest).unwrap();
        assert!(
            text.contains("[lints]\nworkspace = true"),
            "{} leaves the workspace's lints out",
            manifest.display()
        );
    }
}
