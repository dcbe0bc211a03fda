use std::collections::BTreeMap;

use tempfile::TempDir;

use super::*;
use crate::boot::client::Firmware;
use crate::boot::decision::NextBoot;
use crate::boot::profile::Program;
use crate::node::registry::{NewNode, NodeRef, Registry, RegistrySettings};
use crate::node::token::TokenKey;
use crate::store::memory::MemoryStore;

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 2);
const NODE: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const OTHER: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);

struct Bench {
    _state: TempDir,
    library: Arc<Library>,
    store: Arc<MemoryStore>,
    desk: Arc<ProfileDesk>,
    node: Node,
    other: Node,
}

impl Bench {
    fn new() -> Bench {
        let state = tempfile::tempdir().unwrap();
        let library = Arc::new(Library::open(state.path()).unwrap());
        let store = Arc::new(MemoryStore::new());
        let desk = Arc::new(ProfileDesk::new(Vec::new(), Arc::clone(&library), Arc::clone(&store) as _));
        let snapshot = store.load().unwrap();
        let settings = RegistrySettings {
            unknown: crate::boot::decision::UnknownPolicy::Enroll,
            call_deadline: std::time::Duration::from_secs(300),
            first_boot_deadline: std::time::Duration::from_secs(300),
            installer_deadline: std::time::Duration::from_secs(7200),
            reservations: Vec::new(),
        };
        let registry =
            Registry::new(Arc::clone(&store) as _, snapshot, settings, TokenKey::from_bytes([7; 32]));
        let node = |mac: MacAddr| {
            let new = NewNode { name: None, macs: vec![(mac, None)], quirks: None };
            registry.register(new, NOW).unwrap();
            let mut node = registry.find(&NodeRef::Mac(mac)).unwrap();
            node.firmware = Some(Firmware::UefiX64);
            node
        };
        let (node, other) = (node(NODE), node(OTHER));
        assert_eq!(node.next_boot, NextBoot::Ramdisk);
        Bench { _state: state, library, store, desk, node, other }
    }

    fn add(&self, name: &str, one_shot: bool, arguments: &[&str]) {
        let add = |text: &str| self.library.add(&mut text.as_bytes()).unwrap();
        let what = What::Kernel {
            kernel: add("kernel"),
            initrds: vec![add("initrd")],
            arguments: arguments.iter().map(|word| word.parse().unwrap()).collect(),
        };
        let (name, program) = (name.parse().unwrap(), Program::default());
        let profile = BootProfile { name, what, one_shot, description: None, program };
        self.library.publish_boot_profile(&profile).unwrap();
    }

    fn add_iso(&self, name: &str) {
        let what = What::Iso { image: self.library.add(&mut "image".as_bytes()).unwrap() };
        let (name, program) = (name.parse().unwrap(), Program::default());
        let profile = BootProfile { name, what, one_shot: false, description: None, program };
        self.library.publish_boot_profile(&profile).unwrap();
    }

    fn assign(&self, name: &str, who: Selector) -> RuleNumber {
        self.desk.assign(name.parse().unwrap(), who, None, NOW).unwrap().number
    }

    fn choose(&self, boot: u32, reader: Reader) -> Choice {
        self.desk.choose(&self.node, boot, Asker { mac: NODE, address: None, server: SERVER, reader })
    }

    fn chosen(&self, boot: u32) -> Option<String> {
        self.choose(boot, Reader::Ipxe).prepared.map(|prepared| prepared.assigned.name.to_string())
    }

    fn begin(&self, boot: u32) -> Option<Begun> {
        let prepared = self.choose(boot, Reader::Ipxe).prepared?;
        Some(self.desk.begin(&prepared, self.node.id, NODE, boot, NOW))
    }

    fn may_fetch(&self, boot: u32, file: ProfileFile) -> bool {
        let served = self.library.boot_profile(&"once".parse().unwrap()).unwrap();
        self.desk.may_fetch(&self.node, boot, &served.profile, file)
    }

