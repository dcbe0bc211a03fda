//! A task from the operator's wish to the installed system's call, through restarts, failing disks and strangers.

use super::*;
use crate::image::digest::Digest;
use crate::metadata::gate::{self, Answered, PhoneRefusal, ReadRefusal, Reader, Secret};
use crate::node::install::disk_rule::DiskRule;
use crate::node::install::event::InstallEvent;
use crate::node::install::intent::{CleanMethod, Deployment, IntentId, IntentRefusal, Phase, Work};
use crate::node::install::task::{AgentTask, AgentWork, Progress, Report, Step, TargetDisk, prove};
use crate::node::inventory::System;
use crate::node::registry::install::{
    AgentCaller, InstallError, InstallRequest, STALLED_AFTER, SeedMaterial,
};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMmETQO+uVZSIFDYBbUYOip7NwVrffHaml4BnS0O5hHV operator@example";

fn deploy() -> InstallRequest {
    let deployment = Deployment {
        image: "debian-12".to_owned(),
        manifest: Digest::of(b"manifest"),
        manifest_bytes: 9,
        disk: DiskRule::default(),
        wipe: false,
    };
    let user_data = Some("#!/bin/sh\necho the secret\n".to_owned());
    InstallRequest { work: Work::Deploy(deployment), ssh_keys: vec![KEY.to_owned()], user_data }
}

fn clean() -> InstallRequest {
    let work = Work::Clean { disk: DiskRule::default(), method: CleanMethod::Discard };
    InstallRequest { work, ssh_keys: Vec::new(), user_data: None }
}

fn disks() -> Vec<TargetDisk> {
    vec![TargetDisk { name: "vda".to_owned(), serial: Some("S1".to_owned()), path: None, bytes: 1 << 30 }]
}

fn caller(session: &str, at: u64) -> AgentCaller<'_> {
    AgentCaller { session, mac: mac(1), address: ADDRESS, now: after(at) }
}

fn report(task: &AgentTask) -> Report {
    let signature = prove(&task.nonce, task.intent, task.generation, 1 << 30);
    Report { disks: disks(), bytes: 1 << 30, written: 1 << 20, took_millis: 5, signature }
}

impl Bench {
    fn wants(&self, request: InstallRequest, at: u64) -> Result<Node, InstallError> {
        self.registry.want(&NodeRef::Mac(mac(1)), &Expected::Anything, request, after(at))
    }

    /// Into the ramdisk, inventory told; the session, and the task its first heartbeat is answered with.
    fn boots_ramdisk(&self, at: u64) -> (String, Option<AgentTask>) {
        self.seen(1, at);
        let session = self.hello(&self.token(1, at), 1, at).unwrap();
        self.registry.report_inventory(&session, mac(1), ADDRESS, self.machine("1"), after(at)).unwrap();
        let task = self.registry.heartbeat(&session, mac(1), ADDRESS, after(at)).unwrap().task;
        (session, task)
    }

    fn machine(&self, serial: &str) -> Inventory {
        let system = System { serial: Some(serial.to_owned()), ..System::default() };
        Inventory { system, ..inventory(&[1]) }
    }

    fn phase(&self) -> Phase {
        self.node(1).intent.unwrap().phase
    }

    fn call_home(&self, at: u64) -> Result<Answered, PhoneRefusal> {
        let judge = |material: &SeedMaterial| match material.grant().phase {
            gate::Phase::AwaitingFirstBoot => Ok(Answered::First),
            gate::Phase::Active => Ok(Answered::Again),
            gate::Phase::Installing | crate::metadata::gate::Phase::None => Err(PhoneRefusal::NotAwaited),
        };
        self.registry.call_home(mac(1), Some("node07"), judge, after(at))
    }
}

