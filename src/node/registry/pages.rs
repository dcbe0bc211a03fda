//! Reading many nodes without a copy of any: a page at a time, in the order in which they became known.
//!
//! DHCP waits for the same lock, so a page is read in short turns; between two turns the book is let go. A node that
//! comes in between has its place behind all others: no page shows one twice, and none leaves one out.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::str::FromStr;

use uuid::Uuid;

use crate::boot::client::Firmware;
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::labels::LabelSelector;
use crate::node::registry::Registry;
use crate::node::registry::book::Book;
use crate::node::registry::entry::Entry;
use crate::node::registry::install::InstallView;
use crate::node::state::ProvisionState;
use crate::node::timeline::{Boot, BootProgress};
use crate::node::{Node, NodeId, NodeName};

/// Nodes looked at in one turn: some ten microseconds, which no lease notices.
const TURN_NODES_MAX: usize = 16;

/// The place behind one node, in the order in which nodes became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeCursor {
    pub created_at: Timestamp,
    pub id: NodeId,
}

/// Which nodes a list is to have; all of what is named must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFilter {
    pub state: Option<ProvisionState>,
    pub approved: Option<bool>,
    pub firmware: Option<Firmware>,
    /// In its name, a MAC, a reserved address, a label, its id, its UUID or its serial number; lower case.
    pub text: Option<String>,
    pub labels: LabelSelector,
}

/// A node while the book is open: with the configuration's reservations and the policy's approval.
pub struct NodeView<'a> {
    pub node: &'a Node,
    pub approved: bool,
    book: &'a Book,
    entry: &'a Entry,
}

impl<'a> NodeView<'a> {
    pub(super) fn of(book: &'a Book, entry: &'a Entry) -> NodeView<'a> {
        NodeView { node: &entry.node, approved: book.lets_in(entry), book, entry }
    }

    /// Address fixed for this port, by an operator or in the configuration.
    pub fn reserved(&self, mac: MacAddr) -> Option<Ipv4Addr> {
        self.book.reserved(self.entry, mac)
    }

    pub fn newest_boot(&self) -> Option<BootProgress> {
        self.entry.history.newest_boot()
    }

    pub fn install(&self) -> InstallView {
        self.entry.work.view()
    }

    fn passes(&self, filter: &NodeFilter) -> bool {
        let node = self.node;
        filter.state.is_none_or(|state| node.state == state)
            && filter.approved.is_none_or(|approved| self.approved == approved)
            && filter.firmware.is_none_or(|firmware| node.firmware == Some(firmware))
            && filter.labels.selects(&node.labels)
            && filter.text.as_deref().is_none_or(|text| self.mentions(text))
    }

    fn mentions(&self, text: &str) -> bool {
        let node = self.node;
        // Writing a number out costs more than all the rest: only where the text can be a part of one.
        let as_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit() || b":-".contains(&byte));
        let as_address = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let serial = || node.inventory.as_ref()?.system.serial.as_ref();
        node.name.as_ref().is_some_and(|name| name.as_str().contains(text))
            || as_hex && node.ports.iter().any(|port| in_mac(port.mac, text))
            || as_address
                && node.ports.iter().any(|port| {
                    self.reserved(port.mac).is_some_and(|address| address.to_string().contains(text))
                })
            || as_hex && (in_uuid(node.id.0, text) || node.uuid.is_some_and(|uuid| in_uuid(uuid, text)))
            || node.labels.mention(text)
            || serial().is_some_and(|serial| serial.to_lowercase().contains(text))
    }
}

fn in_mac(mac: MacAddr, text: &str) -> bool {
    mac.to_string().contains(text) || mac.dashed().contains(text)
}

fn in_uuid(uuid: Uuid, text: &str) -> bool {
    uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()).contains(text)
}

/// `<milliseconds>-<id>`, in hexadecimal: opaque to whoever pages.
impl std::fmt::Display for NodeCursor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:x}-{}", self.created_at.as_millis(), self.id.0.simple())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no place in a list of nodes")]
pub struct ParseCursorError;

