//! Beside another DHCP server: dnsmasq gives the addresses, the appliance is a proxy (`dhcp.mode`).

use std::net::Ipv4Addr;

use farrier::lab::config::LabFirmware;
use farrier::lab::plan::ProgramPlan;
use farrier::node::state::ProvisionState;
use farrier::node::timeline::{ADDRESS_ELSEWHERE, Happening, Stage};

use crate::support::{Case, config};

const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 9);

/// dnsmasq in a namespace of its own, on a cable to the lab's bridge. It makes the cable from inside, with the far end in
/// the namespace it came from.
fn dnsmasq(case: &Case) -> ProgramPlan {
    let bridge = &case.config.bridge;
    let script = format!(
        "lab=/proc/$PPID/ns/net\n\
         ip link set lo up\n\
         ip link add eth0 type veth peer name other netns $PPID\n\
         nsenter --net=$lab ip link set other addrgenmode none master {bridge} up\n\
         ip addr add {OTHER}/24 dev eth0\n\
         ip link set eth0 up\n\
         exec dnsmasq --keep-in-foreground --conf-file=/dev/null --user=root --group= --pid-file= --port=0 \
         --interface=eth0 --bind-interfaces --dhcp-range=192.168.2.100,192.168.2.150,1h --dhcp-leasefile=dnsmasq.leases \
         --dhcp-authoritative --no-ping --log-dhcp --log-facility=-"
    );
    ProgramPlan {
        name: "dnsmasq".to_owned(),
        arguments: ["unshare", "--net", "sh", "-ec", &script].map(str::to_owned).to_vec(),
        directory: case.state.root().to_owned(),
        log: case.state.root().join("dnsmasq.log"),
        takes_listener: false,
        restarts: false,
    }
}

#[test]
fn machines_that_another_server_gives_addresses_boot_from_us_to_enrolled() {
    let firmware = [LabFirmware::Bios, LabFirmware::Uefi, LabFirmware::UefiHttp];
    let case = Case::new("beside-another-server", config(&firmware, "[dhcp]\nmode = 'proxy'\n"));
    let dnsmasq = dnsmasq(&case);
    let case = case.start_with(vec![dnsmasq]).power_on();
    for machine in case.machines() {
        let (node, boot) = case.await_enrolled(machine);
        assert_eq!(node.summary.state, ProvisionState::Manageable, "{}", machine.name);
        let address = node.summary.ports[0].address.expect("the address it was heard to take");
        assert!((100..=150).contains(&address.octets()[3]), "{}: {address}, of dnsmasq's", machine.name);
        assert_eq!(boot.times.contains_key(&Stage::Loader), machine.firmware != LabFirmware::Bios);
        let mut offers = 0;
        for event in &boot.events {
            let Happening::Dhcp { answer, address, other_server, boot_file, .. } = &event.happening else {
                continue;
            };
            match answer {
                Ok(kind) if kind == "offer" => {
                    assert!(address.is_none() && boot_file.is_some(), "{event:?}");
                    offers += 1;
                }
                // UEFI may ask port 4011 as well.
                Ok(kind) => assert_eq!(kind, "ack", "{event:?}"),
                Err(reason) if reason == ADDRESS_ELSEWHERE => {
                    assert!(other_server.is_none_or(|server| server == OTHER), "{event:?}");
                }
                Err(reason) => assert_eq!(reason, "not-a-boot-client", "{event:?}"),
            }
        }
        assert!(offers > 0, "{}: {boot:?}", machine.name);
    }
}