#[test]
fn a_deployment_ends_with_the_installed_systems_call() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    let (_, none) = bench.boots_ramdisk(0);
    assert_eq!(none, None);
    let node = bench.wants(deploy(), 1).unwrap();
    assert_eq!((node.state, node.boots_next()), (ProvisionState::WaitCallBack, NextBoot::Ramdisk));
    let bench = bench.restart();
    let (session, task) = bench.boots_ramdisk(2);
    let task = task.unwrap();
    assert!(matches!(&task.work, AgentWork::Deploy { image, .. } if image == "debian-12"));
    assert_eq!(bench.node(1).state, ProvisionState::WaitCallBack, "a boot alone moves nothing");
    let not_begun = bench.registry.image_for(&caller(&session, 3), true).unwrap_err();
    assert_eq!(not_begun, AgentRefusal::Task(IntentRefusal::NotBegun));
    let manifest = bench.registry.image_for(&caller(&session, 3), false);
    assert_eq!(manifest, Ok(Digest::of(b"manifest")), "it says how large a disk must be");

    bench.registry.begin_task(&caller(&session, 3), task.intent, disks()).unwrap();
    assert_eq!(bench.registry.image_for(&caller(&session, 3), true), Ok(Digest::of(b"manifest")));
    assert_eq!(bench.node(1).state, ProvisionState::Deploying);
    let seed = bench.registry.seed_for(&caller(&session, 4), task.intent).unwrap();
    assert_eq!(seed.first_boot.ssh_keys[0].to_string(), KEY);

    let forged = Report { signature: "00".repeat(32), ..report(&task) };
    let refused = bench.registry.report_task(&caller(&session, 5), task.intent, &forged).unwrap_err();
    assert_eq!(refused, AgentRefusal::Task(IntentRefusal::NotPartOfIt));
    bench.registry.report_task(&caller(&session, 5), task.intent, &report(&task)).unwrap();
    bench.registry.report_task(&caller(&session, 6), task.intent, &report(&task)).unwrap();
    let node = bench.node(1);
    assert_eq!((node.state, node.boots_next()), (ProvisionState::Deploying, NextBoot::LocalDisk));
    let late = bench.registry.begin_task(&caller(&session, 7), task.intent, disks()).unwrap_err();
    assert_eq!(late, AgentRefusal::Task(IntentRefusal::Over));
    assert!(bench.registry.image_for(&caller(&session, 7), true).is_err());

    let bench = bench.restart();
    let (one, another) = (Reader::from_bytes([1; 16]), Reader::from_bytes([2; 16]));
    let read = |reader, at| bench.registry.secret_read(mac(1), Secret::UserData, reader, after(at));
    assert_eq!((read(one, 8), read(one, 8)), (Ok(()), Ok(())));
    assert_eq!(read(another, 8), Err(ReadRefusal::Gone), "each secret is one reader's");
    let refused = bench.registry.call_home(mac(1), None, |_| Err(PhoneRefusal::WrongToken), after(8));
    assert_eq!((refused, bench.node(1).state), (Err(PhoneRefusal::WrongToken), ProvisionState::Deploying));
    assert_eq!(bench.call_home(9), Ok(Answered::First));
    assert_eq!(bench.node(1).state, ProvisionState::Active);
    assert_eq!(bench.call_home(10), Ok(Answered::Again));
    let kept = bench.registry.installed(mac(1), after(10)).unwrap().first_boot;
    assert_eq!((kept.user_data, kept.ssh_keys.len()), (None, 1), "secrets go, keys stay");
    let reports = |it: &&Happening| {
        matches!(
            it,
            Happening::Install { install: crate::node::install::event::InstallEvent::Reported { .. }, .. }
        )
    };
    assert_eq!(bench.happenings(1).iter().filter(reports).count(), 1, "said twice, happened once");
    bench.assert_stored();
}

