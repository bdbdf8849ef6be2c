//! `deploy/test guard`: what a packet, an event and a commit take in instructions, beside what they took in the last release.
//!
//! Times are noise on the machines that test; the number of instructions is not. [`paths`] walks each way many times, [`callgrind`] counts,
//! [`counts`] compares with `counts.json`.
//!
//! ```text
//!  cargo run --profile guard -p roomlog-guard -- check     fails when a count has risen
//!  cargo run --profile guard -p roomlog-guard -- record    writes counts.json anew: at a release, or with a change that is worth its price
//! ```

#![forbid(unsafe_code)]

mod callgrind;
mod counts;
mod paths;

use std::{collections::BTreeMap, path::Path, process::ExitCode};

use anyhow::{Context, bail};

use counts::{Counts, Verdict};
use paths::PATHS;

/// Where the counts of the last release are kept.
const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/counts.json");

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["check"] => check(),
        ["record"] => record(),
        // What is run under callgrind.
        ["walk", name, rounds] => {
            let path = PATHS.iter().find(|path| path.name == name).context("there is no such path")?;
            let units = (path.walk)(rounds.parse().context("rounds are a number")?)?;
            println!("{units}");
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("say check, or record to write {RECORDED} anew"),
    }
}

fn check() -> anyhow::Result<ExitCode> {
    let recorded = std::fs::read_to_string(RECORDED).with_context(|| format!("cannot read {RECORDED}"))?;
    let recorded: Counts =
        serde_json::from_str(&recorded).with_context(|| format!("{RECORDED} does not read"))?;
    let found = measure()?;
    let verdict = Verdict::of(&recorded, &found);
    print!("{verdict}");
    Ok(if verdict.passes() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn record() -> anyhow::Result<ExitCode> {
    let found = measure()?;
    let text = serde_json::to_string_pretty(&found)? + "\n";
    std::fs::write(RECORDED, &text).with_context(|| format!("cannot write {RECORDED}"))?;
    print!("{text}");
    Ok(ExitCode::SUCCESS)
}

fn measure() -> anyhow::Result<Counts> {
    if cfg!(debug_assertions) {
        bail!("a debug build: its instructions are not those that are shipped; build with --profile guard");
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut instructions = BTreeMap::new();
    for path in PATHS {
        eprintln!("{}: {} …", path.name, path.what);
        instructions.insert(path.name.to_owned(), callgrind::per_unit(Path::new(&program), path)?);
    }
    Ok(Counts { built_with: callgrind::built_with()?, instructions })
}
