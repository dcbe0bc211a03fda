//! Where a machine is plugged in while it boots with a token.
//!
//! A MAC and an address are easily claimed; a port of the bridge is not. So from the script that carried a token until the
//! token has lapsed, the machine stays where it was: who comes with its MAC from behind another port, while the first is
//! still plugged in, gets no token and redeems none. A machine that really moved leaves its port without carrier, and a
//! virtual one that is started again has its old port removed: both go on.
//!
//! Machines behind one port (a switch) cannot be told apart by it.

use crate::net::MacAddr;
use crate::node::registry::Registry;

/// What the kernel knows of the bridge's ports; the composition root answers.
pub trait Whereabouts: Send + Sync {
    /// The port this MAC was heard behind last.
    fn behind(&self, mac: MacAddr) -> Option<u32>;
    /// Whether something is plugged in there.
    fn is_plugged(&self, port: u32) -> bool;
}

impl Registry {
    /// From now on tokens stay behind the port they were issued to.
    pub fn watch_ports(&self, whereabouts: Box<dyn Whereabouts>) {
        // A second one would be a defect of the composition root, and the first goes on.
        let _ = self.whereabouts.set(whereabouts);
    }

    pub(super) fn port_of(&self, mac: MacAddr) -> Option<u32> {
        self.whereabouts.get()?.behind(mac)
    }

    /// Whether a machine that was behind `before` and now seems to be behind `now` cannot be the same.
    pub(super) fn is_another(&self, before: Option<u32>, now: Option<u32>) -> bool {
        match (before, now, self.whereabouts.get()) {
            (Some(before), Some(now), Some(ports)) => before != now && ports.is_plugged(before),
            (_, _, _) => false,
        }
    }
}
