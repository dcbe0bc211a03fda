use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::image::disk::shelf::DiskShelf;
use crate::image::disk::testing::{
    MIB, blob_path, disk, flip_a_bit, install, names_in, noise, request, take_file, take_raw,
};

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 3).unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = liblzma::write::XzEncoder::new(Vec::new(), 0);
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

/// As two files appended: every one of the formats allows that.
fn in_two(pack: fn(&[u8]) -> Vec<u8>, bytes: &[u8]) -> Vec<u8> {
    let (one, other) = bytes.split_at(bytes.len() / 3);
    [pack(one), pack(other)].concat()
}

/// Nothing but the directories.
fn assert_nothing_is_left(state: &Path) {
    for directory in ["blobs", "disks", "partial", "pins", "damaged"] {
        assert_eq!(names_in(state, directory), BTreeSet::new(), "{directory}");
    }
}

#[test]
fn every_packing_comes_to_the_same_disk() {
    let state = tempfile::tempdir().unwrap();
    let bytes = disk();
    let packings = [
        (Format::Raw, bytes.clone()),
        (Format::Zstd, zst(&bytes)),
        (Format::Zstd, in_two(zst, &bytes)),
        (Format::Gzip, gz(&bytes)),
        (Format::Gzip, in_two(gz, &bytes)),
        (Format::Xz, xz(&bytes)),
        (Format::Xz, in_two(xz, &bytes)),
    ];
    let mut manifests = BTreeSet::new();
    for (index, (format, packed)) in packings.iter().enumerate() {
        let imported = take_file(state.path(), "one", packed).unwrap();
        assert_eq!(imported.format, *format);
        assert_eq!(imported.added_bytes == 0, index > 0, "chunks that are there are not written again");
        assert_eq!(imported.replaced, None, "the same manifest is no other");
        manifests.insert(imported.image.manifest_blob.digest);
    }
    let shelf = DiskShelf::open(state.path()).unwrap();
    assert_eq!(manifests, BTreeSet::from([shelf.get("one").unwrap().manifest_blob.digest]));
    assert!(install(&shelf, *manifests.first().unwrap()) == bytes);
}

#[test]
fn packed_files_that_are_cut_or_changed_are_refused_and_leave_nothing() {
    let bytes = disk();
    for packed in [zst(&bytes), gz(&bytes), xz(&bytes)] {
        let mut changed = packed.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 0x55;
        for damaged in [&packed[..packed.len() - 5], &packed[..packed.len() / 2], &changed] {
            let state = tempfile::tempdir().unwrap();
            let refused = take_file(state.path(), "one", damaged);
            // zstd without its own checksum notices most changes, not all; a digest is there for that.
            let noticed = damaged.len() < packed.len() || !packed.starts_with(&[0x28, 0xb5]);
            if noticed || refused.is_err() {
                assert!(matches!(refused, Err(ImportError::Disk { .. } | ImportError::Input { .. })));
                assert_nothing_is_left(state.path());
            }
        }
    }
}

#[test]
fn a_digest_is_over_the_file_as_given_and_comes_first() {
    let state = tempfile::tempdir().unwrap();
    let packed = gz(&disk());
    let path = state.path().join("disk.img");
    fs::write(&path, &packed).unwrap();
    let mut wanted = request(&path, "one");
    wanted.sha256 = Some(Digest::of(&disk()));
    let refused = import(state.path(), &wanted, &ProgressBar::hidden()).unwrap_err();
    assert!(matches!(refused, ImportError::WrongDigest { .. }));
    assert!(refused.to_string().contains(&Digest::of(&packed).to_string()), "{refused}");
    assert_nothing_is_left(state.path());
    wanted.sha256 = Some(Digest::of(&packed));
    import(state.path(), &wanted, &ProgressBar::hidden()).unwrap();
}

#[test]
fn what_is_no_disk_is_refused_by_its_name() {
    let sector = |at: usize, magic: &[u8]| {
        let mut bytes = noise(5, 4096);
        bytes[..300].fill(0);
        bytes[at..at + magic.len()].copy_from_slice(magic);
        bytes
    };
    let cases = [
        (sector(0, b"conectix"), "a VHD image"),
        (sector(4096 - 512, b"conectix"), "a VHD image"),
        (gz(&sector(4096 - 512, b"conectix")), "a VHD image"),
        (sector(0, b"vhdxfile"), "a VHDX image"),
        (sector(0, b"KDMV"), "a VMDK image"),
        (sector(64, b"\x7f\x10\xda\xbe"), "a VDI image"),
        (sector(0, b"PK\x03\x04"), "a zip archive"),
        (sector(257, b"ustar"), "a tar archive"),
        (sector(0, b"<!doctype html>"), "a web page"),
        (zst(&sector(0, b"QFI\xfb")), "a qcow2 image"),
        (xz(&sector(0, b"vhdxfile")), "a VHDX image"),
        (gz(&zst(&disk())), "packed once more"),
        (Vec::new(), "empty"),
    ];
    for (bytes, what) in cases {
        let state = tempfile::tempdir().unwrap();
        let refused = take_file(state.path(), "one", &bytes).unwrap_err();
        let told = crate::cli::error::error_chain(&refused);
        assert!(told.contains(what) && told.contains("given"), "{told}");
        assert_nothing_is_left(state.path());
    }
}

