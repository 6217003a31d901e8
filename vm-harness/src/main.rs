//! The program `vm-harness`: boots sandboxes, measures and tests them, by hand and in CI.

mod command;

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::{Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

fn main() -> ExitCode {
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_filter(tracing_subscriber::EnvFilter::from_default_env());
    tracing_subscriber::registry().with(log).with(command::WaitStatus).init();
    // A current-thread runtime, so that the main thread starts QEMU: the kernel kills QEMU when the
    // thread that started it ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(command::run(command::Arguments::parse()));
            // A thread may still be blocked in a read of standard input, and dropping the runtime
            // would wait for it.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            eprintln!("error: cannot start the asynchronous runtime: {error}");
            ExitCode::FAILURE
        }
    }
}
