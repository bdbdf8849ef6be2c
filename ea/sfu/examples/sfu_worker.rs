//! The worker as a program of its own, for development: the control protocol on stdin and stdout, logs on stderr.

fn main() -> Result<(), roomlog_sfu::WorkerError> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    roomlog_sfu::run_worker()
}
