//! Where boots begin, told as the machines tell it.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::*;
use crate::boot::client::Firmware;
use crate::net::MacAddr;
use crate::node::state::{Order, ProvisionState};
use crate::node::timeline::{AgentCall, Transport};

const NODE: NodeId = NodeId(Uuid::from_u128(1));
const FIRMWARE: ClientClass = ClientClass::Firmware { firmware: Firmware::UefiX64 };
const HTTP: ClientClass = ClientClass::Firmware { firmware: Firmware::UefiX64Http };
const IPXE: ClientClass = ClientClass::Ipxe { firmware: Firmware::UefiX64, can_boot: true };

/// A node's timeline with a clock that moves a second per happening.
struct Tale {
    history: History,
    now: Timestamp,
    bounds: Bounds,
    stored: std::collections::BTreeMap<(u32, u32), TimelineEvent>,
}

impl Tale {
    fn new() -> Tale {
        let now = Timestamp::from_millis(1_795_000_000_000);
        Tale { history: History::default(), now, bounds: Bounds::USUAL, stored: Default::default() }
    }

    fn tell(&mut self, happening: Happening) -> Option<u32> {
        self.now = self.now.plus(Duration::from_secs(1));
        let noted = self.history.note(NODE, happening, self.now, self.bounds);
        for change in noted.changes {
            match change {
                Change::PutEvent(event) => drop(self.stored.insert((event.boot, event.sequence), *event)),
                Change::DropBoot { boot, .. } => self.stored.retain(|(number, _), _| *number != boot),
                other => panic!("{other:?}"),
            }
        }
        // The store always holds what memory holds.
        let kept: Vec<TimelineEvent> = self.history.all_events().map(|event| (**event).clone()).collect();
        assert_eq!(kept, self.stored.values().cloned().collect::<Vec<_>>());
        assert_eq!(kept.len(), self.history.event_count());
        noted.event.map(|event| event.boot)
    }

    fn dhcp(&mut self, class: ClientClass, message: &str) -> Option<u32> {
        self.tell(dhcp(class, message))
    }

    fn file(&mut self, stage: Stage, outcome: FileOutcome) -> Option<u32> {
        self.tell(file(Some(stage), "some-file", outcome))
    }

    fn script(&mut self, plan: ScriptPlan) -> Option<u32> {
        self.tell(Happening::Script { name: "script.ipxe".to_owned(), plan, token_issued_at: None })
    }

    fn agent(&mut self, call: AgentCall) -> Option<u32> {
        self.tell(Happening::Agent { call })
    }

    /// Kernel to inventory.
    fn enroll(&mut self) {
        self.file(Stage::Kernel, FileOutcome::Complete);
        self.file(Stage::Ramdisk, FileOutcome::Complete);
        self.dhcp(ClientClass::Ramdisk, "discover");
        self.agent(AgentCall::Hello { uptime_secs: 2.0, token_issued_at: None });
        self.agent(AgentCall::Inventory);
    }

    fn stopped_at(&self) -> String {
        self.history.boots().last().unwrap().stopped_at.clone().unwrap()
    }
}

fn dhcp(class: ClientClass, message: &str) -> Happening {
    Happening::Dhcp {
        port: MacAddr([2; 6]),
        class,
        message: message.to_owned(),
        xid: 1,
        answer: Ok("offer".to_owned()),
        address: Some(Ipv4Addr::new(192, 168, 2, 50)),
        boot_file: Some("shimx64.efi".to_owned()),
        nothing_to_boot: None,
        other_server: None,
    }
}

fn file(stage: Option<Stage>, name: &str, outcome: FileOutcome) -> Happening {
    let name = name.to_owned();
    let transport = Transport::Http;
    Happening::File { transport, stage, name, size: Some(10), sent: 4, took_millis: 3, outcome, tftp: None }
}

