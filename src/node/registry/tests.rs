//! The registry as its callers see it, over the reference store.

use super::*;
use crate::boot::client::{Client, ClientClass, Firmware};
use crate::boot::decision::{KnownNode, NextBoot};
use crate::node::Origin;
use crate::node::inventory::{Inventory, Nic};
use crate::node::state::{Order, ProvisionState};
use crate::node::timeline::{AgentCall, BOOTS_MAX, FileOutcome, Happening, Stage, Transport};
use crate::node::token::{AgentNonce, TOKEN_LIFETIME};
use crate::store::memory::MemoryStore;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 50);
const OTHER_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 51);
const FIRMWARE: ClientClass = ClientClass::Firmware { firmware: Firmware::UefiX64 };
const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);

fn mac(last: u16) -> MacAddr {
    let [high, low] = last.to_be_bytes();
    MacAddr([0x52, 0x54, 0, 0, high, low])
}

fn after(seconds: u64) -> Timestamp {
    START.plus(Duration::from_secs(seconds))
}

fn settings(unknown: UnknownPolicy) -> RegistrySettings {
    RegistrySettings {
        unknown,
        call_deadline: Duration::from_secs(600),
        first_boot_deadline: Duration::from_secs(1800),
        installer_deadline: Duration::from_secs(7200),
        reservations: Vec::new(),
    }
}

fn reservation(last: u16, address: Ipv4Addr, name: &str) -> Reservation {
    Reservation { mac: mac(last), address, name: name.parse().ok() }
}

struct Bench {
    store: Arc<MemoryStore>,
    registry: Registry,
    settings: RegistrySettings,
}

impl Bench {
    fn new(unknown: UnknownPolicy) -> Bench {
        Bench::with(Arc::new(MemoryStore::new()), settings(unknown))
    }

    fn with(store: Arc<MemoryStore>, settings: RegistrySettings) -> Bench {
        let snapshot = store.load().unwrap();
        let shared = Arc::clone(&store) as Arc<dyn Store>;
        let registry = Registry::new(shared, snapshot, settings.clone(), TokenKey::from_bytes([7; 32]));
        Bench { store, registry, settings }
    }

    /// As after `kill -9`: only what the store has is left.
    fn restart(self) -> Bench {
        Bench::with(self.store, self.settings)
    }

    fn seen(&self, last: u16, at: u64) -> Option<NodeId> {
        let client = Client { mac: mac(last), class: FIRMWARE, uuid: None };
        let id = self.registry.granted(&client, after(at));
        self.registry.record(mac(last), discover(last), after(at));
        id
    }

    /// A DISCOVER is answered with an OFFER.
    fn offered(&self, last: u16, at: u64) {
        let client = Client { mac: mac(last), class: FIRMWARE, uuid: None };
        self.registry.seen(&client, after(at));
        self.registry.record(mac(last), discover(last), after(at));
    }

    fn is_stranger(&self, last: u16, at: u64) -> bool {
        self.registry.standing(mac(last), after(at)) == Standing::Stranger
    }

    fn file(&self, last: u16, stage: Stage, name: &str, at: u64) {
        let happening = Happening::File {
            transport: Transport::Tftp,
            stage: Some(stage),
            name: name.to_owned(),
            size: Some(1),
            sent: 1,
            took_millis: 1,
            outcome: FileOutcome::Complete,
            tftp: None,
        };
        self.registry.record(mac(last), happening, after(at));
    }

    fn node(&self, last: u16) -> Node {
        self.registry.find(&NodeRef::Mac(mac(last))).unwrap()
    }

    fn known(&self, last: u16, at: u64) -> KnownNode {
        match self.registry.standing(mac(last), after(at)) {
            Standing::Known(known) => known,
            Standing::Stranger => panic!("a stranger"),
        }
    }

    fn token(&self, last: u16, at: u64) -> String {
        self.registry.issue_token(mac(last), ADDRESS, after(at)).unwrap().text
    }

    fn hello(&self, token: &str, last: u16, at: u64) -> Result<String, AgentRefusal> {
        let session = self.registry.hello(&said(token, None), mac(last), ADDRESS, after(at))?;
        Ok(session.session)
    }

    fn hello_with(
        &self,
        token: &str,
        nonce: &AgentNonce,
        last: u16,
        at: u64,
    ) -> Result<String, AgentRefusal> {
        let session = self.registry.hello(&said(token, Some(*nonce)), mac(last), ADDRESS, after(at))?;
        Ok(session.session)
    }

