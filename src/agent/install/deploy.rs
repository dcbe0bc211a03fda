//! Installing an image: from the choice of the disk to the last sector, which is the first.

use crate::agent::install::boot_entry;
use crate::agent::install::chunks::{Range, Scratch, Source, Writer, clear, verify_zero, zero_ranges};
use crate::agent::install::meter::Meter;
use crate::agent::install::overlay::Overlay;
use crate::agent::install::signatures::ENDS;
use crate::agent::install::table::{self, Kind, Mended};
use crate::agent::install::target::Disk;
use crate::agent::install::{
    Achieved, Blob, Fault, Ground, Halt, Outcome, chosen, destroy_tables, discard, disks, open, seed,
    until_answered,
};
use crate::image::digest::Digest;
use crate::image::disk::manifest::{Chunk, DiskManifest};
use crate::node::install::disk_rule::{DiskRule, Purpose};
use crate::node::install::task::{AgentTask, Step};

/// A manifest says 150 bytes of each chunk: this is one of terabytes.
const MANIFEST_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// A manifest that arrives damaged so often is damaged where it comes from.
const MANIFEST_FETCHES: u32 = 3;

/// What the task says.
pub struct Wanted<'a> {
    pub image: &'a str,
    pub manifest: Digest,
    pub manifest_bytes: u64,
    pub disk: &'a DiskRule,
    pub wipe: bool,
}

/// A chunk that is written at the very end, with its bytes.
struct Held {
    start: u64,
    bytes: Vec<u8>,
}

pub(super) fn run(
    ground: &Ground,
    task: &AgentTask,
    wanted: &Wanted,
    step: &mut Step,
) -> Result<Achieved, Halt> {
    let meter = Meter::default();
    let source = Source { calls: ground.calls, meter: &meter, console: ground.console, seed: ground.seed };
    // Before the fence, since it says how large a disk must be; it is read, and nothing is written yet.
    let manifest = fetch_manifest(&source, wanted)?;
    let needed = manifest.bytes + table::ROOM;
    let purpose = Purpose::Write { needed, wipe: wanted.wipe };
    let chosen = chosen(ground, task, wanted.disk, purpose)?;
    // A rule for writing chooses exactly one, and with that one it was begun.
    let [facts] = &chosen[..] else {
        let what = format!("the task began with {} disks; an image goes to one", chosen.len());
        return Err(Fault::Call { what }.into());
    };
    let sectors = disks::sector_bytes(ground.root, &facts.name);
    if sectors != table::SECTOR {
        return Err(Fault::Sectors { name: facts.name.clone(), bytes: sectors }.into());
    }
    let disk = open(ground, facts)?;
    let target = facts.target();
    let resumed = !task.begun_on.is_empty();
    ground.console.say(format_args!(
        "{} {} on /dev/{} ({} MB{})",
        if resumed { "going on with" } else { "installing" },
        wanted.image,
        target.name,
        target.bytes / 1_000_000,
        target.serial.as_ref().map(|serial| format!(", serial number {serial}")).unwrap_or_default(),
    ));
    until_answered(ground, "begin", || ground.calls.begin(task.intent, std::slice::from_ref(&target)))?;

    let writer = Writer { disk: &*disk, manifest: &manifest, source: &source };
    let work = || write_all(ground, task, &writer, resumed);
    let outcome = meter.tell_while(ground.calls, task.intent, ground.console, work);
    *step = meter.step();
    let mended = outcome?;
    if let Err(error) = disk.announce() {
        ground.console.say(format_args!("the kernel keeps to the old partitions: {error}"));
    }
    register(ground, wanted.image, &mended);
    Ok(Achieved {
        disks: vec![target],
        bytes: manifest.bytes,
        written: meter.written(),
        next: Outcome::Reboot,
    })
}

fn fetch_manifest(source: &Source, wanted: &Wanted) -> Result<DiskManifest, Halt> {
    let fault = |what: String| Fault::Manifest { digest: wanted.manifest, what };
    if wanted.manifest_bytes > MANIFEST_BYTES_MAX {
        let what = format!("{} bytes are more than {MANIFEST_BYTES_MAX}", wanted.manifest_bytes);
        return Err(fault(what).into());
    }
    let mut text = Vec::new();
    for _ in 0..MANIFEST_FETCHES {
        source.blob(Blob::Manifest(wanted.manifest), wanted.manifest_bytes, &mut text)?;
        if Digest::of(&text) == wanted.manifest {
            let manifest: DiskManifest =
                serde_json::from_slice(&text).map_err(|error| fault(error.to_string()))?;
            manifest.check().map_err(|error| fault(error.to_string()))?;
            return Ok(manifest);
        }
    }
    Err(fault(format!("it arrived damaged {MANIFEST_FETCHES} times")).into())
}

