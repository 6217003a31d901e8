//! `vm-harness`: boots sandboxes for people and for CI.

mod command;

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::{Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

fn main() -> ExitCode {
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_filter(tracing_subscriber::EnvFilter::from_default_env());
    tracing_subscriber::registry().with(log).with(command::Awaited).init();
    // The runtime's main thread starts QEMU: the kernel ends QEMU when the thread that started it
    // ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(command::run(command::Arguments::parse()));
            // A thread that reads standard input may still wait for it, and would hold the runtime.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}
