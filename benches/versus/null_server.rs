//! The limit: servers that answer without deciding, storing or looking anything up.
//!
//! What they cannot do, no server can that takes datagrams from a socket and answers by it: they cost the system calls,
//! and nothing else.

mod dhcp;
mod tftp;

/// The arguments that make this program a null server; the second tells which.
pub const ARGUMENT: &str = "--null-server";

pub fn run(which: Option<&str>) -> ! {
    match which {
        Some(dhcp::ARGUMENT) => dhcp::run(),
        Some(tftp::ARGUMENT) => tftp::run(),
        other => panic!("no null server for {other:?}"),
    }
}

pub use dhcp::ARGUMENT as DHCP;
pub use tftp::ARGUMENT as TFTP;