#[test]
fn files_and_disks_beyond_the_limit_are_refused() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join("given");
    let zeros = vec![0; 3 * MIB];
    for (bytes, early) in
        [(zeros.clone(), true), (zst(&zeros), false), (gz(&zeros), false), (xz(&zeros), false)]
    {
        fs::write(&path, &bytes).unwrap();
        let mut wanted = request(&path, "one");
        wanted.bytes_max = 3 * MIB as u64 - 512;
        let refused = import(state.path(), &wanted, &ProgressBar::hidden()).unwrap_err();
        assert_eq!(matches!(refused, ImportError::Input { .. }), early, "{refused:?}");
        assert_nothing_is_left(state.path());
        wanted.bytes_max = 3 * MIB as u64;
        assert!(
            import(state.path(), &wanted, &ProgressBar::hidden()).unwrap().image.manifest.chunks.is_empty()
        );
        fs::remove_dir_all(state.path().join("images")).unwrap();
    }
}

#[test]
fn bombs_are_told_from_disks() {
    let state = tempfile::tempdir().unwrap();
    for pack in [zst, xz] {
        let refused = take_file(state.path(), "one", &pack(&vec![b'A'; 96 * MIB])).unwrap_err();
        assert!(matches!(refused, ImportError::Disk { source: ChunkError::Bomb, .. }), "{refused:?}");
        assert_nothing_is_left(state.path());
    }
}

#[test]
fn an_image_that_is_replaced_stays_for_whom_it_is_pinned() {
    let state = tempfile::tempdir().unwrap();
    let first = take_raw(state.path(), "one", &disk()).unwrap();
    let shelf = DiskShelf::open(state.path()).unwrap();
    shelf.pin(first.manifest_blob.digest).unwrap();
    let second = take_file(state.path(), "one", &noise(9, 2 * MIB)).unwrap();
    assert_eq!(second.replaced, Some(first.manifest_blob.digest));
    shelf.reload().unwrap();
    assert!(install(&shelf, first.manifest_blob.digest) == disk());
    assert!(install(&shelf, second.image.manifest_blob.digest) == noise(9, 2 * MIB));
}

#[test]
fn a_refused_import_takes_back_only_its_own() {
    let state = tempfile::tempdir().unwrap();
    let bytes = disk();
    take_raw(state.path(), "one", &bytes).unwrap();
    let before = names_in(state.path(), "blobs");
    // The same chunks, others, and then something that is no end of a disk.
    let more = [&bytes[..12 * MIB], &noise(6, 4 * MIB), &[1; 100]].concat();
    assert!(matches!(take_raw(state.path(), "two", &more), Err(ImportError::Disk { .. })));
    assert_eq!(names_in(state.path(), "blobs"), before);
    // While somebody else is importing, what was added stays: it may be in use.
    let place = Place::open(state.path()).unwrap();
    let other = place.writing_lock().unwrap();
    other.lock_shared().unwrap();
    assert!(take_raw(state.path(), "two", &more).is_err());
    assert_eq!(names_in(state.path(), "blobs").len(), before.len() + 2);
    drop(other);
    crate::image::disk::gc::collect(&place).unwrap();
    assert_eq!(names_in(state.path(), "blobs"), before);
}

#[test]
fn importing_again_heals() {
    let state = tempfile::tempdir().unwrap();
    let image = take_raw(state.path(), "one", &disk()).unwrap();
    flip_a_bit(state.path(), image.manifest.chunks[1].blob);
    flip_a_bit(state.path(), image.manifest_blob.digest);
    fs::remove_file(blob_path(state.path(), image.manifest.chunks[2].blob)).unwrap();
    let shelf = DiskShelf::open(state.path()).unwrap();
    assert!(shelf.get("one").is_none() && shelf.damage().len() == 1);
    // One that fails takes nothing away of what it healed.
    let mut torn = disk();
    torn.push(1);
    assert!(take_raw(state.path(), "two", &torn).is_err());
    take_raw(state.path(), "one", &disk()).unwrap();
    shelf.reload().unwrap();
    assert_eq!(shelf.damage(), []);
    assert!(install(&shelf, image.manifest_blob.digest) == disk());
}

#[test]
fn names_and_descriptions_are_checked_before_anything_is_made() {
    let state = tempfile::tempdir().unwrap();
    for name in ["", "..", "A", "a/b", "-a"] {
        assert!(matches!(take_raw(state.path(), name, &disk()), Err(ImportError::Name { .. })), "{name}");
    }
    let mut wanted = request(Path::new("/nowhere"), "one");
    wanted.description = "a\nb".to_owned();
    assert!(matches!(import(state.path(), &wanted, &ProgressBar::hidden()), Err(ImportError::Description)));
    wanted.source = "https://server/x".parse().unwrap();
    wanted.description.clear();
    assert!(matches!(
        import(state.path(), &wanted, &ProgressBar::hidden()),
        Err(ImportError::NoDigest { .. })
    ));
    assert!(!state.path().join("images").exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Runs of zeros and of data, packed in any way, cut into chunks and put together again.
    #[test]
    fn any_disk_comes_back_as_it_was(
        runs in proptest::collection::vec((any::<bool>(), 1_usize..6000), 1..8),
        packing in 0..4,
    ) {
        let mut bytes = Vec::new();
        for (index, (filled, sectors)) in runs.iter().enumerate() {
            match filled {
                true => bytes.extend(noise(index as u64 + 1, sectors * 512)),
                false => bytes.resize(bytes.len() + sectors * 512, 0),
            }
        }
        let packed = match packing {
            0 => zst(&bytes),
            1 => gz(&bytes),
            2 => xz(&bytes),
            _ => bytes.clone(),
        };
        let state = tempfile::tempdir().unwrap();
        let imported = take_file(state.path(), "one", &packed).unwrap();
        let shelf = DiskShelf::open(state.path()).unwrap();
        prop_assert!(install(&shelf, imported.image.manifest_blob.digest) == bytes);
    }
}
