//! What happens on the wire: enrolment, the timeline, boot loops, deadlines.

use std::time::Duration;

use crate::boot::client::{Client, ClientClass};
use crate::boot::decision::UnknownPolicy;
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::registry::Registry;
use crate::node::registry::book::Book;
use crate::node::registry::entry::{Act, Entry, new_node};
use crate::node::registry::install::other_machine;
use crate::node::state::ProvisionState;
use crate::node::timeline::{FileOutcome, Happening, Stage};
use crate::node::transition::Event;
use crate::node::{Node, NodeId, Origin, Port};
use crate::store::Change;

/// Fruitless fetches of the same loader at which it is offered no more (protocol.md P-11).
pub const BOOT_LOOP_AT: u32 = 3;
/// After this long without a fetch the machine gets another try.
pub const BOOT_LOOP_WINDOW: Duration = Duration::from_secs(10 * 60);
/// Fetches remembered per node: [`BOOT_LOOP_AT`] each of shim and GRUB, by two ports.
const LOADER_FETCHES_MAX: usize = 12;
/// `last_seen_at` is stored this often at most: operators read minutes, and a write per DHCP message serves nobody.
const LAST_SEEN_GRAIN: Duration = Duration::from_secs(60);
/// Nodes that could not be saved, tried again per tick.
const RESAVE_MAX: usize = 64;

/// Loaders a node's ports fetched without asking for a script afterwards.
#[derive(Debug, Default)]
pub(super) struct LoaderFetches {
    fetches: Vec<(MacAddr, String, Timestamp)>,
    reported: bool,
}

impl LoaderFetches {
    fn fetched(&mut self, port: MacAddr, name: &str, now: Timestamp) {
        self.fetches.retain(|(_, _, at)| now.since(*at) <= BOOT_LOOP_WINDOW);
        if self.fetches.len() >= LOADER_FETCHES_MAX {
            self.fetches.remove(0);
        }
        self.fetches.push((port, name.to_owned(), now));
    }

    fn script_came(&mut self, port: MacAddr) {
        self.fetches.retain(|(fetcher, _, _)| *fetcher != port);
        self.reported = false;
    }

    pub(super) fn forgive(&mut self) {
        *self = LoaderFetches::default();
    }

    /// How often this port fetched one and the same loader within the window. A chain of shim and GRUB fetches two
    /// files per attempt, so attempts are counted by name.
    pub(super) fn fruitless(&self, port: MacAddr, now: Timestamp) -> u32 {
        let recent = |name: &str| {
            let same = self.fetches.iter().filter(|(fetcher, fetched, at)| {
                *fetcher == port && fetched == name && now.since(*at) <= BOOT_LOOP_WINDOW
            });
            u32::try_from(same.count()).unwrap_or(u32::MAX)
        };
        self.fetches.iter().map(|(_, name, _)| recent(name)).max().unwrap_or(0)
    }

    /// The count at which a loop is to be reported, once per loop.
    fn newly_looping(&mut self, port: MacAddr, now: Timestamp) -> Option<u32> {
        let count = self.fruitless(port, now);
        let looping = count >= BOOT_LOOP_AT;
        let newly = looping && !self.reported;
        self.reported = looping;
        newly.then_some(count)
    }
}

impl Registry {
    /// A client got an answer from DHCP. Tells whose it is; a stranger stays one, and what it does is kept for later.
    pub fn seen(&self, client: &Client, now: Timestamp) -> Option<NodeId> {
        let mut book = self.lock_at(now);
        let Some(id) = book.owner_of(client.mac) else {
            if client.class.wants_boot() && may_become_a_node(&book, client.mac) {
                book.waiting().answered(client, now);
            }
            return None;
        };
        let ((), effects) = book.change(id, now, |act| note_client(act, client))?;
        self.settle(id, effects);
        Some(id)
    }

    /// A client's request for an address was granted. Creates the node if policy allows; tells whose it is.
    pub fn granted(&self, client: &Client, now: Timestamp) -> Option<NodeId> {
        let mut book = self.lock_at(now);
        let id = match book.owner_of(client.mac) {
            Some(id) => id,
            None if client.class.wants_boot() => {
                return self.create(&mut book, client.mac, Some(client), now);
            }
            None => return None,
        };
        let ((), effects) = book.change(id, now, |act| note_client(act, client))?;
        self.settle(id, effects);
        Some(id)
    }

