//! `/init` of the deploy ramdisk; see [`farrier::agent`].

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    farrier::agent::run(std::env::args_os().skip(1))
}
