//! Boot profiles, as far as nodes have to do with them: who says which, and a look at a node for those who do.

use crate::boot::profile::AssignedProfile;
use crate::net::MacAddr;
use crate::node::Node;
use crate::node::registry::Registry;

/// Says which boot profile a node has. Asked with the book locked, for every message of a boot client: it answers from
/// memory and asks the registry nothing.
pub trait Profiles: Send + Sync {
    fn assigned(&self, node: &Node, boot: u32) -> Option<AssignedProfile>;
}

impl Registry {
    /// Once, before anything is served.
    pub fn follow_profiles(&self, profiles: Box<dyn Profiles>) {
        self.lock().follow_profiles(profiles);
    }

    /// A look at the node with this port and the number of its newest boot, without a copy. Not to be called from itself.
    pub fn look_at<R>(&self, mac: MacAddr, look: impl FnOnce(&Node, u32) -> R) -> Option<R> {
        let book = self.lock();
        let entry = book.owner_of(mac).and_then(|id| book.get(id))?;
        Some(look(&entry.node, entry.history.newest_number()))
    }
}
