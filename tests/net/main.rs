//! The bridge shell on real interfaces: every test has a network namespace of its own.
//!
//! A test first runs itself again below `unshare` (with a user namespace unless run by root), so nothing here can
//! touch the system's own network and nothing needs cleaning up.

mod advertise;
mod bridge;
mod dhcp;
#[path = "../it/dissect.rs"]
mod dissect;
mod frame;
mod guard;
mod link_local;
mod support;
