//! The same with a distribution's installer, of which nothing is ours but what it is handed: the script that starts its
//! kernel, and its answers, once.
//!
//! The machine may start anew at any moment, and nobody need notice: two starts may look like one boot to us
//! (`seen`). It may ask for its script again and again, and every call may arrive late, twice or never. The appliance
//! dies between any two steps, so what is not in its record does not count. Having its answers, an installer writes and
//! reports without asking anybody.

use super::super::*;
use super::{Disk, GENERATIONS, at, explore, with_call};

const STARTS: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Machine {
    Off,
    /// Its loader asks what to boot.
    Loader,
    /// The kernel of this generation's installer runs.
    Started(u64),
    /// The same, with answers.
    Answered(u64),
    /// It is done, and says so over and over.
    Finished(u64),
    Installed(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Call {
    /// By the boot as the timeline numbers it.
    Script {
        boot: u64,
    },
    Report {
        generation: u64,
    },
    Home {
        generation: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    intent: Option<(u64, Phase)>,
    /// The answers of the current intent were given, which is on disk before they leave.
    answered: bool,
    machine: Machine,
    starts: u64,
    /// The boot that the timeline shows.
    seen: u64,
    disk: Disk,
    installs: [u8; GENERATIONS as usize + 1],
    calls: Vec<Call>,
}

fn after(phase: &Phase, event: &IntentEvent) -> Option<Phase> {
    next_phase(Verb::Deploy, Runner::Installer, phase, event, at(0)).ok()
}

impl World {
    fn call(&self, call: Call) -> World {
        World { calls: with_call(&self.calls, call), ..self.clone() }
    }

    fn successors(&self) -> Vec<World> {
        let mut all = Vec::new();
        self.operator(&mut all);
        self.network(&mut all);
        self.machine(&mut all);
        all
    }

    fn with(&self, generation: u64, phase: Phase) -> World {
        World { intent: Some((generation, phase)), ..self.clone() }
    }

    fn operator(&self, all: &mut Vec<World>) {
        let open =
            matches!(self.intent, Some((_, Phase::Waiting | Phase::Running { .. } | Phase::Written { .. })));
        let last = self.intent.as_ref().map_or(0, |(generation, _)| *generation);
        if !open && last < GENERATIONS {
            all.push(World { answered: false, ..self.with(last + 1, Phase::Waiting) });
        }
        let Some((generation, phase)) = &self.intent else { return };
        let nudges = [IntentEvent::Aborted, IntentEvent::Stalled, IntentEvent::FirstBootOverdue];
        let moved = nudges.iter().filter_map(|event| after(phase, event));
        all.extend(moved.map(|phase| self.with(*generation, phase)));
    }

    fn network(&self, all: &mut Vec<World>) {
        let Some((generation, phase)) = &self.intent else { return };
        for call in &self.calls {
            match call {
                Call::Script { boot } => self.asked_for_script(*boot, *generation, phase, all),
                Call::Report { generation: of } if of == generation => {
                    let (Phase::Running { boot, .. }
                    | Phase::Written { boot, .. }
                    | Phase::Done { boot, .. }) = phase
                    else {
                        continue;
                    };
                    let reported = after(phase, &IntentEvent::Reported { boot: *boot });
                    all.extend(reported.map(|phase| self.with(*generation, phase)));
                }
                Call::Home { generation: of } if of == generation => {
                    all.extend(
                        after(phase, &IntentEvent::CalledHome).map(|phase| self.with(*generation, phase)),
                    );
                }
                Call::Report { .. } | Call::Home { .. } => {}
            }
        }
    }

    /// A request belongs to the boot that is shown when it arrives; one that comes late is of an earlier.
    fn asked_for_script(&self, boot: u64, generation: u64, phase: &Phase, all: &mut Vec<World>) {
        let told = match start(phase, Some(at(boot)), self.answered) {
            Start::Begin => after(phase, &IntentEvent::Begun { boot: at(boot), disks: Vec::new() }),
            Start::Again => Some(phase.clone()),
            Start::Lost => {
                let failed = after(phase, &IntentEvent::Failed { reason: String::new() });
                all.extend(failed.map(|phase| self.with(generation, phase)));
                return;
            }
            Start::Never => return,
        };
        let Some(phase) = told else { return };
        let noted = self.with(generation, phase);
        // Its answer reaches the loader that waits, if it is still there; and the loader starts what it is told.
        if self.machine == Machine::Loader {
            all.push(World { machine: Machine::Started(generation), ..noted.clone() });
        }
        all.push(noted);
    }

    fn machine(&self, all: &mut Vec<World>) {
        let to = |machine| World { machine, ..self.clone() };
        if self.machine != Machine::Off {
            all.push(to(Machine::Off));
        }
        match self.machine {
            Machine::Off => {
                if let Disk::Whole(generation) = self.disk {
                    all.push(to(Machine::Installed(generation)));
                }
                if self.starts < STARTS {
                    let booted = World { starts: self.starts + 1, ..to(Machine::Loader) };
                    all.push(World { seen: self.seen + 1, ..booted.clone() });
                    if self.seen > 0 {
                        all.push(booted);
                    }
                }
            }
            Machine::Loader => all.push(self.call(Call::Script { boot: self.seen })),
            Machine::Started(generation) => {
                let runs = matches!(&self.intent, Some((current, Phase::Running { boot, .. }))
                    if *current == generation && *boot == at(self.seen));
                if runs && !self.answered {
                    all.push(World { answered: true, ..to(Machine::Answered(generation)) });
                }
            }
            Machine::Answered(generation) => match self.disk {
                Disk::Part(of) if of == generation => {
                    let mut next =
                        World { disk: Disk::Whole(generation), ..to(Machine::Finished(generation)) };
                    next.installs[generation as usize] += 1;
                    all.push(next);
                }
                Disk::Old | Disk::Part(_) | Disk::Whole(_) => {
                    all.push(World { disk: Disk::Part(generation), ..self.clone() });
                }
            },
            Machine::Finished(generation) => all.push(self.call(Call::Report { generation })),
            Machine::Installed(generation) => all.push(self.call(Call::Home { generation })),
        }
    }

    fn check(&self) {
        for (generation, installs) in self.installs.iter().enumerate() {
            assert!(*installs <= 1, "generation {generation} was installed {installs} times: {self:#?}");
        }
        if let Some((generation, Phase::Written { .. } | Phase::Done { .. })) = &self.intent {
            assert_eq!(self.installs[*generation as usize], 1, "said to be installed, and is not: {self:#?}");
            assert_eq!(self.disk, Disk::Whole(*generation), "{self:#?}");
        }
    }
}

#[test]
fn an_installer_is_at_most_once_at_work_for_an_intent_whatever_happens() {
    let first = World {
        intent: None,
        answered: false,
        machine: Machine::Off,
        starts: 0,
        seen: 0,
        disk: Disk::Old,
        installs: [0; GENERATIONS as usize + 1],
        calls: Vec::new(),
    };
    let (mut done, mut lost, mut twice_deployed) = (0_usize, 0_usize, 0_usize);
    let states = explore(first, |world| {
        world.check();
        done += usize::from(matches!(world.intent, Some((_, Phase::Done { .. }))));
        lost += usize::from(matches!(world.intent, Some((_, Phase::Failed { .. }))));
        twice_deployed += usize::from(world.installs[1] == 1 && world.installs[2] == 1);
        world.successors()
    });
    assert!(states > 10_000, "{states} states");
    assert!(
        done > 0 && lost > 0 && twice_deployed > 0,
        "{done} done, {lost} lost, {twice_deployed} deployed twice, each by an intent of its own"
    );
}

#[test]
fn only_the_boot_that_began_is_told_again_and_only_until_its_installer_was_heard_of() {
    let running = after(&Phase::Waiting, &IntentEvent::Begun { boot: at(1), disks: Vec::new() }).unwrap();
    assert_eq!(start(&Phase::Waiting, Some(at(1)), false), Start::Begin);
    assert_eq!(start(&running, Some(at(1)), false), Start::Again);
    for (boot, answered) in [(Some(at(2)), false), (None, false), (Some(at(1)), true)] {
        assert_eq!(start(&running, boot, answered), Start::Lost);
    }
    let another = IntentEvent::Begun { boot: at(2), disks: Vec::new() };
    let refused = next_phase(Verb::Deploy, Runner::Installer, &running, &another, at(2));
    assert_eq!(refused, Err(IntentRefusal::StartedBefore));
    let written = after(&running, &IntentEvent::Reported { boot: at(1) }).unwrap();
    assert_eq!(start(&written, Some(at(1)), true), Start::Never);
}
