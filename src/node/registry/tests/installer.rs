//! A distribution's installer as the deploy kernel: started once, told its answers once, through restarts and failing
//! disks.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::boot::decision::ScriptPlan;
use crate::boot::profile::ProfileName;
use crate::metadata::gate::{self, Answered, PhoneRefusal, ReadRefusal, Reader, Secret};
use crate::node::install::event::InstallEvent;
use crate::node::install::intent::{Phase, Work};
use crate::node::registry::install::{InstallRequest, SeedMaterial};

const SCRIPT: &str = "boot/52-54-00-00-00-01/script.ipxe";

fn profile() -> ProfileName {
    "debian-installer".parse().unwrap()
}

fn wish() -> InstallRequest {
    let user_data = Some("#!/bin/sh\necho the secret\n".to_owned());
    InstallRequest { work: Work::Installer { profile: profile() }, ssh_keys: Vec::new(), user_data }
}

fn reader(number: u8) -> Reader {
    Reader::from_bytes([number; 16])
}

impl Bench {
    fn wants_installer(&self, at: u64) -> Node {
        self.registry.want(&NodeRef::Mac(mac(1)), &Expected::Anything, wish(), after(at)).unwrap()
    }

    /// Firmware starts over; its loader asks for the script.
    fn netboots(&self, at: u64) -> InstallerStart {
        self.seen(1, at);
        self.asks(at + 1)
    }

    fn asks(&self, at: u64) -> InstallerStart {
        let start = self.registry.start_installer(mac(1), ADDRESS, SCRIPT, true, || {}, after(at));
        if start == InstallerStart::Ready {
            let (name, plan) = (SCRIPT.to_owned(), ScriptPlan::Installer);
            self.registry.record(mac(1), Happening::Script { name, plan, token_issued_at: None }, after(at));
        }
        start
    }

    fn granted_phase(&self, at: u64) -> Option<gate::Phase> {
        self.registry.installed(mac(1), after(at)).map(|material| material.grant().phase)
    }

    fn reads(&self, secret: Secret, number: u8, at: u64) -> Result<(), ReadRefusal> {
        self.registry.secret_read(mac(1), secret, reader(number), after(at))
    }

    fn installer_done(&self, at: u64) -> Result<Answered, PhoneRefusal> {
        let judge = |material: &SeedMaterial| match material.grant().phase {
            gate::Phase::Installing => Ok(Answered::First),
            gate::Phase::AwaitingFirstBoot | gate::Phase::Active => Ok(Answered::Again),
            gate::Phase::None => Err(PhoneRefusal::NotAwaited),
        };
        self.registry.installer_done(mac(1), Some("node07"), judge, after(at))
    }

    fn installer_phase(&self) -> Phase {
        self.node(1).intent.unwrap().phase
    }

    fn told(&self, wanted: impl Fn(&InstallEvent) -> bool) -> usize {
        let is = |it: &&Happening| matches!(it, Happening::Install { install, .. } if wanted(install));
        self.happenings(1).iter().filter(is).count()
    }
}

