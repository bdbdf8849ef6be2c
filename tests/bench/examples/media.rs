//! `roomlog bench media` without the rest of the program, for work on the packet path: give it a worker with `--worker`.

use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    media: roomlog_bench::media::MediaArgs,
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    roomlog_bench::media::run(&Cli::parse().media)
}