#[test]
fn what_cannot_be_stored_has_not_happened() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    let (session, _) = bench.boots_ramdisk(0);
    bench.store.fail_next_commits(1);
    assert!(matches!(bench.wants(deploy(), 1), Err(InstallError::Operator(OperatorError::Store(_)))));
    assert_eq!((bench.node(1).intent, bench.node(1).state), (None, ProvisionState::Manageable));
    bench.wants(deploy(), 1).unwrap();
    let task = bench.registry.heartbeat(&session, mac(1), ADDRESS, after(2)).unwrap().task.unwrap();
    bench.store.fail_next_commits(1);
    let lost = bench.registry.begin_task(&caller(&session, 2), task.intent, disks());
    assert!(matches!(lost, Err(AgentRefusal::NotDurable(_))));
    assert_eq!(bench.phase(), Phase::Waiting);
    assert!(
        bench.registry.image_for(&caller(&session, 2), true).is_err(),
        "no byte before the fence is on disk"
    );
    bench.registry.begin_task(&caller(&session, 3), task.intent, disks()).unwrap();
    bench.store.fail_next_commits(1);
    let lost = bench.registry.report_task(&caller(&session, 4), task.intent, &report(&task));
    assert!(matches!(lost, Err(AgentRefusal::NotDurable(_))));
    assert_eq!(bench.node(1).boots_next(), NextBoot::Ramdisk);
    bench.registry.report_task(&caller(&session, 5), task.intent, &report(&task)).unwrap();
    bench.store.fail_next_commits(1);
    assert_eq!(bench.call_home(6), Err(PhoneRefusal::NotDurable));
    assert!(
        bench.registry.installed(mac(1), after(6)).unwrap().first_boot.user_data.is_some(),
        "it may read again"
    );
    assert_eq!(bench.node(1).state, ProvisionState::Deploying);
    bench.call_home(7).unwrap();
}

#[test]
fn the_next_boot_goes_on_and_the_one_before_is_shut_out() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.boots_ramdisk(0);
    bench.wants(deploy(), 1).unwrap();
    let (first, task) = bench.boots_ramdisk(2);
    let intent = task.unwrap().intent;
    bench.registry.begin_task(&caller(&first, 3), intent, disks()).unwrap();
    // The plug is pulled; nobody hears of it for a while.
    let silent = 4 + STALLED_AFTER.as_secs();
    bench.registry.tick(after(4));
    bench.registry.tick(after(silent + 1));
    let node = bench.node(1);
    assert_eq!(node.state, ProvisionState::DeployFailed);
    assert!(node.failure.unwrap().contains("next netboot"), "it is told what happens next");
    let (second, task) = bench.boots_ramdisk(silent + 2);
    let task = task.unwrap();
    assert_eq!((task.intent, &task.begun_on), (intent, &disks()));
    let stale = bench.registry.begin_task(&caller(&first, silent + 3), intent, disks());
    assert_eq!(stale, Err(AgentRefusal::SessionReplaced));
    let other = vec![TargetDisk { serial: Some("S2".to_owned()), ..disks().remove(0) }];
    let elsewhere = bench.registry.begin_task(&caller(&second, silent + 3), intent, other);
    assert_eq!(elsewhere, Err(AgentRefusal::Task(IntentRefusal::OtherDisk)));
    bench.registry.begin_task(&caller(&second, silent + 4), intent, disks()).unwrap();
    assert_eq!(bench.node(1).state, ProvisionState::Deploying);
    bench.registry.report_task(&caller(&second, silent + 5), intent, &report(&task)).unwrap();
    bench.assert_stored();
}

#[test]
fn another_machine_is_told_nothing_and_the_operator_is() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.boots_ramdisk(0);
    bench.wants(deploy(), 1).unwrap();
    bench.seen(1, 2);
    let session = bench.hello(&bench.token(1, 2), 1, 2).unwrap();
    let told = bench.registry.report_inventory(&session, mac(1), ADDRESS, bench.machine("2"), after(3));
    assert_eq!(told.unwrap_err(), AgentRefusal::OtherMachine);
    let node = bench.node(1);
    assert!(node.failure.unwrap().contains("serial number 2 instead of 1"));
    assert_eq!(node.inventory.unwrap().system.serial.as_deref(), Some("1"));
    assert_eq!(bench.phase(), Phase::Waiting, "the wish stays, for the machine that is meant");
    let begun = bench.registry.begin_task(&caller(&session, 4), bench.node(1).intent.unwrap().id, disks());
    assert_eq!(begun, Err(AgentRefusal::SessionReplaced), "its session is over");
    assert_eq!(bench.boots_ramdisk(5).1.map(|task| task.generation), Some(1), "the real one gets its task");
}

