//! The agent's install core on disks of plain files: what ends up on them, in which order, and what does not.

mod image;
mod machine;
mod server;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use farrier::agent::calls::{Appliance, TaskCalls};
use farrier::agent::install::table::SEED_BYTES;
use farrier::agent::install::target::is_zero;
use farrier::agent::install::{Blob, Outcome, signatures};
use farrier::node::install::disk_rule::Signature;
use farrier::node::install::intent::CleanMethod;
use farrier::node::install::task::{AgentWork, Step, prove};
use proptest::prelude::*;

use self::image::{Image, MIB, Shape};
use self::machine::{Fake, Machine, Script};
use self::server::Server;

const DISK: u64 = 40 * MIB;

/// The file system labelled CIDATA that is on a disk, and its files.
fn seed_on(machine: &Machine, start: u64, length: u64) -> Vec<(String, String)> {
    let mut volume = vec![0; length as usize];
    machine.disk().read_exact_at(&mut volume, start).unwrap();
    let system = fatfs::FileSystem::new(std::io::Cursor::new(volume), fatfs::FsOptions::new()).unwrap();
    assert_eq!(system.read_volume_label_from_root_dir().unwrap().as_deref(), Some("CIDATA"));
    let root = system.root_dir();
    let mut files: Vec<(String, String)> = root
        .iter()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let mut text = String::new();
            entry.to_file().read_to_string(&mut text).unwrap();
            (entry.file_name(), text)
        })
        .collect();
    files.sort();
    files
}

fn expected_seed() -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> =
        machine::seed().files.into_iter().map(|file| (file.name, file.text)).collect();
    files.sort();
    files
}

/// The whole promise: the image's bytes, a valid GPT of the disk's size, the seed.
fn check_installed(machine: &Machine, image: &Image) {
    let device = machine.device();
    let table = gpt::GptConfig::new().only_valid_headers(true).open(&device).expect("both headers are valid");
    let header = table.primary_header().unwrap();
    let sectors = DISK / 512;
    assert_eq!((header.backup_lba, header.last_usable), (sectors - 1, sectors - 34));
    let numbers: Vec<u32> = table.partitions().keys().copied().collect();
    assert_eq!(numbers, [1, 14, 15, 16], "partitions keep their numbers");
    for number in [1, 14, 15] {
        assert_eq!(table.partitions()[&number], image.partitions[&number]);
    }
    let seed = &table.partitions()[&16];
    assert_eq!((seed.name.as_str(), seed.part_type_guid.clone()), ("CIDATA", gpt::partition_types::BASIC));
    let start = seed.first_lba * 512;
    assert_eq!((seed.last_lba + 1) * 512 - start, SEED_BYTES);
    assert!(start >= DISK - SEED_BYTES - 2 * MIB, "at the end: a root file system grows up to it");
    assert_eq!(seed_on(machine, start, SEED_BYTES), expected_seed());

    let mut disk = vec![0; image.bytes.len()];
    machine.disk().read_exact_at(&mut disk, 0).unwrap();
    assert_eq!(disk[..446], image.bytes[..446], "boot code");
    let size = u32::from_le_bytes(disk[458..462].try_into().unwrap());
    assert_eq!(u64::from(size), sectors - 1, "the protective entry covers the disk");
    // Between the array of entries and the image's own backup of it.
    assert!(disk[34 * 512..] == image.bytes[34 * 512..], "the image's bytes");
}

#[test]
fn an_image_is_installed_on_a_dirty_disk_over_http() {
    let image = Image::new(Shape::Gpt);
    let machine = Machine::new(DISK, true);
    let server = Server::start(&image, Script::default());
    let appliance = Appliance::new(&server.url, machine::mac());
    let calls = TaskCalls { appliance: &appliance, session: server::SESSION };
    let task = machine.deploy(&image, true);
    assert_eq!(machine.run(&calls, &task), Outcome::Reboot);
    check_installed(&machine, &image);
    let told = server.fake.told.lock().unwrap();
    assert_eq!(told.begun.len(), 1);
    let report = told.done.clone().expect("a report");
    assert_eq!(report.signature, prove(&task.nonce, task.intent, task.generation, image.manifest.bytes));
    assert_eq!((report.bytes, &report.disks), (image.manifest.bytes, &told.begun[0]));
    assert!(told.progress.iter().all(|progress| progress.done <= progress.total));
    assert!(told.failures.is_empty(), "{:?}", told.failures);
    assert!(machine.console().contains("done: "), "{}", machine.console());
}