    /// A machine asks what to boot. ROMs that use an offer without requesting it may be no nodes yet, and machines that
    /// had to make room for others are none any more: both are nodes from now on, if policy allows.
    pub fn asks_for_script(&self, mac: MacAddr, now: Timestamp) -> Option<NodeId> {
        let mut book = self.lock_at(now);
        match book.owner_of(mac) {
            None if book.waiting().has(mac, now) => self.create(&mut book, mac, None, now),
            owner => owner,
        }
    }

    /// Makes a stranger a node, with all that is known of it.
    fn create(
        &self,
        book: &mut Book,
        mac: MacAddr,
        client: Option<&Client>,
        now: Timestamp,
    ) -> Option<NodeId> {
        if !may_become_a_node(book, mac) {
            return None;
        }
        if let Some(evicted) = book.evict_for_newcomer(now) {
            self.submit_for(evicted.node.id, vec![Change::DropNode(evicted.node.id)]);
            self.announce(vec![evicted.farewell(now)]);
            // If it is in the middle of its boot after all, it is a node again when it asks for its script.
            if let Some(client) = evicted.as_client(now) {
                book.waiting().answered(&client, now);
            }
        }
        if !book.has_room() {
            return None;
        }
        let node = new_node(Origin::Seen, now)?;
        let stranger = book.waiting().take(mac, now);
        let ports = vec![Port { mac, reserved: None }];
        let id = book.insert(Entry::new(Node { ports, ..node }));
        let catch_up = |act: &mut Act<'_>| {
            act.entry.node.last_seen_at = Some(now);
            if let Some(stranger) = stranger {
                note_client(act, &stranger.client);
                for (at, happening) in stranger.happenings {
                    act.note_at(happening, at);
                }
            }
            if let Some(client) = client {
                note_client(act, client);
            }
            act.node_changed = true;
        };
        let ((), effects) = book.change(id, now, catch_up)?;
        self.settle(id, effects);
        Some(id)
    }

    /// Puts a happening on the timeline of the node with this port and lets state follow. A stranger's waits until it
    /// is a node; a stranger that waits and fetches something is one from then on.
    pub fn record(&self, mac: MacAddr, happening: Happening, now: Timestamp) {
        let mut book = self.lock_at(now);
        let created = match book.owner_of(mac) {
            None if is_fetch(&happening) && book.waiting().has(mac, now) => {
                self.create(&mut book, mac, None, now)
            }
            owner => owner,
        };
        let Some(id) = created else {
            book.waiting().note(mac, happening, now);
            return;
        };
        let outcome = book.change(id, now, |act| {
            let step = follow(act, mac, &happening);
            act.note(happening);
            if let Some(loaders) = act.entry.loaders.newly_looping(mac, now) {
                act.note(Happening::BootLoop { loaders });
            }
            if let Some(event) = step {
                // A refusal means that nothing moves: an unapproved node may fetch what it likes.
                let _ = act.step(event);
            }
        });
        if let Some(((), effects)) = outcome {
            self.settle(id, effects);
        }
    }

    /// The appliance has started: puts that on the timeline of every boot that was under way when it ended, since
    /// what was sent meanwhile was not heard.
    ///
    /// `leased`: who has a lease. Its node may be lost: the store can have failed the batch of the node, which is
    /// written again, and taken that of the lease, and then the power went. Such a machine asks for its script until it
    /// gets one, and not for an address again; so it may become a node by asking, as if it had been answered just now.
    pub fn started(&self, leased: impl IntoIterator<Item = MacAddr>, now: Timestamp) {
        let mut book = self.lock_at(now);
        for mac in leased {
            if book.owner_of(mac).is_none() && may_become_a_node(&book, mac) {
                let client = Client { mac, class: ClientClass::OperatingSystem, uuid: None };
                book.waiting().answered(&client, now);
            }
        }
        for id in book.ids_under_way(now) {
            if let Some(((), effects)) = book.change(id, now, |act| act.note(Happening::ApplianceStarted)) {
                self.settle(id, effects);
            }
        }
    }

    /// Deadlines, and what could not be saved; call it about once a second.
    pub fn tick(&self, now: Timestamp) {
        let mut book = self.lock_at(now);
        let deadline = book.settings().call_deadline;
        for id in book.ids_in(ProvisionState::Inspecting) {
            let overdue = |act: &mut Act<'_>| {
                let since = *act.entry.awaited_since.get_or_insert(now);
                if now.since(since) > deadline && act.step(Event::CallOverdue).is_ok() {
                    let waited = humantime::format_duration(deadline);
                    act.entry.node.failure =
                        Some(format!("the ramdisk was handed out, and no inventory came within {waited}"));
                }
            };
            if let Some(((), effects)) = book.change(id, now, overdue) {
                self.settle(id, effects);
            }
        }
        self.tick_installs(&mut book, now);
        for id in self.take_unsaved(RESAVE_MAX) {
            self.submit_for(id, book.whole(id));
        }
    }
}

