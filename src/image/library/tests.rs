use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

fn library(state: &Path) -> Library {
    Library::open(state).unwrap()
}

fn manifest(library: &Library, profile: &str, kernel: &[u8], ramdisk: &[u8]) -> Manifest {
    Manifest {
        profile: profile.to_owned(),
        kernel: library.add(&mut &*kernel).unwrap(),
        ramdisk: library.add(&mut &*ramdisk).unwrap(),
        arguments: vec!["quiet".to_owned()],
        built_from: BTreeMap::new(),
    }
}

fn blob_names(state: &Path) -> Vec<String> {
    let entries = fs::read_dir(state.join("images/blobs")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_published_is_served_and_survives_reopening() {
    let state = tempfile::tempdir().unwrap();
    let shelf = library(state.path());
    assert!(shelf.profile("vm").is_none());
    shelf.publish(&manifest(&shelf, "vm", b"kernel", b"")).unwrap();
    for shelf in [shelf, library(state.path())] {
        let profile = shelf.profile("vm").unwrap();
        assert_eq!(&profile.kernel.bytes[..], b"kernel");
        assert_eq!(profile.kernel.digest, Digest::of(b"kernel"));
        assert_eq!(profile.ramdisk.size, 0);
        assert_eq!(shelf.damage(), []);
    }
}

#[test]
fn replacing_a_profile_drops_only_what_nothing_names() {
    let state = tempfile::tempdir().unwrap();
    let shelf = library(state.path());
    shelf.publish(&manifest(&shelf, "vm", b"kernel", b"first")).unwrap();
    shelf.publish(&manifest(&shelf, "metal", b"kernel", b"drivers")).unwrap();
    let held = shelf.profile("vm").unwrap();
    shelf.publish(&manifest(&shelf, "vm", b"kernel", b"second")).unwrap();
    let mut expected: Vec<String> =
        [&b"kernel"[..], b"drivers", b"second"].map(|bytes| Digest::of(bytes).to_string()).to_vec();
    expected.sort();
    assert_eq!(blob_names(state.path()), expected);
    assert_eq!(&held.ramdisk.bytes[..], b"first", "a running transfer keeps what it began with");
}

#[test]
fn a_damaged_blob_is_reported_and_not_served() {
    let state = tempfile::tempdir().unwrap();
    let shelf = library(state.path());
    shelf.publish(&manifest(&shelf, "metal", b"other", b"other")).unwrap();
    shelf.publish(&manifest(&shelf, "vm", b"kernel", b"ramdisk")).unwrap();
    let blob = state.path().join("images/blobs").join(Digest::of(b"kernel").to_string());
    for damaged in [&b"Kernel"[..], b"kern", b""] {
        fs::set_permissions(&blob, Permissions::from_mode(0o644)).unwrap();
        fs::write(&blob, damaged).unwrap();
        let reopened = library(state.path());
        assert!(reopened.profile("vm").is_none());
        assert!(reopened.profile("metal").is_some());
        assert_eq!(reopened.damage().len(), 1);
        assert_eq!(reopened.damage()[0].path, blob);
    }
    fs::remove_file(&blob).unwrap();
    assert_eq!(library(state.path()).damage().len(), 1);
    // Adding the bytes again is the way out.
    let reopened = library(state.path());
    reopened.publish(&manifest(&reopened, "vm", b"kernel", b"ramdisk")).unwrap();
    assert_eq!(reopened.damage(), []);
}

#[test]
fn a_manifest_that_is_not_one_is_reported() {
    let state = tempfile::tempdir().unwrap();
    let shelf = library(state.path());
    shelf.publish(&manifest(&shelf, "vm", b"kernel", b"ramdisk")).unwrap();
    let images = state.path().join("images");
    fs::copy(images.join("vm.json"), images.join("impostor.json")).unwrap();
    fs::write(images.join("torn.json"), "{\"profile\":").unwrap();
    let unsafe_words = fs::read_to_string(images.join("vm.json")).unwrap().replace("quiet", "quiet; reboot");
    fs::write(images.join("wild.json"), unsafe_words.replace("\"vm\"", "\"wild\"")).unwrap();
    shelf.reload().unwrap();
    assert_eq!(shelf.profiles().len(), 1);
    assert_eq!(shelf.damage().len(), 3, "{:?}", shelf.damage());
}

#[test]
fn publishing_what_was_never_added_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let shelf = library(state.path());
    let mut wrong = manifest(&shelf, "vm", b"kernel", b"ramdisk");
    wrong.kernel.digest = Digest::of(b"something else");
    assert!(matches!(shelf.publish(&wrong), Err(PublishError::BadBlob { .. })));
    for name in ["", "../vm", "VM", "-vm", "a/b"] {
        wrong.profile = name.to_owned();
        assert!(matches!(shelf.publish(&wrong), Err(PublishError::ProfileName { .. })), "{name}");
    }
    assert!(shelf.profiles().is_empty());
}
