//! What ends a boot before a file is asked for.

use std::net::{Ipv4Addr, UdpSocket};

use crate::machine::{BIOS, ITANIUM, LATER, Machine, SYSTEM, UEFI_IA32, bed, expect, why};
use crate::support::{SERVER, eventually, in_namespace, run};

#[test]
fn a_machine_nobody_registered_is_ignored() {
    in_namespace("dhcp::a_machine_nobody_registered_is_ignored", || {
        let mut bed = bed("[dhcp]\nunknown = \"ignore\"");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        assert!(machine.discover(BIOS).is_none(), "no answer");
        let verdict = expect(&bed, &machine.mac, 0, "unknown-mac", Some("dhcp"), "not answered: unknown-mac");
        assert_eq!(verdict["node"], serde_json::Value::Null, "a stranger stays one");
        let headline = verdict["headline"].as_str().unwrap();
        assert!(headline.contains("ignored by policy") && headline.contains(" s ago"), "{headline}");
        let remedy = verdict["remedy"][0].as_str().unwrap();
        assert!(remedy.contains(&format!("farrier node add {}", machine.mac)), "{remedy}");
        // The command mends it.
        assert!(bed.farrier(&["node", "add", &machine.mac]).status.success());
        let verdict = expect(&bed, &machine.mac, 0, "never-heard", None, "not answered: unknown-mac");
        assert!(verdict["headline"].as_str().unwrap().contains("since it was registered"), "{verdict:#}");
        machine.offered(BIOS);
        expect(&bed, &machine.mac, 0, "under-way", Some("dhcp"), "answered with OFFER");
    });
}

#[test]
fn a_machine_that_was_never_heard_is_no_error() {
    in_namespace("dhcp::a_machine_that_was_never_heard_is_no_error", || {
        let mut bed = bed("");
        bed.start_server();
        let _machine = Machine::plug(&mut bed, 1);
        expect(&bed, "52:54:00:00:07:77", 0, "never-heard", None, "heard at none of the bridge's 1 ports");
        let unknown = bed.farrier(&["why", "no-such-node"]);
        assert_eq!(unknown.status.code(), Some(3));
        assert!(bed.farrier(&["node", "add", "52:54:00:00:07:77", "--name", "late"]).status.success());
        let text = String::from_utf8(bed.farrier(&["why", "late"]).stdout).unwrap();
        assert!(text.contains("nothing was ever heard") && text.contains("WHAT TO DO"), "{text}");
        assert_eq!(bed.farrier(&["why", "late", "--boot", "3"]).status.code(), Some(3));
        bed.kill_server();
        assert_eq!(bed.farrier(&["why", "late"]).status.code(), Some(5));
    });
}

#[test]
fn a_machine_takes_the_offer_of_another_server() {
    in_namespace("dhcp::a_machine_takes_the_offer_of_another_server", || {
        let mut bed = bed("");
        bed.start_server();
        let rival = bed.plug("02:00:00:00:00:99");
        let address = Ipv4Addr::new(192, 168, 77, 9);
        rival.run("ip", &["addr", "add", "192.168.77.9/24", "dev", "eth0"]);
        // A bridge takes the lowest MAC of its ports, and forgets its neighbours when that changes: plug first.
        let mut machine = Machine::plug(&mut bed, 1);
        // It says something to the appliance, so that the appliance knows its MAC.
        rival.inside(|| UdpSocket::bind((address, 0)).unwrap().send_to(b"here", (SERVER, 9)).unwrap());
        eventually("the appliance knows its MAC", || {
            let told = run("ip", &["neigh", "show", "192.168.77.9", "dev", "br0"]);
            String::from_utf8_lossy(&told.stdout).contains("02:00:00:00:00:99").then_some(())
        });
        machine.offered(BIOS);
        let theirs = Ipv4Addr::new(192, 168, 77, 50);
        assert!(machine.request(BIOS, theirs, address).is_none(), "not ours to answer");
        let verdict = expect(&bed, &machine.mac, 0, "other-server-won", Some("dhcp"), "192.168.77.9");
        let headline = verdict["headline"].as_str().unwrap();
        assert!(headline.contains("192.168.77.9 (02:00:00:00:00:99)"), "{headline}");
    });
}

