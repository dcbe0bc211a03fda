//! Secure Boot refuses what was changed after it was signed, and the verdict says so; what is revoked is not offered at
//! all.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farrier::image::library::{Library, Manifest};
use farrier::lab::config::{LabFirmware, MachineConfig};
use farrier::lab::prepare::PROFILE;
use farrier::node::timeline::{Boot, FileOutcome, Happening, Stage};
use farrier::node::verdict::{Cause, Verdict};
use nix::sys::signal::Signal;

use crate::support::{BOOTS_WITHIN, Case, config, images};

const SHIM: &str = "usr/lib/shim/shimx64.efi.signed";
const GRUB: &str = "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed";
/// Longer than any verdict waits before it calls a machine silent.
const SILENT_FOR: Duration = Duration::from_secs(600);

/// The one place where these bytes are, overwritten.
fn patch(file: &Path, old: &[u8], new: &[u8]) {
    let mut bytes = fs::read(file).unwrap();
    let places: Vec<usize> =
        bytes.windows(old.len()).enumerate().filter(|(_, part)| *part == old).map(|(at, _)| at).collect();
    let [place] = places[..] else { panic!("{} is in {} at {places:?}", old.escape_ascii(), file.display()) };
    bytes[place..place + new.len()].copy_from_slice(new);
    fs::write(file, bytes).unwrap();
}

/// The deploy image with one bit of its kernel's code changed.
fn publish_changed_kernel() {
    let library = Library::open(images()).unwrap();
    let real = library.profile(PROFILE).expect("the deploy image");
    let mut kernel = real.kernel.bytes.to_vec();
    let middle = kernel.len() / 2;
    kernel[middle] ^= 1;
    let manifest = Manifest {
        profile: "changed".to_owned(),
        kernel: library.add(&mut kernel.as_slice()).unwrap(),
        ramdisk: library.add(&mut real.ramdisk.bytes.as_ref()).unwrap(),
        ..real.manifest.clone()
    };
    library.publish(&manifest).unwrap();
}

fn fetched_whole(boot: &Boot, wanted: Stage) -> bool {
    boot.events.iter().any(|event| {
        matches!(&event.happening, Happening::File { stage, outcome: FileOutcome::Complete, .. }
            if *stage == Some(wanted))
    })
}

/// As it will be if nothing more is heard.
fn verdict(case: &Case, machine: &MachineConfig, boot: &Boot) -> Verdict {
    let last = boot.events.last().expect("an event").at;
    let at = last.plus(SILENT_FOR);
    case.ask(&format!("/api/v1/nodes/{}/why?boot={}&at={at}", machine.mac, boot.number))
}

#[test]
fn s_17_secure_boot_refuses_a_changed_loader_and_a_changed_kernel_and_the_verdict_says_so() {
    publish_changed_kernel();
    let case =
        Case::new("changed-files", config(&[LabFirmware::UefiSecure], "[boot]\nprofile = 'changed'\n"));
    let shim = case.own_loaders().join(SHIM);
    let original = fs::read(&shim).unwrap();
    let mut changed = original.clone();
    changed[original.len() / 2] ^= 1;
    fs::write(&shim, &changed).unwrap();
    let case = case.start().power_on();
    let machine = case.machine(LabFirmware::UefiSecure);

    let (_, boot) = case
        .await_node(machine, "shim is loaded", BOOTS_WITHIN, |_, boot| fetched_whole(boot, Stage::Loader));
    let found = verdict(&case, machine, &boot);
    assert_eq!((found.cause, found.stage), (Cause::SecureBootRefused, Some(Stage::Loader)), "{found:#?}");
    assert!(found.headline.contains("changed after it was signed"), "{}", found.headline);
    let serial = || {
        let log = case.state.machine(machine.name.as_str()).serial_log();
        String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
    };
    // OVMF's own words for it.
    case.await_words("Access Denied", BOOTS_WITHIN, serial);

    // With the shim that was signed, the next to be refused is the kernel.
    fs::write(&shim, &original).unwrap();
    case.signal_appliance(Signal::SIGHUP);
    let before = boot.number;
    case.lab().qmp(machine.name.as_str()).unwrap().reset().unwrap();
    let (_, boot) = case.await_node(machine, "the kernel is loaded", BOOTS_WITHIN, |_, boot| {
        boot.number > before && fetched_whole(boot, Stage::Kernel)
    });
    case.await_words("bad shim signature", BOOTS_WITHIN, serial);
    let found = verdict(&case, machine, &boot);
    assert_eq!((found.cause, found.stage), (Cause::SecureBootRefused, Some(Stage::Kernel)), "{found:#?}");
    assert!(!fetched_whole(&boot, Stage::Ramdisk));
}

/// The generation is in the file's own words; shim would go by them, and so do we.
#[test]
fn s_17_a_loader_below_the_sbat_level_is_not_offered() {
    let case = Case::new("revoked-loader", config(&[], ""));
    let grub: PathBuf = case.own_loaders().join(GRUB);
    patch(&grub, b"\ngrub,5,", b"\ngrub,3,");
    let case = case.start();
    let log = fs::read_to_string(case.state.root().join("appliance.log")).unwrap();
    let said = "its SBAT component grub has generation 3, and level 2025051000 wants 5 or newer";
    assert!(log.contains(said), "{log}");
    assert!(log.contains("uefi-x64/grubx64.efi") && log.contains("not offered"), "{log}");
}
