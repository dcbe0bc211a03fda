//! Machines that do not make it end with a timeline that shows where they stopped.

use std::fs;
use std::time::Duration;

use farrier::image::cpio::Archive;
use farrier::image::library::{Library, Manifest};
use farrier::lab::config::LabFirmware;
use farrier::lab::prepare::PROFILE;
use farrier::node::state::ProvisionState;
use farrier::node::timeline::{FileOutcome, Happening, Stage};

use crate::support::{BOOTS_WITHIN, Case, config, images};

/// The configured profile was never built: the script names a kernel that is not there.
#[test]
fn a_machine_whose_kernel_is_missing_stops_at_the_kernel() {
    let config = config(&[LabFirmware::Bios], "[boot]\nprofile = 'withheld'\n");
    let case = Case::new("missing-kernel", config).start().power_on();
    let machine = case.machine(LabFirmware::Bios);
    let (node, boot) = case.await_node(machine, "kernel refused", BOOTS_WITHIN, |_, boot| {
        boot.events.iter().any(|event| {
            matches!(&event.happening, Happening::File { outcome: FileOutcome::NotFound, name, .. }
                if name.contains("withheld/vmlinuz"))
        })
    });
    assert_eq!(boot.stage, Some(Stage::Script), "it came as far as its script");
    let stopped_at = boot.stopped_at.expect("a reason");
    assert!(stopped_at.contains("image/withheld/vmlinuz"), "{stopped_at}");
    assert_ne!(node.summary.state, ProvisionState::Manageable);
}

/// Kernel and ramdisk arrive, and then nothing is heard of the machine.
#[test]
fn a_machine_whose_ramdisk_never_calls_stops_at_the_ramdisk() {
    publish_silent_profile();
    let config = config(&[LabFirmware::Bios], "[boot]\nprofile = 'silent'\ncall_deadline = '30s'\n");
    let case = Case::new("silent-ramdisk", config).start().power_on();
    let machine = case.machine(LabFirmware::Bios);
    let within = BOOTS_WITHIN + Duration::from_secs(30);
    let (node, boot) = case.await_node(machine, "inspect failed", within, |node, _| {
        node.summary.state == ProvisionState::InspectFailed
    });
    assert_eq!(boot.stage, Some(Stage::Ramdisk));
    assert!(!boot.events.iter().any(|event| matches!(event.happening, Happening::Agent { .. })));
    let stopped_at = boot.stopped_at.expect("a reason");
    assert!(stopped_at.contains("ramdisk") || stopped_at.contains("call"), "{stopped_at}");
    assert!(node.summary.failure.is_some());
    let serial = fs::read(case.state.machine(machine.name.as_str()).serial_log()).unwrap();
    assert!(String::from_utf8_lossy(&serial).contains("silent ramdisk runs"), "it did start");
}

/// The real kernel with a ramdisk of busybox that idles.
fn publish_silent_profile() {
    const INIT: &[u8] =
        b"#!/bin/busybox sh\necho 'silent ramdisk runs'\nwhile true; do /bin/busybox sleep 3600; done\n";
    let library = Library::open(images()).unwrap();
    let real = library.profile(PROFILE).expect("the deploy image");
    let mut archive = Archive::default();
    for directory in ["bin", "dev"] {
        archive.directory(directory).unwrap();
    }
    // The kernel opens it for /init's output before anything is mounted.
    archive.character_device("dev/console", 5, 1).unwrap();
    archive.file("bin/busybox", 0o755, fs::read("/bin/busybox").unwrap()).unwrap();
    archive.file("init", 0o755, INIT.to_vec()).unwrap();
    let ramdisk = library.add(&mut archive.emit().unwrap().as_slice()).unwrap();
    let manifest = Manifest {
        profile: "silent".to_owned(),
        kernel: library.add(&mut real.kernel.bytes.as_ref()).unwrap(),
        ramdisk,
        ..real.manifest.clone()
    };
    library.publish(&manifest).unwrap();
}
