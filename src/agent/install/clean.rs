//! Emptying disks: nothing that was on them can be read any more, which is found out by reading all of it.

use crate::agent::install::chunks::{Range, clear, overwrite, pieces, verify_zero};
use crate::agent::install::meter::Meter;
use crate::agent::install::target::Disk;
use crate::agent::install::{
    Achieved, Fault, Ground, Halt, Outcome, chosen, destroy_tables, discard, open, until_answered,
};
use crate::node::install::disk_rule::{DiskRule, Purpose};
use crate::node::install::intent::CleanMethod;
use crate::node::install::task::{AgentTask, Step, TargetDisk};

pub(super) fn run(
    ground: &Ground,
    task: &AgentTask,
    rule: &DiskRule,
    method: CleanMethod,
    step: &mut Step,
) -> Result<Achieved, Halt> {
    let chosen = chosen(ground, task, rule, Purpose::Clean)?;
    let disks = chosen.iter().map(|facts| open(ground, facts)).collect::<Result<Vec<_>, _>>()?;
    let targets: Vec<TargetDisk> = chosen.iter().map(|facts| facts.target()).collect();
    let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
    ground.console.say(format_args!("emptying {}", names.join(", ")));
    until_answered(ground, "begin", || ground.calls.begin(task.intent, &targets))?;
    let meter = Meter::default();
    let work = || empty_all(&disks, &meter, method);
    let outcome = meter.tell_while(ground.calls, task.intent, ground.console, work);
    *step = meter.step();
    outcome?;
    for disk in &disks {
        // Nothing is left to be announced but that nothing is there.
        let _ = disk.announce();
    }
    Ok(Achieved {
        bytes: disks.iter().map(|disk| disk.bytes()).sum(),
        disks: targets,
        written: meter.written(),
        next: Outcome::Stay,
    })
}

fn empty_all(disks: &[Box<dyn Disk>], meter: &Meter, method: CleanMethod) -> Result<(), Halt> {
    let total = disks.iter().map(|disk| disk.bytes()).sum();
    meter.enter(Step::Discarding, total);
    // What cannot be finished shall at least not boot.
    for disk in disks {
        destroy_tables(&**disk)?;
    }
    let mut left: Vec<(&dyn Disk, Vec<Range>)> = Vec::new();
    for disk in disks {
        let all: Vec<Range> = pieces(0, disk.bytes()).collect();
        let written = match method {
            CleanMethod::Discard => {
                discard(&**disk, meter, 0, disk.bytes())?;
                clear(&**disk, meter, &all)?
            }
            CleanMethod::Overwrite => {
                overwrite(&**disk, meter, &all)?;
                all
            }
        };
        disk.sync().map_err(|error| Fault::disk("flushing", 0, &error))?;
        left.push((&**disk, written));
    }
    // What was discarded and read as zero was read past every cache already.
    let bytes = left.iter().flat_map(|(_, ranges)| ranges).map(|range| range.length).sum();
    meter.enter(Step::Verifying, bytes);
    left.iter().try_for_each(|(disk, ranges)| verify_zero(*disk, meter, ranges))
}