#[test]
fn broken_connections_are_gone_on_with_where_they_broke() {
    let image = Image::new(Shape::Gpt);
    let machine = Machine::new(DISK, false);
    let server = Server::start(&image, Script { break_every: Some(3), ..Script::default() });
    let appliance = Appliance::new(&server.url, machine::mac());
    let calls = TaskCalls { appliance: &appliance, session: server::SESSION };
    assert_eq!(machine.run(&calls, &machine.deploy(&image, false)), Outcome::Reboot);
    check_installed(&machine, &image);
    assert!(server.ranges.load(Ordering::Relaxed) >= 2, "the rest was asked for, not all of it again");
}

#[test]
fn the_appliances_answers_end_the_work() {
    let image = Image::new(Shape::Gpt);
    for (status, outcome) in [
        (409, Outcome::Superseded { reason: "told by the test".to_owned() }),
        (401, Outcome::Refused { reason: "told by the test".to_owned() }),
    ] {
        let machine = Machine::new(DISK, false);
        let server = Server::start(&image, Script { refuse_after: Some((6, status)), ..Script::default() });
        let appliance = Appliance::new(&server.url, machine::mac());
        let calls = TaskCalls { appliance: &appliance, session: server::SESSION };
        assert_eq!(machine.run(&calls, &machine.deploy(&image, false)), outcome);
        let told = server.fake.told.lock().unwrap();
        assert!(told.done.is_none() && told.failures.is_empty());
        assert_eq!(machine.carries(), [], "nothing that boots");
    }
}

#[test]
fn a_task_taken_away_stops_the_writing_at_once() {
    let image = Image::new(Shape::Gpt);
    let machine = Machine::new(DISK, false);
    let fake = Fake::new(&image, Script { supersede_after: Some(5), ..Script::default() });
    let outcome = machine.run(&fake, &machine.deploy(&image, false));
    assert!(matches!(outcome, Outcome::Superseded { .. }), "{outcome:?}");
    // Four workers may each have had one chunk in their hands.
    let chunks = machine.log.chunk_writes(&image);
    assert!(chunks.len() <= 5 + 4, "{}", chunks.len());
    assert_eq!(machine.carries(), []);
    assert!(fake.told.lock().unwrap().done.is_none());
}

#[test]
fn progress_that_is_answered_with_no_stops_as_well() {
    let image = Image::new(Shape::Gpt);
    let machine = Machine::new(DISK, false);
    // Chunks come no more until the answer is there: then the first word must end it.
    let fake = Fake::new(&image, Script { stall_after: Some(4), go_on: false, ..Script::default() });
    let outcome = machine.run(&fake, &machine.deploy(&image, false));
    assert!(matches!(outcome, Outcome::Superseded { .. }), "{outcome:?}");
    assert_eq!(machine.carries(), []);
}

#[test]
fn what_was_cut_is_resumed_and_what_was_written_stays() {
    let (image, writes) = measured();
    let machine = Machine::new(DISK, true);
    // Two writes destroy the old tables, then come zeros and chunks.
    machine.log.fail_after(writes / 2);
    let first = Fake::new(image, Script::default());
    assert_eq!(machine.run(&first, &machine.deploy(image, true)), Outcome::Stay);
    let failure = first.told.lock().unwrap().failures[0].clone();
    assert!(failure.1.contains("writing the disk at byte"), "{failure:?}");
    let written: BTreeSet<u32> = machine.log.chunk_writes(image);
    assert!(!written.is_empty() && written.len() < image.manifest.chunks.len() - 2, "{}", written.len());

    machine.log.restart();
    let second = Fake::new(image, Script::default());
    let mut task = machine.deploy(image, false);
    task.begun_on = first.told.lock().unwrap().begun[0].clone();
    assert_eq!(machine.run(&second, &task), Outcome::Reboot, "{}", machine.console());
    check_installed(&machine, image);
    let again = machine.log.chunk_writes(image);
    assert!(again.is_disjoint(&written), "kept chunks were written again: {again:?}");
    let told = second.told.lock().unwrap();
    let fetched = told.fetched.iter().filter(|blob| matches!(blob, Blob::Chunk(_))).count();
    assert_eq!(fetched, image.manifest.chunks.len() - written.len(), "and not fetched");
    let kept = told.kept_max;
    assert!(kept <= written.len() as u64 * u64::from(image.manifest.chunk_bytes));
    let report = told.done.clone().unwrap();
    assert!(report.written < report.bytes);
}