/// Everything between the fence and the report.
fn write_all(ground: &Ground, task: &AgentTask, writer: &Writer, resumed: bool) -> Result<Mended, Halt> {
    let (disk, manifest, meter) = (writer.disk, writer.manifest, writer.source.meter);
    let (held, rest) = hold_back(writer)?;
    // Looked at before anything is destroyed.
    let kind = held
        .first()
        .filter(|held| held.start == 0)
        .and_then(|first| table::kind(&first.bytes))
        .ok_or(Fault::NoTable)?;

    let zeros = zero_ranges(manifest);
    meter.enter(Step::Discarding, zeros.iter().map(|range| range.length).sum());
    destroy_tables(disk)?;
    // What was kept of an earlier attempt must not be discarded; beyond the image there is nothing to keep.
    let from = if resumed { manifest.bytes.max(ENDS) } else { ENDS };
    discard(disk, meter, from, disk.bytes().saturating_sub(ENDS))?;
    let zeroed = clear(disk, meter, &zeros)?;

    meter.enter(Step::Writing, total(manifest, &rest));
    let written = writer.write(&rest, resumed)?;
    disk.sync().map_err(|error| Fault::disk("flushing", 0, &error))?;

    let zeroed_bytes: u64 = zeroed.iter().map(|range: &Range| range.length).sum();
    meter.enter(Step::Verifying, zeroed_bytes + total(manifest, &written));
    verify_zero(disk, meter, &zeroed)?;
    writer.verify(&written)?;

    meter.enter(Step::Finishing, 0);
    let files = until_answered(ground, "seed", || ground.calls.seed(task.intent))?;
    finish(disk, meter, &held, kind, &files)
}

fn total(manifest: &DiskManifest, chunks: &[Chunk]) -> u64 {
    chunks.iter().map(|chunk| u64::from(manifest.place(chunk).1)).sum()
}

/// The first and the last chunk hold the partition tables: fetched first, written last.
fn hold_back(writer: &Writer) -> Result<(Vec<Held>, Vec<Chunk>), Halt> {
    let manifest = writer.manifest;
    let last = (manifest.bytes - 1) / u64::from(manifest.chunk_bytes);
    let (held, rest): (Vec<Chunk>, Vec<Chunk>) =
        manifest.chunks.iter().partition(|chunk| chunk.index == 0 || u64::from(chunk.index) == last);
    let mut scratch = Scratch::new(manifest.chunk_bytes as usize)?;
    let mut fetched = Vec::new();
    for chunk in held {
        let (start, length) = manifest.place(&chunk);
        writer.source.chunk(&chunk, length, &mut scratch)?;
        fetched.push(Held { start, bytes: scratch.bytes[..length as usize].to_vec() });
    }
    Ok((fetched, rest))
}

/// What makes the disk boot, prepared in memory, then committed.
fn finish(
    disk: &dyn Disk,
    meter: &Meter,
    held: &[Held],
    kind: Kind,
    files: &crate::node::install::task::Seed,
) -> Result<Mended, Halt> {
    let mut overlay = Overlay::new(disk);
    for chunk in held {
        overlay
            .put(chunk.start, &chunk.bytes)
            .map_err(|error| Fault::disk("reading", chunk.start, &error))?;
    }
    let mended = table::mend(&mut overlay, kind).map_err(|error| Fault::Table { what: chain(&error) })?;
    seed::put(&mut overlay, mended.seed, files).map_err(|error| Fault::Seed { what: chain(&error) })?;
    overlay.commit(meter)?;
    Ok(mended)
}

/// An error and what it came from, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// A machine whose firmware keeps no entry boots what it finds on the disk: told, and no failure.
fn register(ground: &Ground, image: &str, mended: &Mended) {
    if !boot_entry::has_firmware_variables(ground.root) {
        return;
    }
    let Some(system) = &mended.system else {
        ground.console.say("the image has no EFI system partition: no boot entry is made for it");
        return;
    };
    (ground.unlock_firmware)(true);
    match boot_entry::register(ground.root, image, system) {
        Ok(name) => ground.console.say(format_args!("{name} is the firmware's entry for the new system")),
        Err(error) => ground.console.say(format_args!(
            "the firmware takes no boot entry ({error}); it boots the disk by its own order"
        )),
    }
    (ground.unlock_firmware)(false);
}
