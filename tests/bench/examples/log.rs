//! `roomlog bench log` without the rest of the program, for work on the journal and the folds.

use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    log: roomlog_bench::log::LogArgs,
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    roomlog_bench::log::run(&Cli::parse().log)
}
