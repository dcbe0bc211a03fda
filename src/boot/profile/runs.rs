//! The fence of a one-shot profile: a node boots it in at most one boot per rule, whatever crashes.
//!
//! ```text
//!          script of boot n is asked for            its kernel was handed out whole, or another boot asks
//!   Armed ───────────────────────────────> Started(n) ──────────────────────────────────────────────> Spent
//!            durable BEFORE the script leaves      └── the appliance was started anew: nobody knows what it did
//! ```
//! A boot is what the timeline numbers: firmware starting over. Within one, the script may be asked for again as long as
//! the kernel was not handed out whole, so a broken download costs nothing. A crash between the hand-out and the start of
//! the kernel loses the run rather than repeat it: the rule can be given again, a second install or wipe not taken back.
//!
//! What is on disk is `Started` or `Spent`; both mean to a program that did not write them itself that the run is over.

use serde::{Deserialize, Serialize};

use crate::boot::profile::rules::{RuleList, RuleNumber};
use crate::boot::profile::{ProfileFile, ProfileName};
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::NodeId;

/// How far one node is with one rule's one-shot, as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum RunState {
    Started { boot: u32, at: Timestamp },
    Spent { at: Timestamp },
}

/// One node's run, as it is kept. The MAC that booted counts as well as the node: a node that made room for others comes
/// back as another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub rule: RuleNumber,
    pub mac: MacAddr,
    pub node: NodeId,
    pub profile: ProfileName,
    #[serde(flatten)]
    pub state: RunState,
}

/// What is kept of profiles beside the library: the list of rules, and the runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    Rules(RuleList),
    Run(Run),
}

impl Record {
    pub const RULES_KEY: &'static str = "rules";

    pub fn key(&self) -> String {
        match self {
            Record::Rules(_) => Record::RULES_KEY.to_owned(),
            Record::Run(run) => run.key(),
        }
    }
}

pub fn key(rule: RuleNumber, mac: MacAddr) -> String {
    format!("run/{rule}/{mac}")
}

impl Run {
    pub fn key(&self) -> String {
        key(self.rule, self.mac)
    }
}

/// What a node may do with a one-shot at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    Armed,
    /// This boot's own run, not yet handed out whole.
    Running,
    /// On its way to the disk: ask again.
    Pending,
    Spent,
}

/// One run in memory. No run at all is `Armed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveRun {
    /// Not on disk yet; nothing that names it has left.
    Pending {
        boot: u32,
        at: Timestamp,
    },
    Running {
        boot: u32,
        at: Timestamp,
    },
    /// Handed out whole; the rest of its files may still be fetched in its boot.
    HandedOut {
        boot: u32,
        at: Timestamp,
    },
    /// Over, or read from the disk.
    Over {
        state: RunState,
    },
}

impl LiveRun {
    pub fn fence(self, boot: u32) -> Fence {
        match self {
            LiveRun::Pending { .. } => Fence::Pending,
            LiveRun::Running { boot: of, .. } if of == boot => Fence::Running,
            LiveRun::Running { .. } | LiveRun::HandedOut { .. } | LiveRun::Over { .. } => Fence::Spent,
        }
    }

    /// The batch with its start is on disk.
    pub fn durable(self) -> LiveRun {
        match self {
            LiveRun::Pending { boot, at } => LiveRun::Running { boot, at },
            LiveRun::Running { .. } | LiveRun::HandedOut { .. } | LiveRun::Over { .. } => self,
        }
    }

    /// Its kernel or EFI program went out to its last byte.
    pub fn handed_out(self) -> LiveRun {
        match self {
            LiveRun::Running { boot, at } => LiveRun::HandedOut { boot, at },
            LiveRun::Pending { .. } | LiveRun::HandedOut { .. } | LiveRun::Over { .. } => self,
        }
    }

    /// Whether this boot may fetch a file of it.
    pub fn may_fetch(self, boot: u32, file: ProfileFile) -> bool {
        let starts = match file {
            ProfileFile::Kernel | ProfileFile::EfiProgram => true,
            // An image is a drive, read here and there for as long as the boot lasts.
            ProfileFile::Initrd(_) | ProfileFile::Iso => false,
        };
        match self {
            LiveRun::Running { boot: of, .. } => of == boot,
            LiveRun::HandedOut { boot: of, .. } => of == boot && !starts,
            // The drive of a boot that goes on must not vanish because the appliance was started anew.
            LiveRun::Over { state: RunState::Started { boot: of, .. } } => {
                of == boot && file == ProfileFile::Iso
            }
            LiveRun::Over { state: RunState::Spent { .. } } | LiveRun::Pending { .. } => false,
        }
    }