impl FromStr for NodeCursor {
    type Err = ParseCursorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (millis, id) = text.split_once('-').ok_or(ParseCursorError)?;
        let millis = u64::from_str_radix(millis, 16).map_err(|_| ParseCursorError)?;
        let id = Uuid::try_parse(id).map_err(|_| ParseCursorError)?;
        Ok(NodeCursor { created_at: Timestamp::from_millis(millis), id: NodeId(id) })
    }
}

impl Registry {
    /// At most `limit` nodes that pass, from behind `after` on, as `shown` makes of them; and where the next page
    /// begins, unless this is the last one.
    pub fn page<T>(
        &self,
        after: Option<NodeCursor>,
        limit: usize,
        filter: &NodeFilter,
        mut shown: impl FnMut(&NodeView<'_>) -> T,
    ) -> (Vec<T>, Option<NodeCursor>) {
        let mut items = Vec::with_capacity(limit.min(1024));
        let (mut at, mut last) = (after, None);
        loop {
            let book = self.lock();
            let mut looked_at = 0;
            for cursor in book.from(at).take(TURN_NODES_MAX) {
                (looked_at, at) = (looked_at + 1, Some(cursor));
                let Some(entry) = book.get(cursor.id) else { continue };
                let view = NodeView::of(&book, entry);
                if !view.passes(filter) {
                    continue;
                }
                // One more than wanted passes: there is a next page.
                if items.len() == limit {
                    return (items, last);
                }
                items.push(shown(&view));
                last = Some(cursor);
            }
            if looked_at < TURN_NODES_MAX {
                return (items, None);
            }
        }
    }

    /// At most `limit` ports in order of MAC, as `shown` makes of them if they are to be shown, from behind `after` on;
    /// and the last of them, if there are more.
    pub fn ports<T>(
        &self,
        after: Option<MacAddr>,
        limit: usize,
        mut shown: impl FnMut(&NodeView<'_>, MacAddr) -> Option<T>,
    ) -> (Vec<T>, Option<MacAddr>) {
        let mut items = Vec::with_capacity(limit.min(1024));
        let (mut at, mut last) = (after, None);
        loop {
            let book = self.lock();
            let mut looked_at = 0;
            for (mac, id) in book.ports_from(at).take(TURN_NODES_MAX) {
                (looked_at, at) = (looked_at + 1, Some(mac));
                let Some(entry) = book.get(id) else { continue };
                let view = NodeView::of(&book, entry);
                let Some(item) = shown(&view, mac) else { continue };
                if items.len() == limit {
                    return (items, last);
                }
                items.push(item);
                last = Some(mac);
            }
            if looked_at < TURN_NODES_MAX {
                return (items, None);
            }
        }
    }

    /// Every address that is kept for a MAC, and whether an operator said so; else the configuration does.
    pub fn reservations(&self) -> BTreeMap<Ipv4Addr, (MacAddr, bool)> {
        self.lock().reservations()
    }

    /// One node, as `shown` makes of it, without a copy of the record.
    pub fn look<T>(&self, id: NodeId, shown: impl FnOnce(&NodeView<'_>) -> T) -> Option<T> {
        let book = self.lock();
        let entry = book.get(id)?;
        Some(shown(&NodeView::of(&book, entry)))
    }

    /// Names and ids of the nodes these MACs are ports of; one turn of the lock for a whole page of leases.
    pub fn owners(&self, macs: &[MacAddr]) -> Vec<Option<(NodeId, Option<NodeName>)>> {
        let mut owners = Vec::with_capacity(macs.len());
        for some in macs.chunks(TURN_NODES_MAX) {
            let book = self.lock();
            owners.extend(some.iter().map(|mac| {
                let id = book.owner_of(*mac)?;
                Some((id, book.get(id)?.node.name.clone()))
            }));
        }
        owners
    }

    /// One boot of a node; number 0 holds what happened outside any boot.
    pub fn boot(&self, id: NodeId, number: u32) -> Option<Boot> {
        self.lock().get(id)?.history.boot(number)
    }
}