    fn hellos(&self, last: u16) -> usize {
        let hello =
            |happening: &&Happening| matches!(happening, Happening::Agent { call: AgentCall::Hello { .. } });
        self.happenings(last).iter().filter(hello).count()
    }

    fn happenings(&self, last: u16) -> Vec<Happening> {
        let boots = self.registry.boots(self.node(last).id);
        boots.into_iter().flat_map(|boot| boot.events).map(|event| event.happening).collect()
    }

    /// Memory and store say the same.
    fn assert_stored(&self) {
        let snapshot = self.store.load().unwrap();
        let book = self.registry.lock();
        let mut events = 0;
        let mut timelines: BTreeMap<NodeId, Vec<&TimelineEvent>> = BTreeMap::new();
        for event in &snapshot.events {
            timelines.entry(event.node).or_default().push(event);
        }
        for node in &snapshot.nodes {
            let entry = book.get(node.id).unwrap();
            let stored = timelines.remove(&node.id).unwrap_or_default();
            let kept: Vec<_> = entry.history.all_events().map(|event| &**event).collect();
            assert_eq!(kept, stored);
            assert_eq!(Node { last_seen_at: node.last_seen_at, ..entry.node.clone() }, *node);
            events += kept.len();
        }
        assert_eq!((book.views().len(), events), (snapshot.nodes.len(), snapshot.events.len()));
    }
}

fn said(token: &str, nonce: Option<AgentNonce>) -> Hello<'_> {
    Hello { token, nonce, uptime_secs: 2.0 }
}

fn discover(last: u16) -> Happening {
    Happening::Dhcp {
        port: mac(last),
        class: FIRMWARE,
        message: "discover".to_owned(),
        xid: 1,
        answer: Ok("offer".to_owned()),
        address: Some(ADDRESS),
        boot_file: Some("shimx64.efi".to_owned()),
        nothing_to_boot: None,
        other_server: None,
    }
}

fn inventory(nics: &[u16]) -> Inventory {
    let nic = |last: &u16| Nic {
        name: "eth0".to_owned(),
        mac: mac(*last),
        driver: None,
        speed_mbps: None,
        link: true,
    };
    Inventory { nics: nics.iter().map(nic).collect(), ..Inventory::default() }
}

#[test]
fn a_machine_enrolls_on_sight_and_nothing_of_it_is_lost() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    let mut watcher = bench.registry.subscribe();
    bench.seen(1, 0);
    assert!(bench.known(1, 0).approved);
    bench.file(1, Stage::Loader, "shimx64.efi", 1);
    bench.file(1, Stage::Kernel, "vmlinuz", 2);
    bench.file(1, Stage::Ramdisk, "initrd.img", 3);
    assert_eq!(bench.node(1).state, ProvisionState::Inspecting);
    let session = bench.hello(&bench.token(1, 3), 1, 4).unwrap();
    let node =
        bench.registry.report_inventory(&session, mac(1), ADDRESS, inventory(&[1, 2]), after(5)).unwrap();
    assert_eq!((node.state, node.enrolled_at), (ProvisionState::Manageable, Some(after(5))));
    assert_eq!(bench.node(2).id, node.id, "the other NIC is a port now");
    assert_eq!(bench.registry.heartbeat(&session, mac(1), ADDRESS, after(6)).map(|it| it.order), Ok(None));
    bench.assert_stored();
    let boot = bench.registry.boots(node.id).pop().unwrap();
    let progress = bench.registry.newest_boot(node.id).unwrap();
    assert_eq!((progress.number, progress.stage, progress.enrolled), (1, boot.stage, true));
    assert_eq!(progress.stage_at, boot.times.get(&Stage::Enrolled).copied());
    let census = bench.registry.census();
    assert_eq!((census.by_state[&ProvisionState::Manageable], census.waiting_for_approval), (1, 0));
    let before = (bench.registry.nodes()[0].ports.clone(), bench.registry.boots(node.id));
    let bench = bench.restart();
    assert_eq!((bench.registry.nodes()[0].ports.clone(), bench.registry.boots(node.id)), before);
    assert_eq!(
        bench.registry.heartbeat(&session, mac(1), ADDRESS, after(9)).map(|it| it.order),
        Ok(None),
        "sessions survive"
    );
    assert!(before.1[0].enrolled);
    let mut told = 0;
    while watcher.try_recv().is_ok() {
        told += 1;
    }
    assert_eq!(told, before.1[0].events.len());
}