fn may_become_a_node(book: &Book, mac: MacAddr) -> bool {
    mac.is_station()
        && match book.settings().unknown {
            UnknownPolicy::Ignore => false,
            UnknownPolicy::Enroll | UnknownPolicy::Approve => true,
        }
}

fn is_fetch(happening: &Happening) -> bool {
    match happening {
        Happening::File { .. } | Happening::Script { .. } => true,
        Happening::Dhcp { .. }
        | Happening::OtherServer { .. }
        | Happening::Profile { .. }
        | Happening::Agent { .. }
        | Happening::AgentRefused { .. }
        | Happening::OrderGiven { .. }
        | Happening::State { .. }
        | Happening::Approved
        | Happening::QuirksSet { .. }
        | Happening::Registered
        | Happening::Edited { .. }
        | Happening::Removed { .. }
        | Happening::BootLoop { .. }
        | Happening::PortConflict { .. }
        | Happening::Install { .. }
        | Happening::ApplianceStarted => false,
    }
}

fn note_client(act: &mut Act<'_>, client: &Client) {
    let node = &mut act.entry.node;
    node.last_seen_at = Some(act.now);
    let before = (node.firmware, node.uuid);
    match client.class {
        ClientClass::Firmware { firmware } => node.firmware = Some(firmware),
        // Chainloaded iPXE reports UEFI where the ROM was UEFI HTTP; it tells of the ROM only if it is the ROM.
        ClientClass::Ipxe { firmware, .. } => node.firmware = node.firmware.or(Some(firmware)),
        ClientClass::UnknownFirmware { .. } | ClientClass::Ramdisk | ClientClass::OperatingSystem => {}
    }
    node.uuid = node.uuid.or(client.uuid);
    let stale = act.entry.seen_stored_at.is_none_or(|stored| act.now.since(stored) >= LAST_SEEN_GRAIN);
    act.node_changed |= stale || before != (node.firmware, node.uuid);
    if let Some(uuid) = client.uuid {
        other_machine::notice(act, uuid);
    }
}

/// Keeps count of loaders and scripts; tells which event of the node's life this happening is.
fn follow(act: &mut Act<'_>, mac: MacAddr, happening: &Happening) -> Option<Event> {
    match happening {
        Happening::Script { .. } => {
            act.entry.loaders.script_came(mac);
            None
        }
        Happening::File { stage: Some(stage), name, outcome: FileOutcome::Complete, .. } => match stage {
            Stage::Loader => {
                act.entry.loaders.fetched(mac, name, act.now);
                None
            }
            Stage::Script => {
                act.entry.loaders.script_came(mac);
                None
            }
            Stage::Ramdisk => Some(Event::RamdiskServed),
            Stage::Dhcp | Stage::Kernel | Stage::Agent | Stage::Enrolled => None,
        },
        Happening::File { .. }
        | Happening::Dhcp { .. }
        | Happening::OtherServer { .. }
        | Happening::Profile { .. }
        | Happening::Agent { .. }
        | Happening::AgentRefused { .. }
        | Happening::OrderGiven { .. }
        | Happening::State { .. }
        | Happening::Approved
        | Happening::QuirksSet { .. }
        | Happening::Registered
        | Happening::Edited { .. }
        | Happening::Removed { .. }
        | Happening::BootLoop { .. }
        | Happening::PortConflict { .. }
        | Happening::Install { .. }
        | Happening::ApplianceStarted => None,
    }
}