    /// As it is kept and told.
    pub fn state(self) -> RunState {
        match self {
            LiveRun::Pending { boot, at } | LiveRun::Running { boot, at } => RunState::Started { boot, at },
            LiveRun::HandedOut { at, .. } => RunState::Spent { at },
            LiveRun::Over { state } => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const AT: Timestamp = Timestamp::from_millis(1);

    /// The appliance and one machine, as far as the fence goes.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
    struct World {
        /// By rank, for ordering: what memory holds.
        memory: Memory,
        disk: Option<(bool, u32)>,
        /// The boot the machine is in, and whether it holds a script of it that names the kernel.
        boot: u32,
        script: bool,
        /// Boots in which the kernel came whole, so that it may have been started.
        started: [bool; BOOTS as usize + 1],
    }

    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
    enum Memory {
        Armed,
        Pending(u32),
        Running(u32),
        HandedOut(u32),
        Over(bool, u32),
    }

    const BOOTS: u32 = 3;

    impl Memory {
        fn run(self) -> Option<LiveRun> {
            match self {
                Memory::Armed => None,
                Memory::Pending(boot) => Some(LiveRun::Pending { boot, at: AT }),
                Memory::Running(boot) => Some(LiveRun::Running { boot, at: AT }),
                Memory::HandedOut(boot) => Some(LiveRun::HandedOut { boot, at: AT }),
                Memory::Over(true, boot) => Some(LiveRun::Over { state: RunState::Started { boot, at: AT } }),
                Memory::Over(false, _) => Some(LiveRun::Over { state: RunState::Spent { at: AT } }),
            }
        }

        fn of(run: LiveRun) -> Memory {
            match run {
                LiveRun::Pending { boot, .. } => Memory::Pending(boot),
                LiveRun::Running { boot, .. } => Memory::Running(boot),
                LiveRun::HandedOut { boot, .. } => Memory::HandedOut(boot),
                LiveRun::Over { state: RunState::Started { boot, .. } } => Memory::Over(true, boot),
                LiveRun::Over { state: RunState::Spent { .. } } => Memory::Over(false, 0),
            }
        }
    }

    /// Every world one step from here.
    fn steps(world: World) -> Vec<World> {
        let mut next = Vec::new();
        // The machine starts over, at any moment.
        if world.boot < BOOTS {
            next.push(World { boot: world.boot + 1, script: false, ..world });
        }
        // It asks for its script, once or again.
        match world.memory.run().map(|run| run.fence(world.boot)) {
            None => next.push(World { memory: Memory::Pending(world.boot), ..world }),
            Some(Fence::Running) => next.push(World { script: true, ..world }),
            Some(Fence::Pending | Fence::Spent | Fence::Armed) => {}
        }
        // The disk takes the start, or refuses it.
        if let Memory::Pending(boot) = world.memory {
            let memory = world.memory.run().map(LiveRun::durable).map_or(Memory::Armed, Memory::of);
            next.push(World { memory, disk: Some((true, boot)), ..world });
            next.push(World { memory: Memory::Armed, ..world });
        }
        // It fetches the kernel whole: by the script it holds, or by one of an earlier boot that somebody kept.
        if let Some(run) = world.memory.run()
            && run.may_fetch(world.boot, ProfileFile::Kernel)
        {
            let mut started = world.started;
            started[world.boot as usize] = true;
            // The last byte is out before we note it.
            next.push(World { started, ..world });
            let memory = Memory::of(run.handed_out());
            next.push(World { started, memory, ..world });
        }
        // What became of it reaches the disk, some time.
        if let Memory::HandedOut(boot) = world.memory {
            next.push(World { disk: Some((false, boot)), ..world });
        }
        // The power goes: memory is what the disk says; the machine may go on, or lose its newest boot's number.
        let memory = world.disk.map_or(Memory::Armed, |(started, boot)| Memory::Over(started, boot));
        next.push(World { memory, ..world });
        next
    }

    /// Every order of boots, scripts, downloads, crashes and failing disks, to the end: the kernel is whole in one boot at
    /// most, and a script never leaves before the disk knows.
    #[test]
    fn no_order_of_crashes_boots_a_one_shot_twice() {
        let first = World {
            memory: Memory::Armed,
            disk: None,
            boot: 1,
            script: false,
            started: [false; BOOTS as usize + 1],
        };
        let (mut seen, mut open) = (BTreeSet::from([first]), vec![first]);
        let (mut ran, mut lost) = (false, false);
        while let Some(world) = open.pop() {
            let boots = world.started.iter().filter(|started| **started).count();
            assert!(boots <= 1, "{world:?}");
            assert!(!world.script || world.disk.is_some(), "{world:?}");
            ran |= boots == 1;
            lost |= boots == 0 && matches!(world.memory, Memory::Over(..));
            open.extend(steps(world).into_iter().filter(|next| seen.insert(*next)));
        }
        assert!(ran && lost && seen.len() > 50, "{} worlds", seen.len());
    }

    #[test]
    fn a_broken_download_may_be_tried_again_in_its_boot_and_initrds_follow_the_kernel() {
        let run = LiveRun::Pending { boot: 4, at: AT };
        assert_eq!((run.fence(4), run.may_fetch(4, ProfileFile::Kernel)), (Fence::Pending, false));
        let run = run.durable();
        assert_eq!((run.fence(4), run.fence(5)), (Fence::Running, Fence::Spent));
        assert!(run.may_fetch(4, ProfileFile::Kernel) && !run.may_fetch(5, ProfileFile::Kernel));
        let run = run.handed_out();
        assert_eq!((run.fence(4), run.state()), (Fence::Spent, RunState::Spent { at: AT }));
        assert!(run.may_fetch(4, ProfileFile::Initrd(0)) && !run.may_fetch(4, ProfileFile::Kernel));
        assert!(!run.may_fetch(5, ProfileFile::Initrd(0)));
        let read = LiveRun::Over { state: RunState::Started { boot: 4, at: AT } };
        assert_eq!(read.fence(4), Fence::Spent);
        assert!(read.may_fetch(4, ProfileFile::Iso) && !read.may_fetch(4, ProfileFile::Kernel));
        assert!(!read.may_fetch(5, ProfileFile::Iso));
    }

    #[test]
    fn records_are_kept_as_text() {
        let run = Run {
            rule: RuleNumber(3),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            node: NodeId(uuid::Uuid::nil()),
            profile: "wipe".parse().unwrap(),
            state: RunState::Started { boot: 7, at: AT },
        };
        for record in [Record::Run(run), Record::Rules(RuleList::default())] {
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record, "{text}");
        }
    }
}