#[test]
fn an_offer_is_never_requested() {
    in_namespace("dhcp::an_offer_is_never_requested", || {
        let mut bed = bed("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        machine.offered(BIOS);
        expect(&bed, &machine.mac, 0, "under-way", Some("dhcp"), "answered with OFFER");
        expect(&bed, &machine.mac, LATER, "offer-not-requested", Some("dhcp"), "answered with OFFER");
    });
}

#[test]
fn an_address_is_declined() {
    in_namespace("dhcp::an_address_is_declined", || {
        let mut bed = bed("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        let ack = machine.lease(BIOS);
        machine.decline(BIOS, ack.address);
        let verdict =
            expect(&bed, &machine.mac, LATER, "address-in-use", Some("dhcp"), "not answered: declined");
        assert!(verdict["headline"].as_str().unwrap().contains(&ack.address.to_string()), "{verdict:#}");
        for _ in 0..2 {
            let ack = machine.lease(BIOS);
            machine.decline(BIOS, ack.address);
        }
        assert!(machine.discover(BIOS).is_none(), "three are enough");
        expect(&bed, &machine.mac, 0, "too-many-declines", Some("dhcp"), "not answered: too-many-declines");
    });
}

#[test]
fn an_address_is_refused() {
    in_namespace("dhcp::an_address_is_refused", || {
        let mut bed = bed("");
        bed.start_server();
        let (mut one, mut other) = (Machine::plug(&mut bed, 1), Machine::plug(&mut bed, 2));
        let taken = one.lease(BIOS).address;
        other.offered(BIOS);
        // It asks for what another has: a NAK, and it is not heard again.
        assert_eq!(other.request(BIOS, taken, SERVER).unwrap().kind, 6);
        expect(&bed, &other.mac, LATER, "address-refused", Some("dhcp"), "answered with NAK");
    });
}

#[test]
fn the_pool_is_exhausted() {
    in_namespace("dhcp::the_pool_is_exhausted", || {
        let mut bed = bed("[dhcp]\npool = \"192.168.77.100-192.168.77.100\"");
        bed.start_server();
        let (mut first, mut second) = (Machine::plug(&mut bed, 1), Machine::plug(&mut bed, 2));
        first.lease(BIOS);
        assert!(second.discover(BIOS).is_none(), "nothing is left");
        expect(&bed, &second.mac, 0, "pool-exhausted", Some("dhcp"), "not answered: pool-exhausted");
    });
}

#[test]
fn an_operating_system_is_no_boot() {
    in_namespace("dhcp::an_operating_system_is_no_boot", || {
        let mut bed = bed("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        machine.lease(SYSTEM);
        expect(&bed, &machine.mac, LATER, "no-netboot", Some("dhcp"), "an operating system");
    });
}

#[test]
fn there_is_no_loader_for_its_firmware() {
    in_namespace("dhcp::there_is_no_loader_for_its_firmware", || {
        let mut bed = bed("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        assert_eq!(machine.lease(UEFI_IA32).boot_file, None);
        let verdict = expect(&bed, &machine.mac, 0, "loader-not-installed", Some("loader"), "no-loader");
        assert!(verdict["headline"].as_str().unwrap().contains("ipxe-i386.efi"), "{verdict:#}");
        let mut machine = Machine::plug(&mut bed, 2);
        assert_eq!(machine.lease(ITANIUM).boot_file, None);
        expect(&bed, &machine.mac, 0, "unknown-firmware", Some("loader"), "unknown-firmware");
        let _ = why(&bed, &machine.mac, 0);
    });
}
