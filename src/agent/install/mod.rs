//! What an agent does to a machine's disks when it is told to: install an image, clean, or stand by for a rescue.
//!
//! ```text
//!  task ──> disk ──> begin ──> old tables ──> zeros ──> chunks ──> read back ──> seed, tables ──> done ──> reboot
//!          (rule)   (fence)   destroyed,               fetched,                 committed last
//!                             stale data               checked,
//!                             discarded                written
//! ```
//! A disk that is written halfway does not boot: its partition tables are destroyed first and written last, after
//! everything else was read back. A task that was begun before goes on with the disk it began with, and keeps every
//! chunk that reads as it should. An appliance that says the task is another's (409) stops the writing at once.
//!
//! - [`disks`], [`signatures`]: what disks there are and what lies on them
//! - [`target`]: a disk that is written; [`overlay`] is the end of it, prepared in memory
//! - [`chunks`]: fetched, decoded, checked, written, read back
//! - [`deploy`], [`clean`], [`rescue`]: the three tasks
//! - [`table`], [`seed`], [`boot_entry`]: what makes the written disk this node's system
//! - [`meter`]: how far it is, and what stops it

pub mod boot_entry;
pub mod chunks;
pub mod clean;
pub mod deploy;
pub mod disks;
pub mod meter;
pub mod overlay;
pub mod rescue;
pub mod seed;
pub mod signatures;
pub mod table;
pub mod target;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::agent::backoff::{Backoff, pause};
use crate::agent::calls::CallError;
use crate::agent::console::Console;
use crate::agent::install::target::Disk;
use crate::image::digest::Digest;
use crate::node::install::disk_rule::choice::begun_with;
use crate::node::install::disk_rule::{DiskFacts, DiskRule, NoDisk, Purpose};
use crate::node::install::intent::IntentId;
use crate::node::install::task::{AgentTask, AgentWork, Progress, Report, Seed, Step, TargetDisk, prove};

/// What the appliance is asked and told while a task runs.
pub trait Calls: Sync {
    /// Durable before it is answered: from here on the disks are written to.
    fn begin(&self, intent: IntentId, disks: &[TargetDisk]) -> Result<(), CallError>;
    fn seed(&self, intent: IntentId) -> Result<Seed, CallError>;
    /// Whether to go on.
    fn progress(&self, intent: IntentId, progress: &Progress) -> Result<bool, CallError>;
    fn done(&self, intent: IntentId, report: &Report) -> Result<(), CallError>;
    fn failure(&self, intent: IntentId, step: &str, message: &str) -> Result<(), CallError>;
    /// Appends what is missing of a blob of `bytes` to `into`. What came before an error stays there, and the next
    /// call asks for the rest only.
    fn fetch(&self, blob: Blob, bytes: u64, into: &mut Vec<u8>) -> Result<(), CallError>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blob {
    Manifest(Digest),
    Chunk(Digest),
}

/// Why work ended before it was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    #[error("the task is no longer this machine's: {reason}")]
    Superseded { reason: String },
    #[error("the appliance refuses this machine: {reason}")]
    Refused { reason: String },
    #[error(transparent)]
    Failed(#[from] Fault),
}

/// What this machine, this disk or this image makes impossible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error(transparent)]
    NoDisk(#[from] NoDisk),
    #[error("/dev/{name} cannot be opened for writing: {why}")]
    Open { name: String, why: String },
    #[error("/dev/{name} has sectors of {bytes} bytes; the image's partition table is made for 512")]
    Sectors { name: String, bytes: u64 },
    #[error("the image's manifest {digest}: {what}")]
    Manifest { digest: Digest, what: String },
    #[error(
        "the image has neither a GPT nor an MBR partition table: no seed could be put beside it, nothing would boot"
    )]
    NoTable,
    #[error("{what}")]
    Memory { what: String },
    #[error("{what}")]
    Call { what: String },
    #[error("chunk {index} (blob {blob}) arrived damaged {times} times: {what}. Try `farrier image verify`")]
    Damaged { index: u32, blob: Digest, what: String, times: u32 },
    #[error("{what} the disk at byte {at}: {why}")]
    Disk { what: &'static str, at: u64, why: String },
    #[error(
        "chunk {index} at byte {start} reads back as something else than was written: the disk is failing"
    )]
    ReadBack { index: u32, start: u64 },
    #[error(
        "{length} bytes from byte {start} on do not read as zero after zeros were written: the disk is failing"
    )]
    NotZero { start: u64, length: u64 },
    #[error("what was written at byte {start} reads back as something else: the disk is failing")]
    Finishing { start: u64 },
    #[error("{what}")]
    Table { what: String },
    #[error("the seed: {what}")]
    Seed { what: String },
    #[error("the rescue system: {what}")]
    Rescue { what: String },
}

