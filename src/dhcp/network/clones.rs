//! Machines that call themselves alike: two MACs with one client identifier are two machines from one disk image.
//!
//! Each gets an address of its own all the same, since a client is its MAC; but what else they have in common (host
//! keys, machine-id) is worth an operator's attention.

use std::collections::{BTreeSet, HashMap};

use crate::dhcp::lease::Binding;
use crate::net::MacAddr;

/// As many machines as one appliance holds (`NODES_MAX`); beyond, identifiers are not compared.
const IDENTIFIERS_MAX: usize = 32_768;
/// A whole rack from one image is one mistake: so many of its pairs are told.
const TOLD_MAX: usize = 64;

/// Who last was granted an address under each client identifier, since the appliance started.
#[derive(Debug, Default)]
pub(super) struct Clones {
    owners: HashMap<Vec<u8>, MacAddr>,
    told: BTreeSet<MacAddr>,
}

impl Clones {
    /// Takes note of a grant; the other machine with the same identifier, if that is news.
    pub(super) fn note(&mut self, binding: &Binding) -> Option<MacAddr> {
        let id = binding.client_id.as_ref().filter(|id| id.len() >= 2)?;
        let Some(owner) = self.owners.get_mut(id) else {
            if self.owners.len() < IDENTIFIERS_MAX {
                self.owners.insert(id.clone(), binding.mac);
            }
            return None;
        };
        let other = std::mem::replace(owner, binding.mac);
        let news = other != binding.mac && self.told.len() < TOLD_MAX && self.told.insert(binding.mac);
        news.then_some(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::dhcp::lease::{BindingState, ClientKey};

    fn binding(last: u8, id: &[u8]) -> Binding {
        let mac = MacAddr([2, 0, 0, 0, 0, last]);
        Binding {
            address: [10, 0, 0, last].into(),
            key: ClientKey::Mac(mac),
            mac,
            client_id: Some(id.to_vec()),
            hostname: None,
            state: BindingState::Bound,
            granted_at: Timestamp::default(),
            expires_at: Timestamp::default(),
        }
    }

    #[test]
    fn a_second_machine_with_the_same_identifier_is_news_once() {
        let mut clones = Clones::default();
        assert_eq!(clones.note(&binding(1, b"same")), None);
        assert_eq!(clones.note(&binding(1, b"same")), None);
        assert_eq!(clones.note(&binding(2, b"same")), Some(binding(1, b"").mac));
        assert_eq!(clones.note(&binding(2, b"same")), None);
        assert_eq!(clones.note(&binding(3, b"other")), None);
        assert_eq!(clones.note(&binding(4, b"x")), None);
        assert_eq!(clones.note(&binding(5, b"x")), None, "RFC 2132 §9.14: no identifier");
    }
}
