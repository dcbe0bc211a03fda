use super::*;
use crate::image::disk::testing::{MIB, disk, flip_a_bit, install, noise, take_raw};
use crate::image::library::Manifest;

/// Steps through one round; what was found, and how long it took by the steps' own word.
fn round(scrubber: &mut Scrubber, shelf: &dyn Serves, mut now: Timestamp) -> (Vec<Damage>, Timestamp) {
    let mut found = Vec::new();
    loop {
        let step = scrubber.step(&[shelf], now);
        found.extend(step.found);
        assert!(step.next >= now);
        if scrubber.is_between_rounds() {
            return (found, now);
        }
        now = step.next;
    }
}

#[test]
fn a_flipped_bit_is_found_within_a_round_and_stops_the_serving() {
    let state = tempfile::tempdir().unwrap();
    let one = take_raw(state.path(), "one", &disk()).unwrap();
    let two = take_raw(state.path(), "two", &noise(7, 5 * MIB)).unwrap();
    let shelf = DiskShelf::open(state.path()).unwrap();
    let start = Timestamp::from_millis(1_000_000);
    let mut scrubber = Scrubber::new(start);
    let first = scrubber.step(&[&shelf], start);
    assert_eq!(first, Step { next: start.plus(FIRST_ROUND_AFTER), found: None });
    let (found, ended) = round(&mut scrubber, &shelf, first.next);
    assert_eq!(found, []);
    // 9 MiB at 8 MiB a second; the last blob may be any of them.
    let took = ended.since(first.next);
    assert!(took >= Duration::from_millis(500) && took <= Duration::from_millis(1200), "{took:?}");
    assert_eq!(scrubber.step(&[&shelf], ended).next, first.next.plus(ROUND));

    let bad = two.manifest.chunks[1].blob;
    let manifest = two.manifest_blob.digest;
    assert!(shelf.chunk(manifest, bad).is_some(), "open, and served so far");
    flip_a_bit(state.path(), bad);
    let (found, _) = round(&mut scrubber, &shelf, first.next.plus(ROUND));
    assert_eq!(found.len(), 1);
    assert!(found[0].path.ends_with(bad.to_string()));
    // Also what was open already.
    assert!(shelf.get("two").is_none() && shelf.chunk(manifest, bad).is_none());
    assert!(shelf.chunk(manifest, two.manifest.chunks[0].blob).is_none());
    let damage = shelf.damage();
    assert!(damage[0].reason.contains("`two`") && damage[0].path.ends_with(bad.to_string()), "{damage:?}");
    assert!(install(&shelf, one.manifest_blob.digest) == disk());
    // And after a restart.
    let reopened = DiskShelf::open(state.path()).unwrap();
    assert!(reopened.get("two").is_none() && reopened.get("one").is_some());
    take_raw(state.path(), "two", &noise(7, 5 * MIB)).unwrap();
    for shelf in [&shelf, &reopened] {
        shelf.refresh_if_changed().unwrap();
        assert!(install(shelf, manifest) == noise(7, 5 * MIB));
    }
}

#[test]
fn a_manifest_is_scrubbed_as_well_and_what_is_gone_is_passed_over() {
    let state = tempfile::tempdir().unwrap();
    let one = take_raw(state.path(), "one", &disk()).unwrap();
    let shelf = DiskShelf::open(state.path()).unwrap();
    let due = Timestamp::default().plus(FIRST_ROUND_AFTER);
    let mut scrubber = Scrubber::new(Timestamp::default());
    let step = scrubber.step(&[&shelf], due);
    assert_eq!(step.found, None);
    crate::image::disk::gc::remove(shelf.place(), "one").unwrap();
    crate::image::disk::gc::collect(shelf.place()).unwrap();
    shelf.reload().unwrap();
    assert_eq!(round(&mut scrubber, &shelf, step.next).0, []);

    take_raw(state.path(), "one", &disk()).unwrap();
    shelf.reload().unwrap();
    flip_a_bit(state.path(), one.manifest_blob.digest);
    let (found, _) = round(&mut scrubber, &shelf, due.plus(ROUND));
    assert_eq!(found.len(), 1);
    assert!(shelf.get("one").is_none());
}