#[test]
fn policy_decides_who_gets_in() {
    let bench = Bench::new(UnknownPolicy::Ignore);
    assert_eq!(bench.seen(1, 0), None);
    assert_eq!(bench.registry.standing(mac(1), START), Standing::Stranger);
    let bench = Bench::new(UnknownPolicy::Approve);
    bench.seen(1, 0);
    assert!(!bench.known(1, 0).approved);
    assert_eq!(bench.registry.issue_token(mac(1), ADDRESS, START), None);
    bench.file(1, Stage::Ramdisk, "initrd.img", 1);
    assert_eq!(bench.node(1).state, ProvisionState::Enroll, "unapproved nodes stay where they are");
    bench.registry.approve(&NodeRef::Mac(mac(1)), after(2)).unwrap();
    assert!(bench.known(1, 2).approved);
    assert!(bench.registry.issue_token(mac(1), ADDRESS, START).is_some());
    let system = Client { mac: mac(9), class: ClientClass::OperatingSystem, uuid: None };
    assert_eq!(bench.registry.seen(&system, START), None, "a laptop is no node");
    bench.assert_stored();
}

#[test]
fn a_token_is_good_once_for_one_machine_at_one_address() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    bench.seen(2, 0);
    let (older, token) = (bench.token(1, 1), bench.token(1, 2));
    let hello = |token: &str, last: u16, address, at| {
        bench.registry.hello(&said(token, None), mac(last), address, after(at)).map(|_| ()).unwrap_err()
    };
    assert_eq!(hello(&token, 2, ADDRESS, 3), AgentRefusal::WrongMac);
    assert_eq!(hello(&token, 1, OTHER_ADDRESS, 3), AgentRefusal::WrongAddress);
    assert_eq!(hello(&token, 1, ADDRESS, 3 + TOKEN_LIFETIME.as_secs()), AgentRefusal::TokenExpired);
    assert_eq!(hello("", 1, ADDRESS, 3), AgentRefusal::TokenMalformed);
    assert_eq!(hello(&token.replace(['1', '2'], "3"), 1, ADDRESS, 3), AgentRefusal::TokenForged);
    bench.hello(&token, 1, 4).unwrap();
    assert_eq!(hello(&token, 1, ADDRESS, 5), AgentRefusal::TokenSpent);
    assert_eq!(hello(&older, 1, ADDRESS, 5), AgentRefusal::TokenSpent);
    let spent = |happening: &&Happening| matches!(happening, Happening::AgentRefused { reason, token_issued_at: Some(_) } if reason == "token-spent");
    assert_eq!(bench.happenings(1).iter().filter(spent).count(), 2);
    let bench = bench.restart();
    assert_eq!(bench.hello(&token, 1, 6), Err(AgentRefusal::TokenSpent), "also after a restart");
    bench.assert_stored();
}

#[test]
fn a_token_dies_with_its_node() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    let token = bench.token(1, 1);
    bench.registry.remove(&NodeRef::Mac(mac(1)), after(1)).unwrap();
    assert_eq!(bench.hello(&token, 1, 2), Err(AgentRefusal::UnknownNode));
    bench.seen(1, 3);
    assert_eq!(bench.hello(&token, 1, 4), Err(AgentRefusal::TokenExpired));
}

#[test]
fn a_redemption_that_cannot_be_stored_is_none() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    let token = bench.token(1, 1);
    bench.store.fail_next_commits(1);
    assert!(matches!(bench.hello(&token, 1, 2), Err(AgentRefusal::NotDurable(_))));
    bench.hello(&token, 1, 3).unwrap();
    bench.registry.tick(after(4));
    bench.assert_stored();
}

#[test]
fn a_new_session_ends_the_old_one() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    let first = bench.hello(&bench.token(1, 1), 1, 1).unwrap();
    let second = bench.hello(&bench.token(1, 2), 1, 2).unwrap();
    let beat = |session: &str, last: u16| {
        bench.registry.heartbeat(session, mac(last), ADDRESS, after(3)).map(|it| it.order)
    };
    assert_eq!(beat(&first, 1), Err(AgentRefusal::SessionReplaced));
    assert_eq!(beat(&second, 1), Ok(None));
    assert_eq!(beat(&second, 2), Err(AgentRefusal::WrongMac));
    assert_eq!(beat(&bench.token(1, 3), 1), Err(AgentRefusal::SessionForged), "a boot token is no session");
}

