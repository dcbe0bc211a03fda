//! The main job: every firmware kind boots to enrolled.

use std::collections::BTreeSet;

use farrier::lab::config::LabFirmware;
use farrier::node::inventory::BootedBy;
use farrier::node::state::ProvisionState;
use farrier::node::timeline::{Boot, Happening, Stage, Transport};

use crate::support::{Case, config};

/// Names of the files a boot fetched, with their transport.
fn files(boot: &Boot) -> Vec<(Transport, &str)> {
    boot.events
        .iter()
        .filter_map(|event| match &event.happening {
            Happening::File { transport, name, .. } => Some((*transport, name.as_str())),
            _ => None,
        })
        .collect()
}

/// iPXE waits two seconds and more for a ProxyDHCP offer, unless told that there is none. Without that the figure is
/// 2 ms; emulated processors on a shared machine take longer.
fn assert_requests_at_once(boot: &Boot) {
    let asked = |wanted: &'static str| {
        boot.events.iter().filter_map(move |event| match &event.happening {
            Happening::Dhcp { message, .. } if message == wanted => Some(event.at),
            _ => None,
        })
    };
    let request = asked("request").next().expect("a REQUEST");
    let discover = asked("discover").take_while(|at| *at <= request).last().expect("a DISCOVER before it");
    assert!(request.since(discover).as_millis() < 1000, "{:?}", request.since(discover));
}

/// What is asked on port 4011 is a REQUEST as well, and would come between the lease and the loader.
fn assert_asks_no_boot_server(boot: &Boot) {
    let before_the_loader = boot
        .events
        .iter()
        .map_while(|event| match &event.happening {
            Happening::File { .. } => None,
            Happening::Dhcp { message, .. } => Some(message.as_str()),
            _ => Some(""),
        })
        .filter(|message| !message.is_empty());
    assert_eq!(before_the_loader.filter(|message| *message == "request").count(), 1, "{:#?}", boot.events);
}

#[test]
fn p_01_p_02_p_03_p_06_p_13_p_16_all_four_firmware_kinds_boot_to_enrolled() {
    let case = Case::new("four-firmware-kinds", config(&LabFirmware::ALL, "")).start().power_on();
    let mut addresses = BTreeSet::new();
    for machine in case.machines() {
        let (node, boot) = case.await_enrolled(machine);
        assert_eq!(node.summary.state, ProvisionState::Manageable, "{}", machine.name);
        assert_eq!(node.uuid, Some(machine.uuid()), "{}", machine.name);
        let inventory = node.inventory.expect("an inventory");
        assert_eq!(inventory.system.serial.as_deref(), Some(machine.serial().as_str()));
        assert_eq!(inventory.nics.len(), 1);
        assert_eq!(inventory.nics[0].mac, machine.mac);
        assert_eq!(inventory.disks.len(), 1);
        assert_eq!(inventory.disks[0].serial.as_deref(), Some(machine.serial().as_str()));
        assert_eq!(Some(inventory.disks[0].bytes), machine.disk_bytes);
        let booted_by = match machine.firmware {
            LabFirmware::Bios => BootedBy::Bios,
            LabFirmware::Uefi | LabFirmware::UefiHttp => BootedBy::Uefi,
            LabFirmware::UefiSecure => BootedBy::UefiSecureBoot,
        };
        assert_eq!(inventory.booted_by, booted_by, "{}", machine.name);
        addresses.insert(node.summary.ports[0].address.expect("an address"));

        let files = files(&boot);
        let fetched = |transport, part: &str| {
            assert!(
                files.iter().any(|(by, name)| *by == transport && name.contains(part)),
                "{}: {part} by {transport:?} in {files:?}",
                machine.name
            );
        };
        match machine.firmware {
            LabFirmware::Bios => {
                assert_requests_at_once(&boot);
                // Its ROM is iPXE: no loader at all.
                assert!(!boot.times.contains_key(&Stage::Loader), "{files:?}");
                fetched(Transport::Http, "vmlinuz");
            }
            LabFirmware::Uefi | LabFirmware::UefiSecure => {
                assert_asks_no_boot_server(&boot);
                fetched(Transport::Tftp, "shimx64.efi");
                fetched(Transport::Tftp, "grubx64.efi");
                fetched(Transport::Tftp, "vmlinuz");
            }
            LabFirmware::UefiHttp => {
                fetched(Transport::Http, "ipxe.efi");
                fetched(Transport::Http, "vmlinuz");
                assert!(files.iter().all(|(by, _)| *by == Transport::Http), "{files:?}");
            }
        }
    }
    assert_eq!(addresses.len(), 4, "every machine has an address of its own: {addresses:?}");
}