#[test]
fn verifying_reads_everything_and_names_what_is_bad() {
    let state = tempfile::tempdir().unwrap();
    let one = take_raw(state.path(), "one", &disk()).unwrap();
    let shelf = DiskShelf::open(state.path()).unwrap();
    let told = std::cell::Cell::new(0);
    let verified = verify(&shelf, "one", &|done| told.set(done)).unwrap();
    let stored = one.manifest.stored_bytes();
    assert_eq!(verified, Verified { chunks: 3, stored_bytes: stored, bytes: disk().len() as u64 });
    assert_eq!(told.get(), stored);
    assert!(matches!(verify(&shelf, "none", &|_| {}), Err(VerifyError::NotFound { .. })));

    for digest in [one.manifest.chunks[2].blob, one.manifest_blob.digest] {
        flip_a_bit(state.path(), digest);
        let error = verify(&shelf, "one", &|_| {}).unwrap_err();
        let told = error.to_string();
        assert!(
            told.contains("`one`") && told.contains(&digest.to_string()) && told.contains("import"),
            "{told}"
        );
        assert!(shelf.get("one").is_none());
        // A disk that reads right again is right again.
        flip_a_bit(state.path(), digest);
        verify(&shelf, "one", &|_| {}).unwrap();
        assert!(shelf.get("one").is_some());
    }
}

#[test]
fn a_frame_that_is_not_its_chunk_is_found_though_its_digest_fits() {
    let state = tempfile::tempdir().unwrap();
    let one = take_raw(state.path(), "one", &disk()).unwrap();
    let path = crate::image::disk::testing::blob_path(state.path(), one.manifest.chunks[0].blob);
    let length = one.manifest.place(&one.manifest.chunks[0]).1;
    assert!(read_chunk(&path, &one.manifest.chunks[0], length).is_ok());
    assert!(read_chunk(&path, &one.manifest.chunks[0], length - 1).is_err());
    let other = Chunk { sha256: Digest::of(b"other"), ..one.manifest.chunks[0] };
    assert!(read_chunk(&path, &other, length).is_err());
}

#[test]
fn what_machines_boot_is_scrubbed_as_well_a_piece_at_a_time() {
    let state = tempfile::tempdir().unwrap();
    let library = Library::open(state.path()).unwrap();
    let ramdisk = noise(3, 2 * PIECE_BYTES as usize + 5);
    let add = |bytes: &[u8]| library.add(&mut &bytes[..]).unwrap();
    let manifest = Manifest {
        profile: "vm".to_owned(),
        kernel: add(b"kernel"),
        ramdisk: add(&ramdisk),
        arguments: Vec::new(),
        built_from: Default::default(),
    };
    library.publish(&manifest).unwrap();
    let mut now = Timestamp::default();
    let mut scrubber = Scrubber::new(now);
    now = now.plus(FIRST_ROUND_AFTER);
    let (found, ended) = round(&mut scrubber, &library, now);
    assert_eq!(found, []);
    assert!(ended.since(now) >= Duration::from_secs(2), "16 MiB at 8 MiB a second");
    let mut steps = 0;
    now = now.plus(ROUND);
    flip_a_bit(state.path(), manifest.ramdisk.digest);
    let found = loop {
        let step = scrubber.step(&[&library], now);
        steps += 1;
        if let Some(found) = step.found {
            break found;
        }
        now = step.next;
    };
    assert!(steps >= 3 && found.path.ends_with(manifest.ramdisk.digest.to_string()), "{steps} {found:?}");
    assert!(library.profile("vm").is_none() && library.damage()[0].reason.contains("hash"));
    // Put right, it is served again.
    flip_a_bit(state.path(), manifest.ramdisk.digest);
    library.reload().unwrap();
    assert!(library.profile("vm").is_some());
}
