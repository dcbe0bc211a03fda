//! The bridge and everything that touches it below UDP.
//!
//! - `mac`: Ethernet addresses
//! - `link`: links and addresses as the kernel tells them
//! - `bridge`: the one interface we serve, what must be true of it, and sockets that cannot leave it
//! - `frame`: IPv4/UDP frames to clients that have no address yet
//! - `advertise`: IPv6 router advertisements that tell netbooting firmware not to wait for a router
//! - `neighbours`: the size of the host's neighbour table
//! - `sys`: the raw socket calls; the only file of the crate with `unsafe`

pub mod advertise;
pub mod bridge;
pub mod frame;
pub mod link;
pub mod mac;
pub mod neighbours;
pub mod sys;

pub use bridge::Bridge;
pub use mac::MacAddr;
