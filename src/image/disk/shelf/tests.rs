use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::image::disk::gc;
use crate::image::disk::testing::{MIB, blob_path, disk, install, names_in, noise, take_raw};

#[test]
fn only_what_a_manifest_names_is_given_out() {
    let state = tempfile::tempdir().unwrap();
    let one = take_raw(state.path(), "one", &disk()).unwrap();
    let two = take_raw(state.path(), "two", &noise(8, MIB)).unwrap();
    let shelf = DiskShelf::open(state.path()).unwrap();
    assert_eq!(shelf.list().iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    let (of_one, of_two) = (one.manifest_blob.digest, two.manifest_blob.digest);
    assert!(install(&shelf, of_one) == disk());
    let chunk = one.manifest.chunks[0].blob;
    let blob = shelf.chunk(of_one, chunk).unwrap();
    assert_eq!((blob.digest, blob.size, blob.file.is_some()), (chunk, blob.bytes.len() as u64, true));
    // Another image's chunk, a manifest as a chunk, and the other way round.
    for (manifest, chunk) in [(of_two, chunk), (of_one, of_one), (of_one, of_two), (chunk, chunk)] {
        assert!(shelf.chunk(manifest, chunk).is_none());
    }
    assert!(shelf.manifest(chunk).is_none() && shelf.disk_manifest(chunk).is_none());
}

#[test]
fn everything_is_for_the_appliance_alone() {
    let state = tempfile::tempdir().unwrap();
    let image = take_raw(state.path(), "one", &disk()).unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    for directory in ["disks", "pins", "damaged", "partial"] {
        assert_eq!(mode(state.path().join("images").join(directory)), 0o700, "{directory}");
    }
    assert_eq!(mode(blob_path(state.path(), image.manifest_blob.digest)), 0o444);
    assert_eq!(mode(blob_path(state.path(), image.manifest.chunks[0].blob)), 0o444);
}

#[test]
fn what_root_imports_is_the_appliances() {
    use std::os::unix::fs::{MetadataExt, chown};
    let state = tempfile::tempdir().unwrap();
    // Made by root before anybody thought of it.
    fs::create_dir_all(state.path().join("images/disks")).unwrap();
    let uid =
        if nix::unistd::Uid::effective().is_root() { 65534 } else { nix::unistd::Uid::effective().as_raw() };
    chown(state.path(), Some(uid), None).unwrap();
    let image = take_raw(state.path(), "one", &disk()).unwrap();
    DiskShelf::open(state.path()).unwrap().pin(image.manifest_blob.digest).unwrap();
    let manifest = image.manifest_blob.digest;
    for name in [
        "images",
        "images/disks",
        "images/disks/one.json",
        "images/pins",
        "images/partial",
        "images/.writing",
        &format!("images/pins/{manifest}"),
        &format!("images/blobs/{manifest}"),
    ] {
        assert_eq!(fs::metadata(state.path().join(name)).unwrap().uid(), uid, "{name}");
    }
}

#[test]
fn what_other_processes_do_is_noticed() {
    let state = tempfile::tempdir().unwrap();
    let shelf = DiskShelf::open(state.path()).unwrap();
    let other = DiskShelf::open(state.path()).unwrap();
    let image = take_raw(state.path(), "one", &disk()).unwrap();
    assert!(shelf.refresh_if_changed().unwrap());
    assert!(shelf.get("one").is_some());
    let manifest = image.manifest_blob.digest;
    other.pin(manifest).unwrap();
    assert!(shelf.refresh_if_changed().unwrap());
    assert_eq!(shelf.pins(), BTreeSet::from([manifest]));
    gc::remove(shelf.place(), "one").unwrap_err();
    other.unpin(manifest).unwrap();
    gc::remove(shelf.place(), "one").unwrap();
    assert!(shelf.refresh_if_changed().unwrap());
    assert!(shelf.get("one").is_none() && shelf.manifest(manifest).is_none() && shelf.pins().is_empty());
    // Long after the last change there is nothing to do.
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    for directory in ["disks", "pins", "damaged"] {
        File::open(state.path().join("images").join(directory)).unwrap().set_modified(long_ago).unwrap();
    }
    assert!(shelf.refresh_if_changed().unwrap());
    assert!(!shelf.refresh_if_changed().unwrap());
    take_raw(state.path(), "two", &disk()).unwrap();
    assert!(shelf.refresh_if_changed().unwrap() && shelf.get("two").is_some());
}

#[test]
fn a_pin_outlives_the_name_and_the_process() {
    let state = tempfile::tempdir().unwrap();
    let manifest = take_raw(state.path(), "one", &disk()).unwrap().manifest_blob.digest;
    let shelf = DiskShelf::open(state.path()).unwrap();
    shelf.pin(manifest).unwrap();
    shelf.pin(manifest).unwrap();
    take_raw(state.path(), "one", &noise(3, MIB)).unwrap();
    let reopened = DiskShelf::open(state.path()).unwrap();
    assert_eq!(reopened.pins(), BTreeSet::from([manifest]));
    // Also when it is asked for once more, now that it has no name.
    reopened.pin(manifest).unwrap();
    gc::collect(reopened.place()).unwrap();
    assert!(install(&reopened, manifest) == disk());
    reopened.unpin(manifest).unwrap();
    assert!(reopened.manifest(manifest).is_none());
    assert!(matches!(reopened.pin(manifest), Err(PinError::NotThere { .. })));
    assert!(names_in(state.path(), "pins").is_empty());
}

#[test]
fn a_shelf_with_a_hole_is_damage_and_the_rest_is_served() {
    let state = tempfile::tempdir().unwrap();
    let one = take_raw(state.path(), "one", &disk()).unwrap();
    take_raw(state.path(), "two", &noise(8, MIB)).unwrap();
    let shelf = DiskShelf::open(state.path()).unwrap();
    let (manifest, chunk) = (one.manifest_blob.digest, one.manifest.chunks[1].blob);
    let path = blob_path(state.path(), chunk);
    fs::remove_file(&path).unwrap();
    assert!(shelf.get("one").is_some(), "nobody has looked yet");
    assert!(shelf.chunk(manifest, chunk).is_none());
    assert!(shelf.get("one").is_none() && shelf.manifest(manifest).is_none() && shelf.get("two").is_some());
    let damage = shelf.damage();
    assert_eq!((damage.len(), &damage[0].path), (1, &path));
    assert!(
        damage[0].reason.contains("`one`") && damage[0].reason.contains("import"),
        "{}",
        damage[0].reason
    );
    fs::write(&path, "short").unwrap();
    assert!(DiskShelf::open(state.path()).unwrap().get("one").is_none());
}

#[test]
fn entries_that_are_none_are_told() {
    let state = tempfile::tempdir().unwrap();
    take_raw(state.path(), "one", &disk()).unwrap();
    let disks = state.path().join("images/disks");
    fs::copy(disks.join("one.json"), disks.join("impostor.json")).unwrap();
    fs::write(disks.join("torn.json"), "{\"name\":").unwrap();
    let text = fs::read_to_string(disks.join("one.json")).unwrap();
    let manifest = &text[text.find("\"digest\": \"").unwrap() + 11..][..64];
    let elsewhere =
        text.replace(manifest, &Digest::of(b"nothing").to_string()).replace("\"one\"", "\"lost\"");
    fs::write(disks.join("lost.json"), elsewhere).unwrap();
    let shelf = DiskShelf::open(state.path()).unwrap();
    assert_eq!((shelf.list().len(), shelf.damage().len()), (1, 3), "{:?}", shelf.damage());
}

#[test]
fn a_bounded_number_of_chunks_stays_open() {
    let blob = |number: usize| Blob {
        bytes: bytes::Bytes::new(),
        file: None,
        digest: Digest::of(&number.to_le_bytes()),
        size: 0,
        modified: Timestamp::default(),
    };
    let mut open = OpenChunks::default();
    for number in 0..OPEN_CHUNKS_MAX * 2 {
        open.insert(blob(number));
        // Asked for again and again, the first one stays.
        assert!(open.get(blob(0).digest).is_some());
    }
    assert_eq!((open.blobs.len(), open.order.len()), (OPEN_CHUNKS_MAX, OPEN_CHUNKS_MAX));
    assert!(open.get(blob(1).digest).is_none());
    open.remove(blob(0).digest);
    assert!(open.get(blob(0).digest).is_none());
    assert_eq!((open.blobs.len(), open.order.len()), (OPEN_CHUNKS_MAX - 1, OPEN_CHUNKS_MAX - 1));
}

#[test]
fn a_marked_blob_is_not_served_and_its_mark_may_be_unreadable() {
    let state = tempfile::tempdir().unwrap();
    let one = take_raw(state.path(), "one", &disk()).unwrap();
    let shelf = DiskShelf::open(state.path()).unwrap();
    let chunk = one.manifest.chunks[0].blob;
    assert!(shelf.chunk(one.manifest_blob.digest, chunk).is_some());
    shelf.mark_damaged(chunk, "its bytes hash to something").unwrap();
    assert!(shelf.get("one").is_none() && shelf.chunk(one.manifest_blob.digest, chunk).is_none());
    assert!(shelf.damage()[0].reason.contains("hash to something"));
    let mark = state.path().join("images/damaged").join(chunk.to_string());
    fs::set_permissions(&mark, Permissions::from_mode(0o644)).unwrap();
    fs::write(&mark, [0xff, 0xfe]).unwrap();
    assert!(DiskShelf::open(state.path()).unwrap().damage()[0].reason.contains("marked as damaged"));
    shelf.clear_damage(chunk).unwrap();
    assert!(shelf.get("one").is_some());
}
