//! Counts beside those of the last release, and what is made of the difference.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// How much more a count may be, in percent, before the check fails. Two runs of one build differ by less than 0.1.
/// An allocation more for each packet out is 3 and more; one for each event is just 2, and `projections/tests/allocations.rs` counts those.
pub const TOLERANCE: f64 = 2.0;

/// The same for [`GROUPED`]: how many commits are in a group is the scheduler's, and on a busy machine 1 % more was seen.
pub const TOLERANCE_GROUPED: f64 = 10.0;

/// The path on which several threads meet.
const GROUPED: &str = "append";

/// The same where the compiler, libc, valgrind or the CPU is not the recorded one: then counts change without a change of ours (another division
/// into codegen units alone has moved one by 40 percent), so that only what is gross can be told. Whoever wants to know more records the
/// release's commit on that machine first.
pub const TOLERANCE_ELSEWHERE: f64 = 50.0;

/// Instructions, and what made the program that was counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub built_with: BuiltWith,
    /// Per unit of each path.
    pub instructions: BTreeMap<String, u64>,
}

/// What the number of instructions depends on besides our code and `Cargo.lock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltWith {
    pub rustc: String,
    pub libc: String,
    pub valgrind: String,
    pub cpu: String,
}

/// What a comparison came to.
#[derive(Debug)]
pub struct Verdict {
    lines: Vec<Line>,
    /// What the program was made of then and now, where that differs.
    elsewhere: Option<(BuiltWith, BuiltWith)>,
}

#[derive(Debug)]
struct Line {
    path: String,
    then: Option<u64>,
    now: Option<u64>,
    tolerance: f64,
}

impl Line {
    /// Percent; none if one of the two is missing.
    fn change(&self) -> Option<f64> {
        self.then.zip(self.now).map(|(then, now)| (now as f64 / then as f64 - 1.0) * 100.0)
    }

    fn passes(&self) -> bool {
        self.change().is_some_and(|change| change <= self.tolerance)
    }

    fn has_fallen(&self) -> bool {
        self.change().is_some_and(|change| change < -self.tolerance)
    }
}

impl Verdict {
    pub fn of(recorded: &Counts, found: &Counts) -> Self {
        let differs = recorded.built_with != found.built_with;
        let elsewhere = differs.then(|| (recorded.built_with.clone(), found.built_with.clone()));
        let (then, now) = (&recorded.instructions, &found.instructions);
        let mut paths: Vec<&String> =
            then.keys().chain(now.keys().filter(|path| !then.contains_key(*path))).collect();
        paths.sort_unstable();
        let lines = paths.into_iter().map(|path| Line {
            path: path.clone(),
            then: then.get(path).copied(),
            now: now.get(path).copied(),
            tolerance: match path.as_str() {
                _ if differs => TOLERANCE_ELSEWHERE,
                GROUPED => TOLERANCE_GROUPED,
                _ => TOLERANCE,
            },
        });
        Self { lines: lines.collect(), elsewhere }
    }

    pub fn passes(&self) -> bool {
        self.lines.iter().all(Line::passes)
    }
}

/// What to do about a count that is recorded anew.
const RECORD: &str = "cargo run --profile guard -p roomlog-guard -- record";

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((then, now)) = &self.elsewhere {
            writeln!(
                f,
                "NOT THE COMPILER, LIBC, VALGRIND OR CPU OF THE RECORD: only a rise of more than {TOLERANCE_ELSEWHERE} % is found"
            )?;
            writeln!(
                f,
                "  recorded with {then}\n  found with    {now}\n  counts to compare with are those of the recorded commit, built here: there, {RECORD}"
            )?;
        }
        writeln!(f, "{:<10} {:>12} {:>12} {:>9}", "path", "recorded", "found", "change")?;
        for line in &self.lines {
            let number = |count: Option<u64>| count.map_or("-".into(), |count| count.to_string());
            let change = line.change().map_or("-".into(), |change| format!("{change:+.1} %"));
            writeln!(
                f,
                "{:<10} {:>12} {:>12} {:>9}",
                line.path,
                number(line.then),
                number(line.now),
                change
            )?;
        }
        for line in &self.lines {
            let Line { path, tolerance, .. } = line;
            match (line.change(), line.passes()) {
                (Some(change), false) => writeln!(
                    f,
                    "{path}: FAILED: {change:.1} % more instructions than in the last release, {tolerance} % are tolerated. What is new on its way? If it \
                     is worth that, say so in the commit and run {RECORD}"
                )?,
                (None, _) => {
                    writeln!(f, "{path}: FAILED: it is not both recorded and counted; run {RECORD}")?
                }
                _ if line.has_fallen() => writeln!(
                    f,
                    "{path}: fallen by {:.1} %: run {RECORD}, so that it stays so",
                    -line.change().unwrap_or_default()
                )?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl fmt::Display for BuiltWith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {}, {}", self.rustc, self.libc, self.valgrind, self.cpu)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

    use super::*;

    fn counts(rustc: &str, packet: u64) -> Counts {
        let built_with = BuiltWith {
            rustc: rustc.into(),
            libc: "glibc 2".into(),
            valgrind: "valgrind-3".into(),
            cpu: "one".into(),
        };
        Counts { built_with, instructions: BTreeMap::from([("packet".to_owned(), packet)]) }
    }

    #[test]
    fn a_rise_beyond_the_tolerance_fails_and_a_fall_is_said() {
        let recorded = counts("rustc 1", 1000);
        for (found, passes, said) in
            [(1019, true, "+1.9 %"), (1021, false, "FAILED: 2.1 % more"), (960, true, "fallen by 4.0 %")]
        {
            let verdict = Verdict::of(&recorded, &counts("rustc 1", found));
            assert_eq!(verdict.passes(), passes, "{found}");
            assert!(verdict.to_string().contains(said), "{verdict}");
        }
    }

    #[test]
    fn another_compiler_is_said_and_only_a_great_rise_fails_then() {
        let recorded = counts("rustc 1", 1000);
        for (found, passes) in [(1000, true), (1490, true), (1510, false)] {
            let verdict = Verdict::of(&recorded, &counts("rustc 2", found));
            assert_eq!(verdict.passes(), passes, "{found}");
            assert!(verdict.to_string().starts_with("NOT THE COMPILER"), "{verdict}");
        }
    }

    #[test]
    fn a_path_without_its_record_or_its_count_fails() {
        let none = Counts { instructions: BTreeMap::new(), ..counts("rustc 1", 0) };
        for (recorded, found) in [(none.clone(), counts("rustc 1", 5)), (counts("rustc 1", 5), none)] {
            let verdict = Verdict::of(&recorded, &found);
            assert!(
                !verdict.passes() && verdict.to_string().contains("not both recorded and counted"),
                "{verdict}"
            );
        }
    }
}