#[test]
fn an_installer_is_started_answered_once_and_ends_with_the_installed_systems_call() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    let session = bench.hello(&bench.token(1, 0), 1, 0).unwrap();
    bench.registry.report_inventory(&session, mac(1), ADDRESS, inventory(&[1]), after(0)).unwrap();
    let node = bench.wants_installer(1);
    assert_eq!(node.state, ProvisionState::WaitCallBack);
    let waiting = bench.registry.heartbeat(&session, mac(1), ADDRESS, after(2)).unwrap();
    assert_eq!(
        (waiting.order, waiting.task),
        (Some(Order::Reboot), None),
        "it makes room, and does nothing else"
    );
    assert_eq!(bench.known(1, 2).installer, Some(profile()));
    assert_eq!(bench.granted_phase(2), Some(gate::Phase::None));

    assert_eq!(bench.netboots(10), InstallerStart::Ready);
    let node = bench.node(1);
    assert_eq!((node.state, node.order), (ProvisionState::Deploying, None));
    assert!(bench.registry.installs_by(mac(1), &profile()));
    assert_eq!(bench.granted_phase(12), Some(gate::Phase::Installing));
    // Its loader asks again, also of an appliance that was started in between.
    assert_eq!(bench.asks(13), InstallerStart::Ready);
    let bench = bench.restart();
    assert_eq!(bench.asks(14), InstallerStart::Ready);
    assert_eq!(bench.told(|it| matches!(it, InstallEvent::InstallerStarted { .. })), 1);

    assert_eq!(bench.reads(Secret::Installer, 1, 20), Ok(()));
    assert_eq!(bench.reads(Secret::Installer, 2, 20), Err(ReadRefusal::Gone));
    assert_eq!(bench.reads(Secret::UserData, 3, 30), Ok(()));
    assert_eq!(bench.told(|it| *it == InstallEvent::AnswersRead), 1);
    bench.store.fail_next_commits(1);
    assert_eq!(bench.installer_done(40), Err(PhoneRefusal::NotDurable));
    assert_eq!(bench.node(1).boots_next(), NextBoot::Ramdisk, "it has not happened");
    assert_eq!(bench.installer_done(41), Ok(Answered::First));
    assert_eq!(bench.installer_done(42), Ok(Answered::Again));
    let node = bench.node(1);
    assert_eq!((node.state, node.boots_next()), (ProvisionState::Deploying, NextBoot::LocalDisk));
    assert_eq!(bench.known(1, 43).installer, None);
    assert!(!bench.registry.installs_by(mac(1), &profile()));
    assert_eq!(bench.reads(Secret::Installer, 1, 43), Err(ReadRefusal::Gone));

    // Its first boot, from the disk.
    bench.seen(1, 100);
    assert_eq!(bench.asks(101), InstallerStart::No);
    let home = |_: &SeedMaterial| Ok(Answered::First);
    bench.registry.call_home(mac(1), Some("node07"), home, after(102)).unwrap();
    assert_eq!(bench.node(1).state, ProvisionState::Active);
    let reported = bench.told(|it| matches!(it, InstallEvent::InstallerReported { .. }));
    bench.registry.tick(after(103));
    assert_eq!(reported, 2, "said three times; once in vain, as the disk failed, and once for nothing new");
    bench.assert_stored();
}

#[test]
fn a_machine_that_netboots_again_has_lost_its_installer() {
    for answered in [false, true] {
        let bench = Bench::new(UnknownPolicy::Enroll);
        bench.seen(1, 0);
        bench.wants_installer(1);
        assert_eq!(bench.netboots(10), InstallerStart::Ready);
        if answered {
            bench.reads(Secret::Installer, 1, 20).unwrap();
        }
        // Before its loader asks, nothing is decided; but nobody in that boot is told anything.
        bench.seen(1, 30);
        assert_eq!(bench.granted_phase(30), None);
        assert_eq!(bench.reads(Secret::UserData, 9, 30), Err(ReadRefusal::NotFound));
        assert_eq!(bench.installer_done(30), Err(PhoneRefusal::NotAwaited));
        assert!(!bench.registry.installs_by(mac(1), &profile()));
        assert_eq!(bench.asks(31), InstallerStart::No);
        let node = bench.node(1);
        assert_eq!((node.state, node.boots_next()), (ProvisionState::DeployFailed, NextBoot::Ramdisk));
        let failure = node.failure.unwrap();
        assert!(
            failure.contains("netbooted again before its installer said")
                && failure.contains("deploy` again")
        );
        assert!(matches!(bench.installer_phase(), Phase::Failed { .. }));
        assert_eq!(bench.granted_phase(32), None, "what it was to be given is gone");
        // Whatever comes of the old installer now, and whoever restarts: nothing.
        assert_eq!(bench.installer_done(33), Err(PhoneRefusal::NotAwaited));
        let bench = bench.restart();
        assert_eq!(bench.asks(34), InstallerStart::No);
        bench.wants_installer(40);
        assert_eq!(bench.netboots(50), InstallerStart::Ready, "another wish is another start");
        assert_eq!(bench.node(1).intent.unwrap().generation, 2);
        bench.assert_stored();
    }
}

#[test]
fn a_start_that_nobody_noticed_finds_the_answers_read() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    bench.wants_installer(1);
    bench.netboots(10);
    bench.reads(Secret::Installer, 1, 20).unwrap();
    // No DISCOVER was heard: to the timeline it is the same boot.
    assert_eq!(bench.asks(30), InstallerStart::No);
    assert_eq!(bench.node(1).state, ProvisionState::DeployFailed);
}

#[test]
fn nobody_is_told_of_a_start_that_is_not_on_disk() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    bench.wants_installer(1);
    bench.seen(1, 10);
    bench.store.fail_next_commits(1);
    let settled = Arc::new(AtomicUsize::new(0));
    let ask = |bench: &Bench, at| {
        let settled = Arc::clone(&settled);
        let settled = move || {
            settled.fetch_add(1, Ordering::Relaxed);
        };
        bench.registry.start_installer(mac(1), ADDRESS, SCRIPT, true, settled, after(at))
    };
    assert_eq!((ask(&bench, 11), settled.load(Ordering::Relaxed)), (InstallerStart::NotYet, 1));
    // A crash at this moment: nothing was said, so nothing is lost.
    let crashed = Bench::with(Arc::clone(&bench.store), bench.settings.clone());
    assert_eq!(crashed.installer_phase(), Phase::Waiting);
    drop(crashed);
    // Asked again, it is written again.
    assert_eq!((ask(&bench, 12), settled.load(Ordering::Relaxed)), (InstallerStart::Ready, 2));
    let bench = bench.restart();
    assert!(matches!(bench.installer_phase(), Phase::Running { .. }));
    assert_eq!(bench.asks(13), InstallerStart::Ready);
}

