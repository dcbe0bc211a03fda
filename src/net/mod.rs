//! The bridge and everything that touches it below UDP.
//!
//! - `mac`: Ethernet addresses
//! - `link`: links and addresses as the kernel tells them
//! - `link_thread`: a thread that sleeps until a link changes
//! - `bridge`: the one interface we serve, what must be true of it, and sockets that cannot leave it
//! - `congestion`: how TCP finds out what the link carries
//! - `frame`: IPv4/UDP frames to clients that have no address yet
//! - `arp`: whether anybody answers at an address
//! - `advertise`: IPv6 router advertisements that tell netbooting firmware not to wait for a router
//! - `link_local`: 169.254.169.254, for what comes in from the bridge
//! - `hazards`: what speaks against serving an interface
//! - `descriptors`: the limit of open files
//! - `neighbours`: the size of the host's neighbour table
//! - `pace`: how fast one machine is sent files
//! - `overheard`: what other DHCP servers say there
//! - `tap`: packet sockets that hear some frames of a link, and the filters that choose them
//! - `urgency`: which packets leave first when the link is full
//! - `sys`: the raw socket calls; the only file of the crate with `unsafe`; it is forbidden to all others

#[forbid(unsafe_code)]
pub mod advertise;
#[forbid(unsafe_code)]
pub mod arp;
#[forbid(unsafe_code)]
pub mod bridge;
#[forbid(unsafe_code)]
mod congestion;
#[forbid(unsafe_code)]
pub mod descriptors;
#[forbid(unsafe_code)]
pub mod frame;
#[forbid(unsafe_code)]
pub mod hazards;
#[forbid(unsafe_code)]
pub mod link;
#[forbid(unsafe_code)]
pub mod link_local;
#[forbid(unsafe_code)]
pub mod link_thread;
#[forbid(unsafe_code)]
pub mod mac;
#[forbid(unsafe_code)]
pub mod neighbours;
#[forbid(unsafe_code)]
pub mod overheard;
#[forbid(unsafe_code)]
pub mod pace;
#[forbid(unsafe_code)]
pub mod ports;
pub mod sys;
#[forbid(unsafe_code)]
pub mod tap;
#[forbid(unsafe_code)]
pub mod urgency;

pub use bridge::Bridge;
pub use mac::MacAddr;
pub use urgency::Urgency;
