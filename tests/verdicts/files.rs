//! What ends a boot between the address and the ramdisk.

use crate::machine::{BIOS, Fetched, Go, IPXE, LATER, Machine, UEFI, bed, bed_without_image, expect};
use crate::support::in_namespace;

#[test]
fn a_loader_is_not_found() {
    in_namespace("files::a_loader_is_not_found", || {
        let mut bed = bed("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        machine.lease(BIOS);
        expect(&bed, &machine.mac, 0, "under-way", Some("loader"), "answered with ACK");
        expect(&bed, &machine.mac, LATER, "loader-not-fetched", Some("loader"), "boot file undionly.kpxe");
        assert!(matches!(machine.tftp("pxelinux.0", 512, |_| Go::On), Fetched::Refused));
        expect(&bed, &machine.mac, 0, "loader-not-found", Some("loader"), "pxelinux.0 by TFTP: not found");
    });
}

#[test]
fn a_loader_does_not_start() {
    in_namespace("files::a_loader_does_not_start", || {
        let mut bed = bed("[boot.loaders]\nuefi-x64 = \"undionly.kpxe\"");
        bed.start_server();
        let mut bios = Machine::plug(&mut bed, 1);
        bios.lease(BIOS);
        bios.fetch_loader("undionly.kpxe");
        expect(&bed, &bios.mac, 0, "under-way", Some("script"), "undionly.kpxe");
        expect(&bed, &bios.mac, LATER, "loader-silent", Some("loader"), "undionly.kpxe by TFTP: ");
        // The same file, given to a machine it is not made for.
        let mut uefi = Machine::plug(&mut bed, 2);
        uefi.lease(UEFI);
        uefi.fetch_loader("undionly.kpxe");
        let verdict = expect(&bed, &uefi.mac, LATER, "wrong-architecture", Some("loader"), "undionly.kpxe");
        assert!(verdict["remedy"][0].as_str().unwrap().contains("[boot.loaders]"), "{verdict:#}");
    });
}

#[test]
fn secure_boot_refuses_a_loader() {
    in_namespace("files::secure_boot_refuses_a_loader", || {
        let mut bed = bed("[boot.loaders]\nuefi-x64 = \"ipxe.efi\"");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        machine.lease(UEFI);
        machine.fetch_loader("ipxe.efi");
        let verdict =
            expect(&bed, &machine.mac, LATER, "secure-boot-refused", Some("loader"), "ipxe.efi by TFTP");
        assert!(verdict["remedy"].to_string().contains("shimx64.efi"), "{verdict:#}");
    });
}

#[test]
fn a_loader_runs_and_asks_for_no_script() {
    in_namespace("files::a_loader_runs_and_asks_for_no_script", || {
        let mut bed = bed("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        machine.lease(BIOS);
        machine.fetch_loader("undionly.kpxe");
        machine.lease(IPXE);
        expect(&bed, &machine.mac, LATER, "script-not-fetched", Some("script"), "iPXE on bios");
    });
}

#[test]
fn a_loader_is_fetched_over_and_over() {
    in_namespace("files::a_loader_is_fetched_over_and_over", || {
        let mut bed = bed("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        // Of a machine nobody vouches for, fewer boots are kept.
        assert!(bed.farrier(&["node", "add", &machine.mac]).status.success());
        for _ in 0..3 {
            machine.lease(BIOS);
            machine.fetch_loader("undionly.kpxe");
        }
        expect(&bed, &machine.mac, 0, "boot-loop", Some("loader"), "loader fetched 3 times");
        assert_eq!(machine.lease(BIOS).boot_file, None, "no more of it");
        expect(&bed, &machine.mac, 0, "boot-loop", Some("loader"), "boot-loop");
        // The boots before are judged for themselves, and say that they were overtaken.
        let first = bed.farrier_json(&["why", &machine.mac, "--boot", "1"]);
        assert_eq!(first["cause"], "loader-silent", "{first:#}");
        assert!(first["headline"].as_str().unwrap().contains("boot 2 followed"), "{first:#}");
    });
}

#[test]
fn a_transfer_loses_its_packets() {
    in_namespace("files::a_transfer_loses_its_packets", || {
        let mut bed = bed("");
        bed.start_server();
        let (mut lossy, mut small) = (Machine::plug(&mut bed, 1), Machine::plug(&mut bed, 2));
        lossy.lease(BIOS);
        small.lease(BIOS);
        // One hears nothing more after a few blocks; to the other no full-size block ever comes.
        lossy.tftp("undionly.kpxe", 1428, |block| if block < 5 { Go::On } else { Go::Silent });
        small.tftp("undionly.kpxe", 1428, |block| if block == 0 { Go::On } else { Go::Silent });
        expect(&bed, &lossy.mac, 0, "transfer-lost", Some("loader"), "packets sent again");
        expect(&bed, &small.mac, 0, "transfer-mtu", Some("loader"), "blocks of 1428");
    });
}

#[test]
fn a_machine_ends_the_transfer_itself() {
    in_namespace("files::a_machine_ends_the_transfer_itself", || {
        let mut bed = bed("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        machine.lease(BIOS);
        machine.tftp("undionly.kpxe", 1428, |block| if block < 5 { Go::On } else { Go::Abort });
        expect(&bed, &machine.mac, 0, "transfer-aborted", Some("loader"), "client error 3: disk full");
    });
}

#[test]
fn a_script_names_a_kernel_that_is_not_there() {
    in_namespace("files::a_script_names_a_kernel_that_is_not_there", || {
        let mut bed = bed_without_image("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        machine.script();
        expect(&bed, &machine.mac, LATER, "kernel-not-fetched", Some("kernel"), "script.ipxe handed out");
        assert_eq!(machine.get("/image/metal/vmlinuz", usize::MAX).0, 404);
        let verdict = expect(
            &bed,
            &machine.mac,
            0,
            "kernel-missing",
            Some("kernel"),
            "image/metal/vmlinuz by HTTP: not found",
        );
        assert!(verdict["remedy"][0].as_str().unwrap().contains("farrier image build deploy"), "{verdict:#}");
    });
}

#[test]
fn a_download_is_cut() {
    in_namespace("files::a_download_is_cut", || {
        let mut bed = bed("");
        bed.publish("metal", &vec![7; 300_000], &vec![7; 64 << 20]);
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        machine.script();
        assert_eq!(machine.get("/image/metal/vmlinuz", usize::MAX).0, 200);
        expect(&bed, &machine.mac, LATER, "ramdisk-not-fetched", Some("ramdisk"), "vmlinuz by HTTP");
        machine.get("/image/metal/initrd.img", 100_000);
        expect(&bed, &machine.mac, 0, "download-cut", Some("ramdisk"), "initrd.img by HTTP: ended after");
    });
}

#[test]
fn a_download_stalls() {
    in_namespace("files::a_download_stalls", || {
        let mut bed = bed("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        machine.lease(UEFI);
        machine.fetch_loader("uefi-x64/shimx64.efi");
        machine.fetch_loader("uefi-x64/grubx64.efi");
        machine.fetch_loader("grub/grub.cfg");
        machine.tftp("image/metal/vmlinuz", 1024, |block| if block < 50 { Go::On } else { Go::Silent });
        expect(&bed, &machine.mac, 0, "under-way", Some("kernel"), "grub.cfg");
        expect(&bed, &machine.mac, 0, "download-stalled", Some("kernel"), "the client stopped answering");
    });
}
