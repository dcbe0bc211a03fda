use std::collections::BTreeMap;

use super::*;
use crate::image::disk::shelf::DiskShelf;
use crate::image::disk::testing::{MIB, disk, install, names_in, noise, take_raw};
use crate::image::library::{Library, Manifest};

#[test]
fn only_what_nothing_names_goes() {
    let state = tempfile::tempdir().unwrap();
    let library = Library::open(state.path()).unwrap();
    let profile = Manifest {
        profile: "vm".to_owned(),
        kernel: library.add(&mut &b"kernel"[..]).unwrap(),
        ramdisk: library.add(&mut &b"ramdisk"[..]).unwrap(),
        arguments: Vec::new(),
        built_from: BTreeMap::new(),
    };
    library.publish(&profile).unwrap();
    let one = take_raw(state.path(), "one", &disk()).unwrap();
    let two = take_raw(state.path(), "two", &noise(2, 5 * MIB)).unwrap();
    let images = state.path().join("images");
    // A document of some other kind names a blob; an interrupted writer left half of one.
    let other = library.add(&mut &b"some other kernel"[..]).unwrap();
    fs::create_dir(images.join("boot")).unwrap();
    fs::write(images.join("boot/memtest.json"), format!("{{\"kernel\":[\"{}\"]}}", other.digest)).unwrap();
    fs::write(images.join("blobs/.new-1-1"), "half").unwrap();
    let place = Place::open(state.path()).unwrap();
    assert_eq!(collect(&place).unwrap().bytes, 4);

    let shelf = DiskShelf::open(state.path()).unwrap();
    shelf.pin(one.manifest_blob.digest).unwrap();
    assert!(
        matches!(remove(&place, "one"), Err(RemoveError::Pinned { manifest, .. }) if manifest == one.manifest_blob.digest)
    );
    remove(&place, "two").unwrap();
    assert!(matches!(remove(&place, "two"), Err(RemoveError::NotFound { .. })));
    assert!(matches!(remove(&place, "../vm"), Err(RemoveError::NotFound { .. })));
    let collected = collect(&place).unwrap();
    assert_eq!(
        (collected.blobs, collected.bytes),
        (3, two.manifest.stored_bytes() + two.manifest_blob.bytes)
    );
    assert_eq!(collected.kept_blobs, 3 + 4);
    assert_eq!(collect(&place).unwrap(), Collected { blobs: 0, bytes: 0, ..collected });
    shelf.reload().unwrap();
    assert!(install(&shelf, one.manifest_blob.digest) == disk());
    assert!(Library::open(state.path()).unwrap().profile("vm").is_some());
    fs::remove_file(images.join("boot/memtest.json")).unwrap();
    assert_eq!(collect(&place).unwrap().bytes, other.bytes);
}

#[test]
fn nothing_goes_while_somebody_writes_or_something_cannot_be_read() {
    let state = tempfile::tempdir().unwrap();
    let library = Library::open(state.path()).unwrap();
    let held = library.hold().unwrap();
    library.add(&mut &b"not named yet"[..]).unwrap();
    let place = Place::open(state.path()).unwrap();
    assert!(matches!(collect(&place), Err(CollectError::Busy)));
    drop(held);
    for name in ["torn.json", "disks/torn.json", "boot/torn.json"] {
        let path = state.path().join("images").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "{").unwrap();
        assert!(matches!(collect(&place), Err(CollectError::Unreadable { path: told, .. }) if told == path));
        fs::remove_file(&path).unwrap();
    }
    assert_eq!(names_in(state.path(), "blobs").len(), 1);
    assert_eq!(collect(&place).unwrap().blobs, 1);
}

#[test]
fn downloads_nobody_goes_on_with_and_marks_of_what_is_gone_go_as_well() {
    let state = tempfile::tempdir().unwrap();
    let one = take_raw(state.path(), "one", &disk()).unwrap();
    let shelf = DiskShelf::open(state.path()).unwrap();
    let place = Place::open(state.path()).unwrap();
    let (idle, busy) = (Digest::of(b"idle").to_string(), Digest::of(b"busy").to_string());
    for name in [&idle, &busy] {
        fs::write(place.partial().join(name), "12345").unwrap();
        fs::write(place.partial().join(format!("{name}.tag")), "\"tag\"").unwrap();
    }
    let file = File::open(place.partial().join(&busy)).unwrap();
    file.lock().unwrap();
    shelf.mark_damaged(one.manifest.chunks[0].blob, "bad").unwrap();
    assert_eq!(collect(&place).unwrap().bytes, 5);
    assert_eq!(names_in(state.path(), "partial"), BTreeSet::from([format!("{busy}.tag"), busy]));
    assert_eq!(names_in(state.path(), "damaged").len(), 1, "its image is still there, to be imported again");
    remove(&place, "one").unwrap();
    collect(&place).unwrap();
    assert!(names_in(state.path(), "damaged").is_empty());
}