impl Fault {
    pub fn disk(what: &'static str, at: u64, error: &io::Error) -> Fault {
        Fault::Disk { what, at, why: error.to_string() }
    }
}

/// The machine a task runs on; tests have one of plain files.
pub struct Ground<'a> {
    /// `/`, or a fixture tree.
    pub root: &'a Path,
    pub console: &'a Console,
    pub calls: &'a dyn Calls,
    /// A disk by the path of its device.
    pub open: &'a dyn Fn(&Path) -> io::Result<Box<dyn Disk>>,
    /// Lets firmware variables be written, and no longer.
    pub unlock_firmware: &'a dyn Fn(bool),
    /// Differs between machines, so that a rack does not retry in step.
    pub seed: u64,
}

/// How a task ended, for the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The installed system is next.
    Reboot,
    /// Done, or failed and told so: orders are waited for.
    Stay,
    /// The appliance says the task is not ours (any more).
    Superseded { reason: String },
    /// The session is over, and with it this boot.
    Refused { reason: String },
}

/// What a task achieved.
struct Achieved {
    disks: Vec<TargetDisk>,
    bytes: u64,
    written: u64,
    next: Outcome,
}

/// Carries a task out, to the point where the appliance knows how it ended.
pub fn run(ground: &Ground, task: &AgentTask) -> Outcome {
    let started = Instant::now();
    let mut step = Step::Preparing;
    let achieved = match &task.work {
        AgentWork::Deploy { image, manifest, manifest_bytes, disk, wipe } => {
            let wanted = deploy::Wanted {
                image,
                manifest: *manifest,
                manifest_bytes: *manifest_bytes,
                disk,
                wipe: *wipe,
            };
            deploy::run(ground, task, &wanted, &mut step)
        }
        AgentWork::Clean { disk, method } => clean::run(ground, task, disk, *method, &mut step),
        AgentWork::Rescue { ssh_keys } => rescue::run(ground, task, ssh_keys),
    };
    let told = achieved.and_then(|achieved| {
        let report = Report {
            signature: prove(&task.nonce, task.intent, task.generation, achieved.bytes),
            disks: achieved.disks,
            bytes: achieved.bytes,
            written: achieved.written,
            took_millis: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        until_answered(ground, "done", || ground.calls.done(task.intent, &report))?;
        ground.console.say(format_args!(
            "done: {} MB as wanted, {} MB written, in {:.1} s",
            report.bytes / 1_000_000,
            report.written / 1_000_000,
            started.elapsed().as_secs_f64()
        ));
        Ok(achieved.next)
    });
    match told {
        Ok(next) => next,
        Err(Halt::Failed(fault)) => fail(ground, task, step, &fault),
        Err(Halt::Superseded { reason }) => superseded(ground, reason),
        Err(Halt::Refused { reason }) => Outcome::Refused { reason },
    }
}

fn superseded(ground: &Ground, reason: String) -> Outcome {
    let way_out = "Nothing more is written. See `farrier node show` for what the appliance wants now.";
    ground.console.trouble("the task", &format!("It is no longer this machine's: {reason}"), way_out);
    Outcome::Superseded { reason }
}

fn fail(ground: &Ground, task: &AgentTask, step: Step, fault: &Fault) -> Outcome {
    let (step, message) = (step.to_string(), fault.to_string());
    let way_out = "The appliance is told. Set it right, then try again: `farrier node deploy`.";
    ground.console.trouble(&step, &message, way_out);
    match until_answered(ground, "failure", || ground.calls.failure(task.intent, &step, &message)) {
        // An appliance that does not take the report has its own view of the task.
        Ok(()) | Err(Halt::Failed(_)) => Outcome::Stay,
        Err(Halt::Superseded { reason }) => Outcome::Superseded { reason },
        Err(Halt::Refused { reason }) => Outcome::Refused { reason },
    }
}

/// Repeats a call that may be repeated until the appliance has answered it.
fn until_answered<A>(
    ground: &Ground,
    what: &str,
    call: impl Fn() -> Result<A, CallError>,
) -> Result<A, Halt> {
    let mut backoff = Backoff::new(ground.seed);
    loop {
        match call() {
            Ok(answer) => return Ok(answer),
            Err(CallError::Later { what: why, retry_after }) => {
                let wait: Duration = backoff.wait(retry_after);
                ground.console.say(format_args!("{what}: {why}; again in {:.1} s", wait.as_secs_f64()));
                pause(wait);
            }
            Err(CallError::Superseded { reason }) => return Err(Halt::Superseded { reason }),
            Err(CallError::Refused { reason }) => return Err(Halt::Refused { reason }),
            Err(error @ CallError::Rejected { .. }) => {
                return Err(Fault::Call { what: error.to_string() }.into());
            }
        }
    }
}

/// The disks that a task means: those it began with, or those that its rule chooses.
fn chosen(
    ground: &Ground,
    task: &AgentTask,
    rule: &DiskRule,
    purpose: Purpose,
) -> Result<Vec<DiskFacts>, Halt> {
    let disks = disks::facts(ground.root);
    let indexes = if task.begun_on.is_empty() {
        rule.choose(&disks, purpose)
    } else {
        begun_with(&task.begun_on, &disks)
    };
    let indexes = indexes.map_err(Fault::from)?;
    Ok(indexes.into_iter().filter_map(|index| disks.get(index).cloned()).collect())
}

fn open(ground: &Ground, disk: &DiskFacts) -> Result<Box<dyn Disk>, Halt> {
    let device = ground.root.join("dev").join(&disk.name);
    let opened = (ground.open)(&device);
    Ok(opened.map_err(|error| Fault::Open { name: disk.name.clone(), why: error.to_string() })?)
}

/// Old partition tables and signatures at either end are gone, and that is on the medium, before anything else.
fn destroy_tables(disk: &dyn Disk) -> Result<(), Halt> {
    let length = signatures::ENDS.min(disk.bytes());
    // At most a mebibyte.
    let zeros = target::Aligned::zeroed(length as usize);
    for start in [0, disk.bytes() - length] {
        disk.write(start, &zeros).map_err(|error| Fault::disk("writing", start, &error))?;
    }
    Ok(disk.sync().map_err(|error| Fault::disk("flushing", 0, &error))?)
}

/// Tells the disk that a range holds nothing any more, piece by piece: the whole of a large one takes its time.
/// A disk that does not know how is none the worse; what must be zero is looked at afterwards.
fn discard(disk: &dyn Disk, meter: &meter::Meter, start: u64, end: u64) -> Result<(), Halt> {
    const PIECE: u64 = 1 << 30;
    let mut from = start;
    while from < end {
        meter.go_on()?;
        let length = PIECE.min(end - from);
        if disk.discard(from, length).is_err() {
            break;
        }
        from += length;
    }
    Ok(())
}
