//! `docs/faults.md` names for each promise the test that holds it, and that test is there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::{fs, path::Path};

const DOCUMENT: &str = "docs/faults.md";
/// The heading of the column with the tests.
const COLUMN: &str = "held to it by";
/// Where browser tests have their names.
const BROWSER_CASES: &str = "tests/browser/cases";

/// All of our Rust and browser tests, as one text.
fn read_below(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !["target", "node_modules", ".git", ".data", "corpus"].contains(&name.as_str()) {
            read_below(&path, text);
        } else if name.ends_with(".rs")
            || (name.ends_with(".mjs") && path.to_string_lossy().contains(BROWSER_CASES))
        {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// Whether `reference`, which may end in `…`, is a test or a file; nothing for what is neither in form, such as a variable.
fn is_there(base: &Path, sources: &str, reference: &str) -> Option<bool> {
    let begins = reference.split('…').next().unwrap().trim_end();
    if reference.ends_with(".rs") || reference.ends_with(".mjs") {
        Some(base.join(reference).exists())
    } else if reference.contains(' ') && reference.ends_with('…') {
        Some(sources.contains(begins))
    } else if reference.contains('_') && reference.chars().all(|c| !c.is_ascii_uppercase()) {
        // Browser tests are named in words, and here as Rust's are.
        Some(sources.contains(&format!("fn {begins}")) || sources.contains(&begins.replace('_', " ")))
    } else if let Some(step) = reference.strip_prefix("deploy/test ") {
        let steps = fs::read_to_string(base.join("deploy/test")).unwrap();
        Some(steps.contains(&format!("\n{step}() {{")))
    } else {
        None
    }
}

#[test]
fn each_promise_under_fault_names_a_test_that_is_there() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut sources = String::new();
    read_below(base, &mut sources);
    let document = fs::read_to_string(base.join(DOCUMENT)).unwrap();
    let (mut column, mut promises) = (None, 0);
    for (number, line) in document.lines().enumerate() {
        let number = number + 1;
        let Some(row) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else {
            column = None;
            continue;
        };
        let cells: Vec<&str> = row.split(" | ").map(str::trim).collect();
        if let Some(found) = cells.iter().position(|cell| *cell == COLUMN) {
            column = Some(found);
            continue;
        }
        let Some(cell) = column.and_then(|column| cells.get(column)).filter(|cell| !cell.starts_with("---"))
        else {
            continue;
        };
        let mut named = 0;
        for reference in cell.split('`').skip(1).step_by(2) {
            match is_there(base, &sources, reference) {
                Some(true) => named += 1,
                Some(false) => panic!("{DOCUMENT}:{number}: there is no {reference}"),
                None => {}
            }
        }
        assert!(named > 0, "{DOCUMENT}:{number}: no test holds this promise: {cell}");
        promises += 1;
    }
    assert!(promises > 40, "only {promises} promises are found: has the table another form?");
}