#[test]
fn a_ramdisk_that_never_calls_fails_inspection_and_may_try_again() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    bench.file(1, Stage::Ramdisk, "initrd.img", 0);
    bench.registry.tick(after(600));
    assert_eq!(bench.node(1).state, ProvisionState::Inspecting);
    bench.registry.tick(after(601));
    let node = bench.node(1);
    assert_eq!(node.state, ProvisionState::InspectFailed);
    assert!(node.failure.unwrap().contains("10m"));
    assert_eq!(
        bench.registry.boots(node.id)[0].stopped_at.as_deref(),
        Some("ramdisk loaded, agent never called")
    );
    bench.seen(1, 700);
    bench.file(1, Stage::Ramdisk, "initrd.img", 701);
    assert_eq!((bench.node(1).state, bench.node(1).failure), (ProvisionState::Inspecting, None));
    // A restart does not hold its own down time against the machine.
    let bench = bench.restart();
    bench.registry.tick(after(5000));
    assert_eq!(bench.node(1).state, ProvisionState::Inspecting);
    bench.registry.tick(after(5601));
    assert_eq!(bench.node(1).state, ProvisionState::InspectFailed);
    bench.assert_stored();
}

#[test]
fn an_agent_says_what_went_wrong_with_or_without_a_session() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    let token = bench.token(1, 1);
    let fail = |credential: &str, at| {
        let failure = Failure { step: "dhcp", message: "no\u{1b} link", intent: None };
        bench.registry.report_failure(credential, mac(1), ADDRESS, &failure, after(at))
    };
    let node = fail(&token, 2).unwrap();
    assert_eq!((node.state, node.failure.as_deref()), (ProvisionState::InspectFailed, Some("dhcp: no link")));
    let session = bench.hello(&token, 1, 3).unwrap();
    assert_eq!(bench.node(1).state, ProvisionState::Inspecting);
    assert_eq!(fail(&token, 4).unwrap_err(), AgentRefusal::TokenSpent);
    assert_eq!(fail(&session, 5).unwrap().state, ProvisionState::InspectFailed);
    bench.assert_stored();
}

#[test]
fn orders_wait_for_the_agent_and_are_obeyed_once() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    let session = bench.hello(&bench.token(1, 1), 1, 1).unwrap();
    let by_mac = NodeRef::Mac(mac(1));
    bench.registry.order(&by_mac, Order::LocalBoot, after(2)).unwrap();
    assert_eq!(bench.known(1, 2).next_boot, NextBoot::LocalDisk);
    assert_eq!(bench.registry.issue_token(mac(1), ADDRESS, after(2)), None, "no ramdisk, no token");
    let beat =
        |at| bench.registry.heartbeat(&session, mac(1), ADDRESS, after(at)).map(|it| it.order).unwrap();
    assert_eq!(beat(3), Some(Order::LocalBoot));
    bench.store.fail_next_commits(1);
    let obey = || bench.registry.obeying(&session, mac(1), ADDRESS, Order::LocalBoot, after(4));
    assert!(matches!(obey(), Err(AgentRefusal::NotDurable(_))));
    assert_eq!(beat(5), Some(Order::LocalBoot));
    assert_eq!(obey().unwrap().order, None);
    assert_eq!(beat(6), None);
    bench.registry.order(&by_mac, Order::Reboot, after(7)).unwrap();
    assert_eq!(bench.known(1, 7).next_boot, NextBoot::Ramdisk);
    bench.hello(&bench.token(1, 8), 1, 8).unwrap();
    assert_eq!(bench.node(1).order, None, "it has booted again");
    bench.registry.tick(after(9));
    bench.assert_stored();
}