#[test]
fn damage_on_the_way_is_fetched_again_and_damage_at_the_source_is_named() {
    let image = Image::new(Shape::Gpt);
    let victim = image.manifest.chunks[3].blob;
    for (times, outcome) in [(2, Outcome::Reboot), (u32::MAX, Outcome::Stay)] {
        let machine = Machine::new(DISK, false);
        let fake = Fake::new(&image, Script { damage: Some((victim, times)), ..Script::default() });
        assert_eq!(machine.run(&fake, &machine.deploy(&image, false)), outcome);
        let told = fake.told.lock().unwrap();
        if times == 2 {
            check_installed(&machine, &image);
        } else {
            let (step, message) = &told.failures[0];
            assert_eq!(step, "writing");
            assert!(message.contains("arrived damaged 3 times"), "{message}");
            assert!(message.contains(&victim.to_string()), "{message}");
            assert_eq!(machine.carries(), []);
        }
    }
}

#[test]
fn a_frame_that_is_far_larger_than_its_chunk_is_damage() {
    let mut image = Image::new(Shape::Gpt);
    // A gigabyte of zeros in a few kilobytes.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    for _ in 0..1024 {
        encoder.write_all(&vec![0; MIB as usize]).unwrap();
    }
    image.replace(3, encoder.finish().unwrap());
    let machine = Machine::new(DISK, false);
    let fake = Fake::new(&image, Script::default());
    assert_eq!(machine.run(&fake, &machine.deploy(&image, false)), Outcome::Stay);
    let told = fake.told.lock().unwrap();
    assert!(told.failures[0].1.contains("it is no zstd frame of 1048576 bytes"), "{:?}", told.failures);
}

#[test]
fn a_disk_that_is_too_small_or_carries_data_is_not_begun_with() {
    let image = Image::new(Shape::Gpt);
    let small = Machine::new(image.manifest.bytes + MIB, false);
    let full = Machine::new(DISK, true);
    for (machine, wanted) in [(small, "too small by"), (full, "carries data: a GPT partition table")] {
        let before = machine.bytes();
        let fake = Fake::new(&image, Script::default());
        assert_eq!(machine.run(&fake, &machine.deploy(&image, false)), Outcome::Stay);
        let told = fake.told.lock().unwrap();
        let (step, message) = &told.failures[0];
        assert!(step == "preparing" && message.contains(wanted), "{step}: {message}");
        assert!(told.begun.is_empty());
        assert!(machine.bytes() == before, "not a byte is changed");
    }
}

#[test]
fn an_image_that_could_not_boot_is_refused_before_anything_is_destroyed() {
    let image = Image::new(Shape::Bare);
    let machine = Machine::new(DISK, true);
    let before = machine.bytes();
    let fake = Fake::new(&image, Script::default());
    assert_eq!(machine.run(&fake, &machine.deploy(&image, true)), Outcome::Stay);
    assert!(fake.told.lock().unwrap().failures[0].1.contains("neither a GPT nor an MBR"));
    assert!(machine.bytes() == before);
}

#[test]
fn an_image_with_a_seed_partition_of_its_own_and_one_with_an_mbr() {
    let image = Image::new(Shape::GptWithSeed);
    let machine = Machine::new(DISK, false);
    assert_eq!(
        machine.run(&Fake::new(&image, Script::default()), &machine.deploy(&image, false)),
        Outcome::Reboot
    );
    let table = gpt::GptConfig::new().only_valid_headers(true).open(machine.device()).unwrap();
    assert_eq!(table.partitions().len(), 3, "none was added");
    let own = &table.partitions()[&15];
    let files = seed_on(&machine, own.first_lba * 512, (own.last_lba + 1 - own.first_lba) * 512);
    let mut wanted = expected_seed();
    wanted.push(("theirs".to_owned(), "stays".to_owned()));
    wanted.sort();
    assert_eq!(files, wanted);

    let image = Image::new(Shape::Mbr);
    let machine = Machine::new(DISK, false);
    assert_eq!(
        machine.run(&Fake::new(&image, Script::default()), &machine.deploy(&image, false)),
        Outcome::Reboot
    );
    let mut entry = [0; 16];
    machine.disk().read_exact_at(&mut entry, 446 + 16).unwrap();
    let start = u64::from(u32::from_le_bytes(entry[8..12].try_into().unwrap())) * 512;
    assert_eq!((entry[4], start), (6, DISK - SEED_BYTES));
    assert_eq!(seed_on(&machine, start, SEED_BYTES), expected_seed());
}

#[test]
fn a_full_mbr_is_told() {
    let image = Image::new(Shape::FullMbr);
    let machine = Machine::new(DISK, false);
    let fake = Fake::new(&image, Script::default());
    assert_eq!(machine.run(&fake, &machine.deploy(&image, false)), Outcome::Stay);
    let told = fake.told.lock().unwrap();
    assert!(told.failures[0].1.contains("all four entries"), "{:?}", told.failures);
    assert_eq!(told.failures[0].0, "finishing");
    assert_eq!(machine.carries(), []);
}