#[test]
fn firmware_that_chainloads_ipxe_is_one_boot() {
    let mut tale = Tale::new();
    for _ in 0..2 {
        let number = tale.dhcp(FIRMWARE, "discover");
        assert_eq!(tale.dhcp(FIRMWARE, "discover"), number, "a retry");
        assert_eq!(tale.dhcp(FIRMWARE, "request"), number);
        assert_eq!(tale.file(Stage::Loader, FileOutcome::Probe), number);
        assert_eq!(tale.file(Stage::Loader, FileOutcome::Complete), number);
        assert_eq!(tale.dhcp(IPXE, "discover"), number, "chainloaded");
        assert_eq!(tale.dhcp(IPXE, "request"), number);
        assert_eq!(tale.script(ScriptPlan::Ramdisk), number);
        tale.enroll();
    }
    let boots = tale.history.boots();
    assert_eq!(
        boots.iter().map(|boot| (boot.number, boot.enrolled)).collect::<Vec<_>>(),
        [(1, true), (2, true)]
    );
    assert_eq!(
        boots[0].times.keys().copied().collect::<Vec<_>>(),
        [
            Stage::Dhcp,
            Stage::Loader,
            Stage::Script,
            Stage::Kernel,
            Stage::Ramdisk,
            Stage::Agent,
            Stage::Enrolled
        ]
    );
    assert_eq!(boots[0].stopped_at, None);
}

#[test]
fn ipxe_in_rom_starts_a_boot_of_its_own() {
    let mut tale = Tale::new();
    for number in 1..=3 {
        assert_eq!(tale.dhcp(IPXE, "discover"), Some(number));
        assert_eq!(tale.dhcp(IPXE, "discover"), Some(number), "a retry");
        assert_eq!(tale.dhcp(IPXE, "request"), Some(number));
        assert_eq!(tale.script(ScriptPlan::Ramdisk), Some(number));
        tale.enroll();
    }
}

#[test]
fn ipxe_in_rom_that_is_upgraded_stays_in_its_boot() {
    let mut tale = Tale::new();
    tale.dhcp(IPXE, "discover");
    tale.file(Stage::Loader, FileOutcome::Complete);
    assert_eq!(tale.dhcp(IPXE, "discover"), Some(1));
}

#[test]
fn http_after_pxe_is_the_same_boot_until_a_loader_was_fetched() {
    let mut tale = Tale::new();
    assert_eq!(tale.dhcp(FIRMWARE, "discover"), Some(1));
    assert_eq!(tale.file(Stage::Loader, FileOutcome::NotFound), Some(1));
    assert_eq!(tale.dhcp(HTTP, "discover"), Some(1));
    tale.file(Stage::Loader, FileOutcome::Complete);
    assert_eq!(tale.dhcp(FIRMWARE, "discover"), Some(2));
}

#[test]
fn a_rom_that_was_silent_for_long_was_switched_off() {
    let mut tale = Tale::new();
    tale.dhcp(FIRMWARE, "discover");
    tale.now = tale.now.plus(BOOT_GAP);
    assert_eq!(tale.dhcp(FIRMWARE, "discover"), Some(2));
}

#[test]
fn an_installed_system_belongs_to_the_boot_that_handed_over_to_it() {
    let mut tale = Tale::new();
    tale.dhcp(FIRMWARE, "discover");
    assert_eq!(tale.dhcp(ClientClass::OperatingSystem, "discover"), Some(1));
    tale.now = tale.now.plus(BOOT_GAP * 2);
    assert_eq!(tale.dhcp(ClientClass::OperatingSystem, "request"), Some(1));
    assert_eq!(tale.dhcp(FIRMWARE, "discover"), Some(2), "no loader was fetched, but a system ran");
}

#[test]
fn what_belongs_to_no_boot_is_number_0() {
    let mut tale = Tale::new();
    assert_eq!(tale.tell(Happening::Registered), Some(0));
    assert_eq!(tale.tell(Happening::OrderGiven { order: Order::Reboot }), Some(0));
    assert_eq!(tale.dhcp(FIRMWARE, "discover"), Some(1));
    assert_eq!(tale.tell(Happening::Approved), Some(0));
    assert_eq!(tale.tell(Happening::OrderGiven { order: Order::Reboot }), Some(1));
    for _ in 0..5 * OUTSIDE_MAX {
        tale.tell(Happening::Approved);
    }
    let boots = tale.history.boots();
    assert!(boots[0].events.len() <= OUTSIDE_MAX);
    assert_eq!((boots[0].number, boots[0].stage, &boots[0].stopped_at), (0, None, &None));
}

