//! The storm: a fleet of simulated machines that netboot over a real wire, as many as you like, at once.
//!
//! A *user* of a boot server, ours or another: it knows nothing of the appliance but what firmware knows. Each machine
//! has its own MAC and the timing and retry table of its firmware; what it is told by DHCP, it does, from loader to
//! enrolment. In reading order:
//!
//! - [`random`], [`schedule`]: one seed for everything: who is switched on when, and with what luck
//! - [`firmware`]: how each kind of client behaves, as data
//! - [`message`], [`tftp`], [`http`], [`script`]: the client's side of each protocol, as bytes and time
//! - [`machine`]: one machine, from power-on to enrolled or given up
//! - [`report`]: what is counted, and what is said about it at the end
//! - [`wire`], [`engine`]: sockets and the one loop that drives all machines
//! - [`ground`], [`rig`]: where a storm takes place: a cable into a bridge, or a lab of its own
//!
//! # Thousands of machines on one host
//! DHCP leaves as raw frames with each machine's own source MAC, so that bridge, server and lease table see as many
//! stations as there are machines; answers, unicast or broadcast, are read off the cable in promiscuous mode. TFTP and
//! HTTP use the kernel's UDP and TCP, each socket bound to the machine's leased address: when a machine is bound, that
//! one address becomes local to the storm's namespace (a `local` route, one netlink message) and the kernel answers
//! ARP for it, which is announced, for the address may have been another station's a moment ago; no other address of the
//! subnet is ever claimed. All machines thus share one MAC for IP traffic; a server that looks at layer 3, as TFTP and HTTP
//! servers do, sees no difference. A TCP of our own per machine would be more faithful in that one point and cost the CPU
//! that is wanted for the server, on the same machine, under test.
//!
//! Linux keeps 1 024 neighbours unless told otherwise, for all namespaces together. So that a storm needs no setting of
//! the machine's own changed, its end of the cable may hold one address beside the machines' ([`ground::Ground::gateway`]),
//! and the server's namespace route the machines by way of it: one neighbour instead of thousands.

pub mod engine;
pub mod firmware;
pub mod ground;
pub mod http;
pub mod machine;
pub mod message;
pub mod random;
pub mod report;
pub mod rig;
pub mod schedule;
pub mod script;
pub mod tftp;
pub mod wire;
