//! The collectors against fixture trees: a small virtual machine, and a server with everything that is easy to get wrong.

use std::path::PathBuf;

use super::*;
use crate::net::MacAddr;
use crate::node::inventory::{Cpu, Disk, Nic};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

#[test]
fn a_virtual_machine() {
    let found = inventory(&fixture("qemu-q35"));
    assert_eq!(found.system.vendor.as_deref(), Some("QEMU"));
    assert_eq!(found.system.serial, None, "a placeholder is no serial number");
    assert_eq!(found.system.uuid.unwrap().to_string(), "11223344-5566-7788-99aa-bbccddeeff00");
    assert_eq!(
        found.cpu,
        Cpu {
            model: "QEMU Virtual CPU version 2.5+".to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            logical: 2,
            cores: 2,
            sockets: 2,
        }
    );
    // No DMI tables here: the firmware's memory map counts.
    assert_eq!(found.memory_bytes, 0x9fc00 + (0x3ffe_0000 - 0x10_0000));
    let disk = Disk {
        name: "vda".to_owned(),
        model: None,
        serial: Some("DISK1234".to_owned()),
        bytes: 204_800 * 512,
        rotational: true,
        removable: false,
    };
    assert_eq!(found.disks, [disk]);
    let nic = Nic {
        name: "eth0".to_owned(),
        mac: mac("52:54:00:00:00:01"),
        driver: Some("virtio_net".to_owned()),
        speed_mbps: None,
        link: true,
    };
    assert_eq!(found.nics, [nic], "neither loopback nor a bridge has hardware behind it");
    assert_eq!((found.uptime_secs, found.kernel.as_str()), (2.45, "6.1.0-56-cloud-amd64"));
    assert_eq!(found.booted_by, BootedBy::Bios);
}

#[test]
fn a_server() {
    let found = inventory(&fixture("server"));
    assert_eq!(found.system.serial.as_deref(), Some("7XK2P93"));
    assert_eq!((found.system.version, found.system.uuid), (None, None), "placeholders");
    assert_eq!((found.cpu.logical, found.cpu.cores, found.cpu.sockets), (8, 4, 2));
    assert_eq!(found.memory_bytes, 131_072_000 * 1024);
    let disks: Vec<_> = found.disks.iter().map(|disk| (disk.name.as_str(), disk.serial.as_deref())).collect();
    assert_eq!(disks, [("nvme0n1", Some("PHAB1234567T")), ("sda", Some("W461ABCD")), ("sdc", None)]);
    assert_eq!(found.disks[0].model.as_deref(), Some("Dell Ent NVMe P5600 MU U.2 3.2TB"));
    assert!(!found.disks[0].rotational && found.disks[1].rotational && found.disks[2].removable);
    let nics: Vec<_> = found.nics.iter().map(|nic| (nic.name.as_str(), nic.speed_mbps, nic.link)).collect();
    assert_eq!(nics, [("eno1", Some(25_000), true), ("eno2", None, false)], "InfiniBand is not Ethernet");
    assert_eq!(found.booted_by, BootedBy::UefiSecureBoot);
}

#[test]
fn a_machine_that_says_nothing_still_has_an_inventory() {
    let root = tempfile::tempdir().unwrap();
    let found = inventory(root.path());
    assert_eq!(found.memory_bytes, 0);
    assert!(found.disks.is_empty() && found.nics.is_empty());
}

#[test]
fn text_from_firmware_is_bounded_and_printable() {
    let text = tidy(&format!(" \u{1b}[31m{}\n", "x".repeat(500))).unwrap();
    assert!(text.chars().count() <= TEXT_MAX && !text.contains('\u{1b}'));
    assert_eq!(tidy(" \t\n"), None);
}