#[test]
fn boots_and_their_events_are_bounded() {
    let mut tale = Tale::new();
    for _ in 0..BOOTS_MAX + 3 {
        tale.dhcp(FIRMWARE, "discover");
        tale.file(Stage::Loader, FileOutcome::Complete);
    }
    let boots = tale.history.boots();
    assert_eq!((boots.len(), boots[0].number), (BOOTS_MAX, 4));
    for _ in 0..1000 {
        tale.file(Stage::Kernel, FileOutcome::NotFound);
    }
    // Chatter has filled its share; what matters still finds a place, up to the bound.
    let step = || Happening::State {
        from: ProvisionState::Inspecting,
        to: ProvisionState::InspectFailed,
        cause: "agent never called".to_owned(),
    };
    assert!(tale.tell(step()).is_some());
    for _ in 0..1000 {
        tale.tell(step());
    }
    let last = tale.history.boots().pop().unwrap();
    assert_eq!((last.events.len(), last.unrecorded), (EVENTS_PER_BOOT_MAX, 2001 + 2 - 256));
}

#[test]
fn a_node_waiting_for_approval_fills_no_timeline() {
    let mut tale = Tale::new();
    tale.dhcp(IPXE, "discover");
    for _ in 0..500 {
        tale.script(ScriptPlan::AwaitApproval);
        tale.file(Stage::Script, FileOutcome::Complete);
    }
    tale.script(ScriptPlan::Ramdisk);
    let boot = tale.history.boots().pop().unwrap();
    assert_eq!((boot.events.len(), boot.unrecorded), (4, 998));
}

#[test]
fn a_timeline_is_the_same_after_a_restart() {
    let mut tale = Tale::new();
    tale.tell(Happening::Registered);
    tale.dhcp(FIRMWARE, "discover");
    tale.file(Stage::Loader, FileOutcome::Complete);
    tale.dhcp(IPXE, "discover");
    let restored = History::from_events(tale.stored.values().cloned());
    assert_eq!(restored.boots(), tale.history.boots());
    tale.history = restored;
    assert_eq!(tale.script(ScriptPlan::Ramdisk), Some(1));
    assert_eq!(tale.dhcp(FIRMWARE, "discover"), Some(2));
}

#[test]
fn the_line_says_where_a_boot_stopped() {
    let mut tale = Tale::new();
    let mut silent = dhcp(FIRMWARE, "discover");
    if let Happening::Dhcp { answer, .. } = &mut silent {
        *answer = Err("pool-empty".to_owned());
    }
    tale.tell(silent);
    assert_eq!(tale.stopped_at(), "discover was not answered: pool-empty");
    tale.dhcp(FIRMWARE, "discover");
    assert_eq!(tale.stopped_at(), "address given, no loader fetched");
    tale.file(Stage::Loader, FileOutcome::Complete);
    tale.tell(file(None, "revocations.efi", FileOutcome::NotFound));
    assert_eq!(tale.stopped_at(), "loader loaded, no script asked for");
    tale.tell(Happening::BootLoop { loaders: 3 });
    assert_eq!(tale.stopped_at(), "loader was fetched 3 times, and no script ever asked for");
    tale.script(ScriptPlan::AwaitApproval);
    assert_eq!(tale.stopped_at(), "waits for an operator's approval");
    tale.script(ScriptPlan::Ramdisk);
    tale.tell(file(Some(Stage::Kernel), "/image/vm/vmlinuz", FileOutcome::NotFound));
    assert_eq!(tale.stopped_at(), "kernel: /image/vm/vmlinuz not found");
    tale.file(Stage::Kernel, FileOutcome::Complete);
    tale.tell(file(None, "/imag/vm/initrd.img", FileOutcome::NotFound));
    assert_eq!(tale.stopped_at(), "file: /imag/vm/initrd.img not found");
    tale.file(Stage::Ramdisk, FileOutcome::Aborted("connection closed".to_owned()));
    assert_eq!(tale.stopped_at(), "ramdisk: some-file ended after 4 of 10 bytes: connection closed");
    tale.file(Stage::Ramdisk, FileOutcome::Complete);
    assert_eq!(tale.stopped_at(), "ramdisk loaded, agent never called");
    tale.tell(Happening::AgentRefused { reason: "token-spent".to_owned(), token_issued_at: None });
    assert_eq!(tale.stopped_at(), "agent was refused: token-spent");
    tale.agent(AgentCall::Hello { uptime_secs: 2.0, token_issued_at: None });
    assert_eq!(tale.stopped_at(), "agent called, inventory never came");
    tale.agent(AgentCall::Failure { step: "inventory".to_owned(), message: "no disks".to_owned() });
    assert_eq!(tale.stopped_at(), "agent: inventory: no disks");
}