#[test]
fn an_installer_that_never_ends_is_told_and_may_still_end() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    bench.wants_installer(1);
    bench.netboots(10);
    bench.reads(Secret::Installer, 1, 20).unwrap();
    bench.registry.tick(after(11 + 7200));
    assert_eq!(bench.node(1).state, ProvisionState::Deploying);
    bench.registry.tick(after(12 + 7200));
    let node = bench.node(1);
    assert_eq!(node.state, ProvisionState::DeployFailed);
    assert!(node.failure.unwrap().contains("has not said within 2h that it is done"));
    assert_eq!(bench.installer_done(8000), Ok(Answered::First), "it was only slow");
    assert_eq!(bench.node(1).state, ProvisionState::Deploying);
    assert_eq!(bench.node(1).failure, None);
}

#[test]
fn what_cannot_be_started_fails_and_what_is_not_there_is_waited_for() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    bench.seen(1, 0);
    bench.wants_installer(1);
    bench.seen(1, 10);
    let waits = bench.registry.start_installer(mac(1), ADDRESS, SCRIPT, false, || {}, after(11));
    assert_eq!((waits, bench.installer_phase()), (InstallerStart::Waits, Phase::Waiting));
    assert_eq!(bench.registry.who_installs_by(&profile()).map(|node| node.id), Some(bench.node(1).id));
    bench.registry.installer_unfit(mac(1), "Secure Boot is on", after(12));
    let node = bench.node(1);
    assert_eq!(
        (node.state, node.failure.as_deref()),
        (ProvisionState::DeployFailed, Some("Secure Boot is on"))
    );
    assert!(bench.registry.who_installs_by(&profile()).is_none());
}

#[test]
fn a_boot_of_which_nothing_was_heard_before_its_script_is_one() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    let new = NewNode { name: None, macs: vec![(mac(1), None)], quirks: None };
    bench.registry.register(new, after(0)).unwrap();
    bench.wants_installer(1);
    assert_eq!((bench.asks(2), bench.asks(3)), (InstallerStart::Ready, InstallerStart::Ready));
    let bench = bench.restart();
    assert_eq!(bench.asks(4), InstallerStart::Ready);
    assert_eq!(bench.netboots(10), InstallerStart::No);
}

/// Two ports of the bridge, both with somebody behind; the machine's MAC was heard behind the one that is set.
struct Ports(Arc<AtomicUsize>);

impl Whereabouts for Ports {
    fn behind(&self, _: MacAddr) -> Option<u32> {
        u32::try_from(self.0.load(Ordering::Relaxed)).ok()
    }

    fn is_plugged(&self, _: u32) -> bool {
        true
    }
}

#[test]
fn who_claims_its_mac_behind_another_port_gets_neither_installer_nor_answers() {
    let bench = Bench::new(UnknownPolicy::Enroll);
    let port = Arc::new(AtomicUsize::new(1));
    bench.registry.watch_ports(Box::new(Ports(Arc::clone(&port))));
    bench.seen(1, 0);
    bench.wants_installer(1);
    assert_eq!(bench.netboots(10), InstallerStart::Ready);
    port.store(2, Ordering::Relaxed);
    assert_eq!(bench.asks(12), InstallerStart::Elsewhere);
    assert_eq!(bench.granted_phase(12), None);
    assert_eq!(bench.reads(Secret::Installer, 9, 12), Err(ReadRefusal::NotFound));
    assert_eq!(bench.installer_done(12), Err(PhoneRefusal::NotAwaited));
    assert!(matches!(bench.installer_phase(), Phase::Running { .. }), "it does not end the task either");
    let refused =
        |it: &Happening| matches!(it, Happening::AgentRefused { reason, .. } if reason == "wrong-port");
    assert!(bench.happenings(1).iter().any(refused), "the operator is told");
    port.store(1, Ordering::Relaxed);
    assert_eq!(bench.reads(Secret::Installer, 1, 13), Ok(()));
    assert_eq!(bench.installer_done(14), Ok(Answered::First));
}