#[test]
fn firmware_of_another_machine_raises_the_alarm_while_something_is_at_stake_and_takes_nothing() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    let (mine, other) = (uuid::Uuid::from_u128(0x1234), uuid::Uuid::from_u128(0x5678));
    let asks = |uuid, at| {
        let client = Client { mac: mac(1), class: FIRMWARE, uuid: Some(uuid) };
        bench.registry.granted(&client, after(at));
    };
    bench.seen(1, 0);
    let session = bench.hello(&bench.token(1, 0), 1, 0).unwrap();
    let mut inventory = bench.machine("1");
    inventory.system.uuid = Some(mine);
    bench.registry.report_inventory(&session, mac(1), ADDRESS, inventory, after(0)).unwrap();
    asks(other, 1);
    assert_eq!(bench.node(1).failure, None, "nothing is at stake");

    bench.wants(deploy(), 2).unwrap();
    asks(mine, 3);
    assert_eq!(bench.node(1).failure, None);
    for at in [4, 5] {
        asks(other, at);
        asks(uuid::Uuid::from_u128(at.into()), at);
    }
    let node = bench.node(1);
    assert!(node.failure.unwrap().contains(&format!("system UUID {other} instead of {mine}")));
    assert_eq!(bench.phase(), Phase::Waiting);
    let is_alarm = |happening: &&Happening| {
        matches!(happening, Happening::Install { install: InstallEvent::OtherMachine { .. }, .. })
    };
    let told = bench.happenings(1);
    assert_eq!(told.iter().filter(is_alarm).count(), 1, "once, whatever else is claimed: {told:#?}");
    bench.assert_stored();
}

#[test]
fn an_operator_changes_his_mind() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    let (session, _) = bench.boots_ramdisk(0);
    let reference = NodeRef::Mac(mac(1));
    let abort = |at| bench.registry.abort(&reference, &Expected::Anything, after(at));
    assert_eq!(abort(1).unwrap_err(), InstallError::NothingOpen);
    bench.wants(deploy(), 1).unwrap();
    assert!(matches!(bench.wants(deploy(), 2), Err(InstallError::NotNow { .. })), "one at a time");
    assert_eq!(abort(2).unwrap().state, ProvisionState::Manageable, "nothing was begun");
    assert!(bench.registry.installed(mac(1), after(2)).is_none());

    bench.wants(deploy(), 3).unwrap();
    let task = bench.registry.heartbeat(&session, mac(1), ADDRESS, after(3)).unwrap().task.unwrap();
    assert_eq!(task.generation, 2);
    bench.registry.begin_task(&caller(&session, 4), task.intent, disks()).unwrap();
    let writing = Progress { step: Step::Writing, done: 1, total: 2, kept: 0, rate: 1, seconds_left: None };
    assert_eq!(bench.registry.task_progress(&caller(&session, 5), task.intent, writing), Ok(true));
    assert_eq!(abort(6).unwrap().state, ProvisionState::DeployFailed);
    assert_eq!(bench.registry.task_progress(&caller(&session, 7), task.intent, writing), Ok(false));
    let late = bench.registry.report_task(&caller(&session, 8), task.intent, &report(&task)).unwrap_err();
    assert_eq!(late, AgentRefusal::Task(IntentRefusal::Over));

    let released = bench.registry.release(&reference, &Expected::Anything, after(9)).unwrap();
    assert_eq!((released.state, released.next_boot), (ProvisionState::Available, NextBoot::Ramdisk));
    bench.wants(clean(), 10).unwrap();
    let task = bench.registry.heartbeat(&session, mac(1), ADDRESS, after(11)).unwrap().task.unwrap();
    bench.registry.begin_task(&caller(&session, 11), task.intent, disks()).unwrap();
    assert_eq!(bench.node(1).state, ProvisionState::Cleaning);
    bench.registry.report_task(&caller(&session, 12), task.intent, &report(&task)).unwrap();
    assert_eq!(bench.node(1).state, ProvisionState::Available);
    assert_eq!(bench.registry.heartbeat(&session, mac(1), ADDRESS, after(13)).unwrap().task, None);
    bench.assert_stored();
}

