//! Every order of boots, crashes, lost answers and late calls that a small world allows, tried out.
//!
//! The world is one machine with one disk, an appliance whose record is what its disk holds (it answers after the
//! commit), an operator who deploys, aborts and deploys again, and a network that loses and repeats. The machine may
//! lose power at any moment, boots from disk or network as it likes, and writes only what it is handed. The search is
//! exhaustive: it ends when there is no state left that was not seen.

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;

use super::*;

mod installer;

const GENERATIONS: u64 = 2;
const BOOTS: u64 = 4;

/// What is on the disk, and by which generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Disk {
    Old,
    /// Its partition tables are gone: it does not boot.
    Part(u64),
    Whole(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Machine {
    Off,
    /// The agent runs; it was given this generation's task, if any.
    Ramdisk {
        boot: u64,
        task: Option<u64>,
        begun: bool,
        acknowledged: bool,
    },
    /// The system of this generation runs from the disk.
    Installed(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Call {
    Begin { boot: u64, generation: u64 },
    Done { boot: u64, generation: u64 },
    Home { generation: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    /// The current intent: its generation and phase.
    intent: Option<(u64, Phase)>,
    /// The newest boot that said hello: older sessions are refused.
    session: u64,
    machine: Machine,
    boots: u64,
    disk: Disk,
    /// Times that the disk became a generation's, by generation.
    installs: [u8; GENERATIONS as usize + 1],
    /// Calls that were made: any of them may arrive, again and at any time.
    calls: Vec<Call>,
}

fn at(boot: u64) -> Timestamp {
    Timestamp::from_millis(boot)
}

/// Every state that can be reached, each once: `step` looks at one and says what may come next. How many there are.
fn explore<W: Clone + Eq + Hash>(first: W, mut step: impl FnMut(&W) -> Vec<W>) -> usize {
    let (mut seen, mut open) = (HashSet::from([first.clone()]), VecDeque::from([first]));
    while let Some(world) = open.pop_front() {
        for next in step(&world) {
            if seen.insert(next.clone()) {
                open.push_back(next);
            }
        }
    }
    seen.len()
}

/// The calls that were made, with one more.
fn with_call<C: Copy + Ord>(calls: &[C], call: C) -> Vec<C> {
    let mut calls = calls.to_vec();
    if let Err(place) = calls.binary_search(&call) {
        calls.insert(place, call);
    }
    calls
}

fn target() -> Vec<TargetDisk> {
    vec![TargetDisk { name: "vda".to_owned(), serial: Some("S".to_owned()), path: None, bytes: 512 }]
}

impl World {
    fn call(&self, call: Call) -> World {
        World { calls: with_call(&self.calls, call), ..self.clone() }
    }

    /// What the appliance makes of a call: its record after it, or none if it refuses.
    fn hear(&self, call: Call) -> Option<Phase> {
        let (generation, phase) = self.intent.as_ref()?;
        let (of, event) = match call {
            Call::Begin { boot, generation } => {
                let event = IntentEvent::Begun { boot: at(boot), disks: target() };
                (generation, (boot == self.session).then_some(event)?)
            }
            Call::Done { boot, generation } => {
                (generation, (boot == self.session).then_some(IntentEvent::Reported { boot: at(boot) })?)
            }
            Call::Home { generation } => (generation, IntentEvent::CalledHome),
        };
        if of != *generation {
            return None;
        }
        next_phase(Verb::Deploy, Runner::Agent, phase, &event, at(0)).ok()
    }

    fn successors(&self) -> Vec<World> {
        let mut all = Vec::new();
        self.operator(&mut all);
        self.network(&mut all);
        self.machine(&mut all);
        all
    }

    fn operator(&self, all: &mut Vec<World>) {
        let open = self.intent.as_ref().is_some_and(|(_, phase)| {
            matches!(phase, Phase::Waiting | Phase::Running { .. } | Phase::Written { .. })
        });
        let last = self.intent.as_ref().map_or(0, |(generation, _)| *generation);
        if !open && last < GENERATIONS {
            all.push(World { intent: Some((last + 1, Phase::Waiting)), ..self.clone() });
        }
        if let Some((generation, phase)) = &self.intent {
            let nudges = [
                IntentEvent::Aborted,
                IntentEvent::Stalled,
                IntentEvent::FirstBootOverdue,
                IntentEvent::Failed { reason: String::new() },
            ];
            for event in nudges {
                if let Ok(phase) = next_phase(Verb::Deploy, Runner::Agent, phase, &event, at(0)) {
                    all.push(World { intent: Some((*generation, phase)), ..self.clone() });
                }
            }
        }
    }

    /// Any call ever made arrives: for the first time, late or again. Whether its answer reaches anybody is another
    /// matter; a commit that fails, or an appliance that dies before it, is a call that has not arrived yet.
    fn network(&self, all: &mut Vec<World>) {
        for call in &self.calls {
            let Some(phase) = self.hear(*call) else { continue };
            let generation = self.intent.as_ref().map_or(0, |(generation, _)| *generation);
            let heard = World { intent: Some((generation, phase)), ..self.clone() };
            // The answer reaches the agent that asked, if it still runs.
            if let Machine::Ramdisk { boot, task, .. } = self.machine {
                let answered = match call {
                    Call::Begin { boot: of, .. } if *of == boot => {
                        Some(Machine::Ramdisk { boot, task, begun: true, acknowledged: false })
                    }
                    Call::Done { boot: of, .. } if *of == boot => {
                        Some(Machine::Ramdisk { boot, task, begun: true, acknowledged: true })
                    }
                    Call::Begin { .. } | Call::Done { .. } | Call::Home { .. } => None,
                };
                all.extend(answered.map(|machine| World { machine, ..heard.clone() }));
            }
            all.push(heard);
        }
    }

    fn machine(&self, all: &mut Vec<World>) {
        match self.machine {
            Machine::Off => {
                // From the disk, if there is anything to boot, whatever the appliance says: BIOS boot orders differ.
                if let Disk::Whole(generation) = self.disk {
                    all.push(World { machine: Machine::Installed(generation), ..self.clone() });
                }
                // From the network: the ramdisk, if the intent needs it; else the appliance says local disk.
                let needs = matches!(self.intent, Some((_, Phase::Waiting | Phase::Running { .. })));
                if needs && self.boots < BOOTS {
                    let boot = self.boots + 1;
                    let machine = Machine::Ramdisk { boot, task: None, begun: false, acknowledged: false };
                    all.push(World { machine, boots: boot, session: boot, ..self.clone() });
                }
            }
            Machine::Ramdisk { boot, task, begun, acknowledged } => {
                all.push(World { machine: Machine::Off, ..self.clone() });
                if acknowledged {
                    return;
                }
                // A heartbeat is answered with the task.
                if let (None, Some((generation, Phase::Waiting | Phase::Running { .. }))) =
                    (task, &self.intent)
                {
                    let machine = Machine::Ramdisk { boot, task: Some(*generation), begun, acknowledged };
                    all.push(World { machine, ..self.clone() });
                }
                let Some(generation) = task else { return };
                if !begun {
                    all.push(self.call(Call::Begin { boot, generation }));
                    return;
                }
                // The fence: bytes of the image are handed to the boot that began last, while the task runs.
                let handed = matches!(&self.intent, Some((current, Phase::Running { boot: runner, .. }))
                    if *current == generation && *runner == at(boot));
                match self.disk {
                    Disk::Whole(of) if of == generation => {
                        all.push(self.call(Call::Done { boot, generation }))
                    }
                    Disk::Part(of) if of == generation && handed => {
                        let mut next = World { disk: Disk::Whole(generation), ..self.clone() };
                        next.installs[generation as usize] += 1;
                        all.push(next);
                    }
                    Disk::Old | Disk::Part(_) | Disk::Whole(_) if handed => {
                        all.push(World { disk: Disk::Part(generation), ..self.clone() });
                    }
                    Disk::Old | Disk::Part(_) | Disk::Whole(_) => {}
                }
            }
            Machine::Installed(generation) => {
                all.push(World { machine: Machine::Off, ..self.clone() });
                all.push(self.call(Call::Home { generation }));
            }
        }
    }

    fn check(&self) {
        for (generation, installs) in self.installs.iter().enumerate() {
            assert!(*installs <= 1, "generation {generation} was installed {installs} times: {self:#?}");
        }
        if let Some((generation, Phase::Done { .. })) = &self.intent {
            assert_eq!(self.installs[*generation as usize], 1, "done, and nothing installed: {self:#?}");
        }
        if let Some((generation, Phase::Written { .. })) = &self.intent {
            assert_eq!(self.disk, Disk::Whole(*generation), "{self:#?}");
        }
        if let Machine::Installed(generation) = self.machine {
            assert_eq!(self.installs[generation as usize], 1, "{self:#?}");
        }
    }
}

#[test]
fn at_most_one_install_comes_of_an_intent_whatever_happens() {
    let first = World {
        intent: None,
        session: 0,
        machine: Machine::Off,
        boots: 0,
        disk: Disk::Old,
        installs: [0; GENERATIONS as usize + 1],
        calls: Vec::new(),
    };
    let (mut done, mut twice_deployed) = (0_usize, 0_usize);
    let states = explore(first, |world| {
        world.check();
        done += usize::from(matches!(world.intent, Some((_, Phase::Done { .. }))));
        twice_deployed += usize::from(world.installs[1] == 1 && world.installs[2] == 1);
        world.successors()
    });
    // The world is large enough to mean something, and both ends of interest are reached.
    assert!(states > 10_000, "{states} states");
    assert!(
        done > 0 && twice_deployed > 0,
        "{done} done, {twice_deployed} deployed twice, each by an intent of its own"
    );
}

#[test]
fn another_disk_is_not_begun_with() {
    let running = next_phase(
        Verb::Deploy,
        Runner::Agent,
        &Phase::Waiting,
        &IntentEvent::Begun { boot: at(1), disks: target() },
        at(1),
    )
    .unwrap();
    let mut other = target();
    other[0].serial = Some("T".to_owned());
    let begin = |disks| {
        next_phase(Verb::Deploy, Runner::Agent, &running, &IntentEvent::Begun { boot: at(2), disks }, at(2))
    };
    assert_eq!(begin(other), Err(IntentRefusal::OtherDisk));
    assert_eq!(begin(Vec::new()), Err(IntentRefusal::OtherDisk));
    // A new name for the same disk is the same disk.
    let mut renamed = target();
    renamed[0].name = "vdb".to_owned();
    assert!(begin(renamed).is_ok());
}

#[test]
fn cleaning_is_done_with_its_report_and_a_rescue_has_none() {
    for (verb, expected) in [
        (Verb::Deploy, Ok(Phase::Written { at: at(2), boot: at(1), disks: target(), overdue: false })),
        (Verb::Clean, Ok(Phase::Done { at: at(2), boot: at(1) })),
        (Verb::Rescue, Err(IntentRefusal::NotPartOfIt)),
    ] {
        let begun = IntentEvent::Begun { boot: at(1), disks: target() };
        let running = next_phase(verb, Runner::Agent, &Phase::Waiting, &begun, at(1)).unwrap();
        let reported =
            next_phase(verb, Runner::Agent, &running, &IntentEvent::Reported { boot: at(1) }, at(2));
        assert_eq!(reported, expected, "{verb}");
        let late = next_phase(verb, Runner::Agent, &running, &IntentEvent::Reported { boot: at(9) }, at(2));
        assert_eq!(late, Err(IntentRefusal::NotThisBoot), "{verb}");
    }
}
