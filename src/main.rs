//! `farrier`: argv → subcommand. The only place the process exits.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let finished = farrier::cli::run(std::env::args_os());
    finished.print();
    ExitCode::from(finished.code)
}
