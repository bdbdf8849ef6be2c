//! Runs a path under callgrind and reads what it counted.
//!
//! callgrind emulates one core that has AVX2 and no AES for vectors, whatever the machine has (a machine without AVX2 aside), so that
//! crates that ask the CPU what it can do go the same way everywhere.

use std::{path::Path, process::Command};

use anyhow::{Context, ensure};

use crate::{counts::BuiltWith, paths};

/// Instructions per unit of `path`.
pub fn per_unit(program: &Path, path: &paths::Path) -> anyhow::Result<u64> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("out");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet", "--collect-atstart=no"]);
    command.arg(format!("--callgrind-out-file={}", out.display()));
    command.args(path.counted.iter().map(|name| format!("--toggle-collect={name}")));
    command.arg(program).args(["walk", path.name, &path.rounds.to_string()]);
    let run = command.output().context("cannot run valgrind: install Debian's package of that name")?;
    let said = String::from_utf8_lossy(&run.stderr);
    ensure!(run.status.success(), "walking {} under callgrind failed: {said}", path.name);
    let units: u64 =
        String::from_utf8_lossy(&run.stdout).trim().parse().context("a walk prints its units")?;
    let written = std::fs::read_to_string(&out).context("callgrind wrote nothing")?;
    let total =
        total(&written).with_context(|| format!("callgrind counted nothing of {}: {said}", path.name))?;
    Ok(total / units)
}

/// The sum in what callgrind writes.
fn total(written: &str) -> Option<u64> {
    let line = written.lines().find_map(|line| line.strip_prefix("totals: "))?;
    line.trim().parse().ok().filter(|total| *total > 0)
}

/// What this machine builds and counts with.
pub fn built_with() -> anyhow::Result<BuiltWith> {
    let first_line = |program: &str| -> anyhow::Result<String> {
        let out = Command::new(program).arg("--version").output();
        let out = out.with_context(|| format!("cannot run {program} --version"))?;
        Ok(String::from_utf8_lossy(&out.stdout).lines().next().unwrap_or_default().to_owned())
    };
    // "ldd (Debian GLIBC 2.36-9+deb12u14) 2.36": a distribution's patches change no count.
    let libc = first_line("ldd")?.split(' ').next_back().map(|version| format!("glibc {version}"));
    Ok(BuiltWith {
        rustc: first_line(&std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into()))?,
        libc: libc.unwrap_or_default(),
        valgrind: first_line("valgrind")?,
        cpu: cpu(),
    })
}

/// What callgrind's core can do depends on this of the real one.
fn cpu() -> String {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        return "x86_64 with AVX2".into();
    }
    std::env::consts::ARCH.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callgrind_wrote_is_read_and_nothing_is_no_count() {
        let written = "version: 1\nevents: Ir\nfn=(1) a\n12 30\n\ntotals: 109914907\n";
        assert_eq!(total(written), Some(109_914_907));
        assert_eq!(total("events: Ir\ntotals: 0\n"), None, "a name that callgrind did not find");
        assert_eq!(total("events: Ir\n"), None);
    }
}