    /// The power goes, and comes back.
    fn restart(&mut self) {
        let records = self.store.load().unwrap().profile_records;
        self.desk =
            Arc::new(ProfileDesk::new(records, Arc::clone(&self.library), Arc::clone(&self.store) as _));
    }
}

fn prefix() -> Selector {
    Selector::MacPrefix("52:54:00".parse().unwrap())
}

#[test]
fn the_first_rule_that_matches_and_fits_wins_and_the_rest_is_told() {
    let bench = Bench::new();
    bench.add("live", false, &["h={node.name}"]);
    bench.add_iso("disc");
    assert!(bench.desk.assigned(&bench.node, 1).is_none());
    let disc = bench.assign("disc", Selector::Node(bench.node.id));
    let live = bench.assign("live", prefix());
    // DHCP asks before it is known which loader will; the loader decides.
    let by_dhcp = bench.desk.assigned(&bench.node, 1).unwrap();
    assert_eq!((by_dhcp.rule, by_dhcp.wants_ipxe), (disc, true));
    assert_eq!(bench.chosen(1).as_deref(), Some("disc"));
    let in_grub = bench.choose(1, Reader::Grub);
    assert!(matches!(
        in_grub.passed.as_slice(),
        [Happening::Profile { rule, outcome: ProfileOutcome::PassedOver(why), .. }] if *rule == disc && why.contains("GRUB")
    ));
    let prepared = in_grub.prepared.unwrap();
    assert_eq!(
        (prepared.assigned.rule, prepared.ready.plan(ScriptPlan::Profile)),
        (live, ScriptPlan::ProfileRefused)
    );
    assert_eq!(prepared.ready.arguments.unwrap_err().as_str(), "value-missing");
    let other = bench.desk.assigned(&bench.other, 1).unwrap();
    assert_eq!(other.rule, live);
    // What a rule names and is not there is passed over, and said.
    assert!(
        matches!(bench.desk.remove(&"disc".parse().unwrap()), Err(ChangeError::Assigned { rule, .. }) if rule == disc)
    );
    bench.library.remove_boot_profile(&"disc".parse().unwrap()).unwrap();
    let choice = bench.choose(1, Reader::Ipxe);
    assert_eq!((choice.passed.len(), choice.prepared.unwrap().assigned.rule), (1, live));
    bench.desk.unassign(disc).unwrap();
    assert_eq!(bench.choose(1, Reader::Ipxe).passed.len(), 0);
}

#[test]
fn rules_and_runs_survive_a_restart_and_failures_change_nothing() {
    let mut bench = Bench::new();
    bench.add("once", true, &[]);
    bench.store.fail_next_commits(1);
    let refused = bench.desk.assign("once".parse().unwrap(), prefix(), None, NOW);
    assert!(matches!(refused, Err(ChangeError::Store(_))) && bench.desk.rules().is_empty());
    let rule = bench.assign("once", prefix());
    bench.restart();
    assert_eq!(bench.desk.rules().rules()[0].number, rule);
    assert_eq!(bench.begin(4), Some(Begun::Running));
    bench.restart();
    assert_eq!(bench.chosen(4), None, "nobody knows what became of it");
    assert_eq!(bench.desk.runs(rule).len(), 1);
    bench.store.fail_next_commits(1);
    assert!(bench.desk.unassign(rule).is_err());
    assert_eq!((bench.desk.rules().rules().len(), bench.desk.runs(rule).len()), (1, 1));
    bench.desk.unassign(rule).unwrap();
    assert!(bench.store.load().unwrap().profile_records.iter().all(|record| record.key() == "rules"));
    // A new rule is a new run.
    bench.assign("once", prefix());
    assert_eq!(bench.begin(5), Some(Begun::Running));
}