#[test]
fn a_uefi_machine_gets_a_boot_entry() {
    let image = Image::new(Shape::Gpt);
    let machine = Machine::new(DISK, false);
    machine.make_firmware();
    assert_eq!(
        machine.run(&Fake::new(&image, Script::default()), &machine.deploy(&image, false)),
        Outcome::Reboot
    );
    assert!(machine.console().contains("Boot0000 is the firmware's entry"), "{}", machine.console());
}

#[test]
fn cleaning_leaves_nothing_to_read() {
    for method in [CleanMethod::Discard, CleanMethod::Overwrite] {
        // A disk that discards, and one that does not know how.
        for able in [true, false] {
            let image = Image::new(Shape::Gpt);
            let machine = Machine::new(DISK, true);
            machine.log.able.store(able, Ordering::Relaxed);
            let fake = Fake::new(&image, Script::default());
            let mut task = machine.deploy(&image, true);
            task.work = AgentWork::Clean { disk: "all".parse().unwrap(), method };
            assert_eq!(machine.run(&fake, &task), Outcome::Stay);
            assert!(is_zero(&machine.bytes()), "{method:?} {able}");
            let told = fake.told.lock().unwrap();
            assert_eq!(told.done.as_ref().map(|report| report.bytes), Some(DISK));
            let steps: BTreeSet<String> =
                told.progress.iter().map(|progress| format!("{:?}", progress.step)).collect();
            assert!(!steps.contains(&format!("{:?}", Step::Writing)), "{steps:?}");
        }
    }
}

/// The disk as a power cut leaves it: the writes up to some point, in the order they were made.
fn replayed(before: &[u8], writes: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut disk = before.to_vec();
    for (at, bytes) in writes {
        disk[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
    }
    disk
}

fn tables(disk: &[u8]) -> Vec<Signature> {
    let ends = signatures::ENDS as usize;
    signatures::signatures(&disk[..ends], &disk[disk.len() - ends..], disk.len() as u64)
        .into_iter()
        .filter(|signature| matches!(signature, Signature::Gpt | Signature::Mbr))
        .collect()
}

#[test]
fn at_no_point_does_a_half_written_disk_have_a_partition_table() {
    let image = Image::new(Shape::Gpt);
    let machine = Machine::new(DISK, true);
    // Without a disk's own help every change is a write that the log has.
    machine.log.able.store(false, Ordering::Relaxed);
    let before = machine.bytes();
    assert_eq!(
        machine.run(&Fake::new(&image, Script::default()), &machine.deploy(&image, true)),
        Outcome::Reboot
    );
    let writes = machine.log.writes.lock().unwrap().clone();
    let complete = machine.bytes();
    assert!(replayed(&before, &writes) == complete);
    assert_eq!((writes[0].0, writes[1].0), (0, DISK - MIB), "the old tables go first");
    let count = writes.len();
    assert_eq!(
        (writes[count - 2].0 / MIB, writes[count - 1].0),
        (DISK / MIB - 1, 0),
        "the new ones come last"
    );
    let mut disk = replayed(&before, &writes[..2]);
    for (at, bytes) in &writes[2..count - 2] {
        assert_eq!(tables(&disk), [], "before the write at {at}");
        disk[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
    }
    assert_eq!(tables(&disk), []);
    // All that a started system could read is there before the first table.
    let inner = MIB as usize..(DISK - MIB) as usize;
    assert!(disk[inner.clone()] == complete[inner]);
}

/// The image, and how many writes it takes on the dirty disk.
fn measured() -> &'static (Image, usize) {
    static MEASURED: OnceLock<(Image, usize)> = OnceLock::new();
    MEASURED.get_or_init(|| {
        let (image, machine) = (Image::new(Shape::Gpt), Machine::new(DISK, true));
        let writes = machine.log_of_a_whole_run(&image);
        (image, writes)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// Wherever the power is cut, the next attempt ends with the same disk.
    #[test]
    fn a_cut_anywhere_is_made_good(place in 0.0..1.0_f64) {
        let (image, writes) = measured();
        let machine = Machine::new(DISK, true);
        machine.log.fail_after((*writes as f64 * place) as usize);
        let first = Fake::new(image, Script::default());
        prop_assert_eq!(machine.run(&first, &machine.deploy(image, true)), Outcome::Stay);
        machine.log.restart();
        let mut task = machine.deploy(image, true);
        task.begun_on = first.told.lock().unwrap().begun[0].clone();
        prop_assert_eq!(machine.run(&Fake::new(image, Script::default()), &task), Outcome::Reboot);
        check_installed(&machine, image);
    }
}
