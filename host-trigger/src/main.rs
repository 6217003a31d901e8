//! `ecr-runtime`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    host_trigger::command_line::run()
}
