//! What one client, and all clients together, may take from the boot plane.

use std::time::Duration;

/// Every bound of the HTTP boot plane, with what happens at it. Tests shorten the times; nothing else changes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections. At the limit no more are accepted; they wait in the kernel's queue.
    pub connections: usize,
    /// Open connections of one address; the next one takes the place of the oldest. A booting machine opens one or two,
    /// GRUB one more for every seek, and what a machine had open that lost power stays open here for a while.
    pub connections_per_peer: usize,
    /// From the first byte of a request head (or from accepting the connection) to its last.
    pub head: Duration,
    /// Between requests. iPXE and edk2 keep a connection from HEAD to GET and from script to kernel.
    pub idle: Duration,
    /// While a request is read or its answer written, at least `progress_bytes` must move in each of these.
    pub progress_window: Duration,
    /// 1 KiB/s, with half of the window given away to a stall: ROMs stop for 30 s while they probe or erase.
    pub progress_bytes: u64,
    /// After the last answer, for the peer to read it and close: closing with unread input would discard the answer.
    pub linger: Duration,
    /// Downloads of large files at once. Beyond them everybody waits in a queue, and iPXE is told to come back (503,
    /// Retry-After) if its turn does not come soon (see [`downloads`](crate::bootplane::downloads)).
    pub bulk_transfers: usize,
    /// How long iPXE waits before it is told so.
    pub bulk_wait: Duration,
    /// Downloads beyond those, for clients that would give up if they waited any longer.
    pub bulk_reserve: usize,
    /// For connections to finish what they send when the appliance stops; then they are cut. Half of what a supervisor waits:
    /// on a busy machine the rest of the exit needs the other half.
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 8192,
            connections_per_peer: 32,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            progress_window: Duration::from_secs(60),
            progress_bytes: 30 * 1024,
            linger: Duration::from_secs(1),
            bulk_transfers: 512,
            bulk_wait: Duration::from_secs(2),
            bulk_reserve: 512,
            stop: Duration::from_millis(1000),
        }
    }
}