#[test]
fn an_active_node_is_not_written_to_and_a_rescue_leads_back() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.boots_ramdisk(0);
    bench.wants(deploy(), 1).unwrap();
    let (session, task) = bench.boots_ramdisk(2);
    let task = task.unwrap();
    bench.registry.begin_task(&caller(&session, 3), task.intent, disks()).unwrap();
    bench.registry.report_task(&caller(&session, 4), task.intent, &report(&task)).unwrap();
    bench.registry.tick(after(5 + 1800));
    assert_eq!(bench.node(1).state, ProvisionState::DeployFailed, "its system never called");
    bench.call_home(1900).unwrap();
    assert_eq!(bench.node(1).state, ProvisionState::Active, "it was only late");
    for request in [deploy(), clean()] {
        let error = bench.wants(request, 1901).unwrap_err();
        assert!(
            matches!(&error, InstallError::NotNow { way_out, .. } if way_out.contains("release")),
            "{error}"
        );
    }
    let rescue = InstallRequest {
        work: Work::Rescue { ssh_keys: vec![KEY.to_owned()] },
        ssh_keys: Vec::new(),
        user_data: None,
    };
    let phase = |at| bench.registry.installed(mac(1), after(at)).map(|material| material.grant().phase);
    assert_eq!(phase(1902), Some(gate::Phase::Active));
    let node = bench.wants(rescue, 1902).unwrap();
    assert_eq!((node.state, node.boots_next()), (ProvisionState::Rescuing, NextBoot::Ramdisk));
    let (session, task) = bench.boots_ramdisk(1903);
    bench.registry.begin_task(&caller(&session, 1904), task.unwrap().intent, Vec::new()).unwrap();
    assert_eq!(bench.node(1).state, ProvisionState::Rescue);
    assert_eq!(phase(1904), Some(gate::Phase::None), "the ramdisk is not the system that was installed");
    let node = bench.registry.unrescue(&NodeRef::Mac(mac(1)), &Expected::Anything, after(1905)).unwrap();
    assert_eq!((node.state, node.boots_next()), (ProvisionState::Active, NextBoot::LocalDisk));
    assert_eq!(node.order, Some(Order::Reboot));
    assert_eq!(phase(1905), Some(gate::Phase::Active), "it is told what it was told before");
    assert!(
        matches!(&node.deployment().unwrap().work, Work::Deploy(_)),
        "and can be deployed again by that name"
    );
    bench.call_home(1906).unwrap();
    assert_eq!(bench.node(1).state, ProvisionState::Active);
}

#[test]
fn an_agent_that_gives_up_ends_its_own_task_only() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    let (session, _) = bench.boots_ramdisk(0);
    bench.wants(deploy(), 1).unwrap();
    let fail = |intent: Option<IntentId>, at| {
        let failure = Failure { step: "choosing the disk", message: "none fits", intent };
        bench.registry.report_failure(&session, mac(1), ADDRESS, &failure, after(at)).unwrap()
    };
    assert_eq!(fail(None, 2).state, ProvisionState::WaitCallBack);
    assert_eq!(fail(Some(IntentId(Uuid::nil())), 3).state, ProvisionState::WaitCallBack);
    let failed = fail(bench.node(1).intent.map(|intent| intent.id), 4);
    assert_eq!(failed.state, ProvisionState::DeployFailed);
    assert_eq!(failed.failure.as_deref(), Some("choosing the disk: none fits"));
    assert_eq!(bench.registry.heartbeat(&session, mac(1), ADDRESS, after(5)).unwrap().task, None);
    bench.wants(deploy(), 6).unwrap();
    assert_eq!(bench.node(1).intent.unwrap().generation, 2);
}