#[test]
fn a_loop_is_reported_once_and_ends_by_itself_or_by_an_operator() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    let loops = |bench: &Bench| {
        bench.happenings(1).iter().filter(|happening| matches!(happening, Happening::BootLoop { .. })).count()
    };
    for round in 0..4 {
        bench.seen(1, round * 60);
        for name in ["shimx64.efi", "grubx64.efi"] {
            bench.file(1, Stage::Loader, name, round * 60 + 1);
        }
        assert_eq!(bench.known(1, round * 60 + 2).fruitless_loaders, u32::try_from(round).unwrap() + 1);
    }
    assert_eq!(loops(&bench), 1);
    assert_eq!(bench.known(1, 121 + 601).fruitless_loaders, 1);
    assert_eq!(bench.known(1, 181 + 601).fruitless_loaders, 0);
    bench.registry.approve(&NodeRef::Mac(mac(1)), after(200)).unwrap();
    assert_eq!(bench.known(1, 200).fruitless_loaders, 0);
    bench.file(1, Stage::Loader, "shimx64.efi", 201);
    let plan = crate::boot::decision::ScriptPlan::Ramdisk;
    bench.registry.record(
        mac(1),
        Happening::Script { name: "grub.cfg".to_owned(), plan, token_issued_at: None },
        after(202),
    );
    assert_eq!(bench.known(1, 203).fruitless_loaders, 0);
    bench.assert_stored();
}

#[test]
fn a_nic_of_another_node_is_never_stolen() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    let (first, second) = (bench.seen(1, 0).unwrap(), bench.seen(2, 0).unwrap());
    let session = bench.hello(&bench.token(1, 1), 1, 1).unwrap();
    bench.registry.report_inventory(&session, mac(1), ADDRESS, inventory(&[1, 2, 3]), after(2)).unwrap();
    assert_eq!((bench.node(2).id, bench.node(3).id), (second, first));
    assert!(bench.happenings(1).contains(&Happening::PortConflict { port: mac(2), owner: second }));
    bench.assert_stored();
}

#[test]
fn made_up_machines_are_bounded_and_push_out_only_each_other() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    let new = NewNode { name: None, macs: vec![(mac(1), None)], quirks: None };
    bench.registry.register(new, START).unwrap();
    bench.seen(2, 0);
    bench.hello(&bench.token(2, 1), 2, 1).unwrap();
    let unproven = u16::try_from(UNPROVEN_MAX).unwrap();
    for last in 0..unproven {
        bench.seen(1000 + last, 2 + u64::from(last));
    }
    let mut watcher = bench.registry.subscribe();
    bench.seen(1000 + unproven, 2 + u64::from(unproven));
    let told = |event: Arc<TimelineEvent>| match event.happening.clone() {
        Happening::Removed { port, .. } => port,
        _ => None,
    };
    assert_eq!(std::iter::from_fn(|| watcher.try_recv().ok()).find_map(told), Some(mac(1000)));
    for last in unproven + 1..2 * unproven {
        bench.seen(1000 + last, 2 + u64::from(last));
    }
    assert_eq!(bench.registry.nodes().len(), UNPROVEN_MAX + 2);
    assert_eq!(bench.registry.standing(mac(1000), after(9)), Standing::Stranger);
    assert_eq!(bench.node(2).state, ProvisionState::Inspecting);
    let newest = 1000 + 2 * u16::try_from(UNPROVEN_MAX).unwrap() - 1;
    for _ in 0..200 {
        bench.registry.record(mac(newest), discover(newest), after(9000));
    }
    assert!(bench.happenings(newest).len() <= 64);
    bench.assert_stored();
}

#[test]
fn two_boards_with_one_uuid_are_told_apart() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    let uuid = Uuid::from_u128(0x1234);
    let seen = |last| {
        let client = Client { mac: mac(last), class: FIRMWARE, uuid: Some(uuid) };
        bench.registry.granted(&client, START)
    };
    let id = seen(1);
    assert_eq!(bench.registry.find(&NodeRef::Uuid(uuid)).map(|node| node.id), id);
    seen(2);
    let reference = uuid.to_string();
    let approve = bench.registry.approve(&NodeRef::Uuid(uuid), START);
    assert_eq!(approve, Err(OperatorError::Ambiguous { reference }));
}

#[test]
fn hostile_text_is_cut_and_cleaned_before_it_is_kept() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    bench.file(1, Stage::Script, &format!("\u{1b}[2J{}", "x".repeat(10_000)), 1);
    let Some(Happening::File { name, .. }) = bench.happenings(1).pop() else { panic!() };
    assert!(name.starts_with("[2Jxxx") && name.len() == 256);
}

mod agent;
mod import;
mod install;
mod installer;
mod registering;
mod strangers;
