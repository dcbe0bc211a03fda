//! Which of our packets leave first when the link is full.
//!
//! A link that carries downloads has a queue, and what is sent stands at its end: 1000 packets are 12 ms at 1 Gbit/s,
//! or half a second if the kernel hands them over 64 KiB at a time. The usual queue (`pfifo_fast`) has three lanes, and a
//! packet's priority chooses among them. The priority stays with the packet across the bridge, so that it counts where
//! the queue is: at the card behind it. Queues that part flows by themselves (`fq_codel`) need none of this, and
//! ignore it.

use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};

/// How much a client minds waiting for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A machine stands still until it comes, and it is small: DHCP, scripts, the agent's calls.
    Prompt,
    /// Part of many megabytes; only their sum matters.
    Bulk,
}

impl Urgency {
    /// `TC_PRIO_INTERACTIVE` (first lane) and `TC_PRIO_BULK` (last) of linux/pkt_sched.h; neither takes a privilege.
    fn priority(self) -> i32 {
        match self {
            Urgency::Prompt => 6,
            Urgency::Bulk => 2,
        }
    }

    /// For what the socket sends from now on. A listener's connections begin with the listener's.
    pub fn set_on(self, socket: &impl AsFd) {
        // Every Linux socket has a priority. Without it packets wait their turn, which is no reason not to serve.
        let _ = setsockopt(socket, sockopt::Priority, &self.priority());
    }
}