#[test]
fn a_one_shot_is_named_only_once_its_start_is_on_disk() {
    let bench = Bench::new();
    bench.add("once", true, &[]);
    let rule = bench.assign("once", Selector::Node(bench.node.id));
    let settled = bench.desk.settled();
    bench.store.hold();
    assert_eq!(bench.begin(1), Some(Begun::NotYet));
    assert_eq!(bench.begin(1), Some(Begun::NotYet), "nor is it started twice");
    assert!(!bench.may_fetch(1, ProfileFile::Kernel) && !settled.has_changed().unwrap());
    bench.store.release();
    assert!(settled.has_changed().unwrap());
    assert_eq!((bench.begin(1), bench.may_fetch(1, ProfileFile::Kernel)), (Some(Begun::Running), true));
    let kept: BTreeMap<String, Record> =
        bench.store.load().unwrap().profile_records.into_iter().map(|it| (it.key(), it)).collect();
    assert!(matches!(
        &kept["run/1/52:54:00:00:00:01"],
        Record::Run(Run { state: RunState::Started { boot: 1, .. }, .. })
    ));
    // Whoever the disk refused may try again.
    bench.desk.unassign(rule).unwrap();
    bench.assign("once", Selector::Node(bench.node.id));
    bench.store.fail_next_commits(1);
    assert_eq!(bench.begin(1), Some(Begun::NotYet));
    assert!(!bench.may_fetch(1, ProfileFile::Kernel));
    assert_eq!(bench.begin(1), Some(Begun::Running));
}

#[test]
fn a_one_shot_ends_with_its_kernel_or_with_its_boot() {
    let bench = Bench::new();
    bench.add("once", true, &[]);
    bench.add("live", false, &[]);
    let rule = bench.assign("once", prefix());
    bench.assign("live", prefix());
    assert_eq!(bench.begin(1), Some(Begun::Running));
    // A broken download: the script comes again in the same boot.
    assert_eq!((bench.begin(1), bench.chosen(1).as_deref()), (Some(Begun::Running), Some("once")));
    assert_eq!(bench.desk.handed_out(&"once".parse().unwrap(), NODE, NOW), [rule]);
    assert_eq!(bench.desk.handed_out(&"once".parse().unwrap(), NODE, NOW), []);
    assert!(bench.may_fetch(1, ProfileFile::Initrd(0)) && !bench.may_fetch(1, ProfileFile::Kernel));
    assert_eq!((bench.chosen(1).as_deref(), bench.chosen(2).as_deref()), (Some("live"), Some("live")));
    assert!(matches!(bench.desk.runs(rule)[0].state, RunState::Spent { .. }));
    // Another node of the same rule has its own, and one that was given up for another boot is over.
    let prepared = bench.choose(1, Reader::Ipxe).prepared.unwrap();
    let asker = Asker { mac: OTHER, address: None, server: SERVER, reader: Reader::Ipxe };
    let others = bench.desk.choose(&bench.other, 1, asker).prepared.unwrap();
    assert_eq!((prepared.assigned.name.as_str(), others.assigned.name.as_str()), ("live", "once"));
    assert_eq!(bench.desk.begin(&others, bench.other.id, OTHER, 1, NOW), Begun::Running);
    assert_eq!(bench.desk.assigned(&bench.other, 2).unwrap().name.as_str(), "live");
    // A node that is made anew has the MAC that had it.
    let stranger = Node { id: NodeId(uuid::Uuid::from_u128(99)), ..bench.other.clone() };
    assert_eq!(bench.desk.assigned(&stranger, 1).unwrap().name.as_str(), "live");
}

#[test]
fn files_are_there_only_for_nodes_that_boot_them() {
    let bench = Bench::new();
    bench.add("live", false, &[]);
    bench.assign("live", Selector::Node(bench.node.id));
    let served = bench.library.boot_profile(&"live".parse().unwrap()).unwrap();
    let may = |node: &Node| bench.desk.may_fetch(node, 1, &served.profile, ProfileFile::Kernel);
    assert!(may(&bench.node) && !may(&bench.other));
}
