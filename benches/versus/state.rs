//! What the servers find on disk: farrier's state directory with leases, nodes and images, and the peers' file trees.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use farrier::boot::decision::NextBoot;
use farrier::clock::Timestamp;
use farrier::dhcp::lease::{Binding, BindingState, ClientKey};
use farrier::image::library::{Library, Manifest};
use farrier::net::MacAddr;
use farrier::node::state::ProvisionState;
use farrier::node::{Node, NodeId, Origin, Port};
use farrier::store::sqlite::SqliteStore;
use farrier::store::{Change, Store};
use uuid::Uuid;

use crate::bed::{Bed, POOL_FIRST};
use crate::dhcp_client::client_mac;

const CHUNK: usize = 10_000;

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;

pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn binding(mac: MacAddr, address: Ipv4Addr) -> Binding {
    let now = now();
    Binding {
        address,
        key: ClientKey::Mac(mac),
        mac,
        client_id: None,
        hostname: None,
        state: BindingState::Bound,
        granted_at: now,
        expires_at: now.plus(Duration::from_secs(12 * 3600)),
    }
}

/// The address of perfdhcp's client `number` in a state made by [`with_leases`].
pub fn client_address(number: u64) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(POOL_FIRST) + u32::try_from(number).unwrap_or(u32::MAX))
}

fn commit(state: &Path, changes: impl Iterator<Item = Change>) {
    let store = SqliteStore::open(&state.join("farrier.db")).expect("a store");
    let mut changes = changes.peekable();
    while changes.peek().is_some() {
        let chunk: Vec<Change> = changes.by_ref().take(CHUNK).collect();
        store.commit(chunk).expect("the disk has room");
    }
}

/// Stores leases of perfdhcp's first clients.
pub fn with_leases(state: &Path, count: u64) {
    commit(
        state,
        (0..count).map(|number| Change::PutBinding(binding(client_mac(number), client_address(number)))),
    );
}

/// Stores leases of addresses that fetch files; the MAC's end is the address's.
pub fn with_leases_of(state: &Path, addresses: impl Iterator<Item = Ipv4Addr>) {
    commit(state, addresses.map(|address| Change::PutBinding(binding(machine_mac(address), address))));
}

pub fn machine_mac(address: Ipv4Addr) -> MacAddr {
    let [_, b, c, d] = address.octets();
    MacAddr([0x52, 0x54, 0, b, c, d])
}

/// Stores registered nodes for these MACs, as they are after `farrier node add`.
pub fn with_nodes(state: &Path, macs: impl Iterator<Item = MacAddr>) {
    commit(
        state,
        macs.enumerate().map(|(number, mac)| {
            Change::PutNode(Box::new(Node {
                id: NodeId(Uuid::from_u128(0x4000_8000_0000_0000_0000 + number as u128)),
                name: format!("node{number}").parse().ok(),
                uuid: None,
                ports: vec![Port { mac, reserved: None }],
                origin: Origin::Registered,
                approved: true,
                state: ProvisionState::Enroll,
                next_boot: NextBoot::Ramdisk,
                quirks: Default::default(),
                firmware: None,
                created_at: now(),
                last_seen_at: None,
                enrolled_at: None,
                inventory: None,
                order: None,
                redeemed_token_at: None,
                redeemed_by: None,
                intent: None,
                labels: Default::default(),
                failure: None,
                version: 1,
            }))
        }),
    );
}

/// Bytes that differ from block to block, whatever the block's size.
pub fn content(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

/// Images under names of their own: farrier's state directory, and a tree with the same names for the peers.
pub struct Files {
    pub state: PathBuf,
    pub tree: PathBuf,
}

/// The name of a profile's kernel by TFTP; by HTTP with a slash before it.
pub fn kernel_name(profile: &str) -> String {
    format!("image/{profile}/vmlinuz")
}

impl Files {
    pub fn new(bed: &Bed) -> Files {
        Files { state: bed.fresh("files-state"), tree: bed.fresh("files-tree") }
    }

    /// A profile whose kernel has this content; the ramdisk is one byte.
    pub fn add(&self, profile: &str, kernel: &Path) {
        let library = Library::open(&self.state).expect("a library");
        let bytes = library.add(&mut File::open(kernel).expect("the kernel")).expect("room for a blob");
        let ramdisk = library.add(&mut &b"r"[..]).expect("room for a blob");
        let manifest = Manifest {
            profile: profile.to_owned(),
            kernel: bytes,
            ramdisk,
            arguments: Vec::new(),
            built_from: BTreeMap::new(),
        };
        library.publish(&manifest).expect("room for a manifest");
        let path = self.tree.join(kernel_name(profile));
        fs::create_dir_all(path.parent().expect("it has one")).expect("a tree");
        // The same inode: both servers read the same pages.
        let blob = self.state.join("images/blobs").join(bytes.digest.to_string());
        fs::hard_link(blob, path).expect("a second name");
    }

    pub fn add_bytes(&self, profile: &str, bytes: &[u8]) {
        let path = self.tree.join(format!("{profile}.source"));
        File::create(&path).and_then(|mut file| file.write_all(bytes)).expect("room for a file");
        self.add(profile, &path);
        fs::remove_file(&path).expect("it was there");
    }

    /// A file of zeros that takes no room.
    pub fn add_sparse(&self, profile: &str, size: u64) {
        let path = self.tree.join(format!("{profile}.source"));
        File::create(&path).and_then(|file| file.set_len(size)).expect("room for a file");
        self.add(profile, &path);
        fs::remove_file(&path).expect("it was there");
    }
}
