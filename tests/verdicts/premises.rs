//! What no event can tell: the bridge and its ports.

use crate::machine::{BIOS, LATER, Machine, bed, expect};
use crate::support::{eventually, in_namespace, run};

#[test]
fn the_bridge_is_down() {
    in_namespace("premises::the_bridge_is_down", || {
        let mut bed = bed("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        machine.lease(BIOS);
        run("ip", &["link", "set", "br0", "down"]);
        let verdict =
            expect(&bed, &machine.mac, LATER, "bridge-down", Some("loader"), "the bridge br0 is down");
        assert!(verdict["remedy"][0].as_str().unwrap().contains("ip link set br0 up"), "{verdict:#}");
        expect(&bed, "52:54:00:00:07:77", 0, "bridge-down", None, "the bridge br0 is down");
        run("ip", &["link", "set", "br0", "up"]);
        expect(&bed, &machine.mac, LATER, "loader-not-fetched", Some("loader"), "undionly.kpxe");
        run("ip", &["addr", "del", "192.168.77.2/24", "dev", "br0"]);
        expect(&bed, &machine.mac, LATER, "bridge-down", Some("loader"), "does not carry 192.168.77.2/24");
        run("ip", &["link", "del", "br0"]);
        expect(&bed, &machine.mac, LATER, "bridge-down", Some("loader"), "the bridge br0 is gone");
    });
}

#[test]
fn a_port_does_not_forward() {
    in_namespace("premises::a_port_does_not_forward", || {
        let mut bed = bed("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        let port_is = |state: &str| {
            let told = run("bridge", &["link", "show", "dev", "port1"]);
            String::from_utf8_lossy(&told.stdout).contains(state).then_some(())
        };
        // The bridge lets it forward once it has carrier. Listening is what spanning tree has it do for its first seconds.
        eventually("the port forwards", || port_is("state forwarding"));
        run("bridge", &["link", "set", "dev", "port1", "state", "1"]);
        eventually("the port listens", || port_is("state listening"));
        assert!(machine.discover(BIOS).is_none(), "nothing passes");
        let verdict = expect(&bed, &machine.mac, 0, "port-not-forwarding", None, "port port1 is listening");
        assert!(verdict["remedy"].to_string().contains("stp_state 0"), "{verdict:#}");
        run("bridge", &["link", "set", "dev", "port1", "state", "3"]);
        machine.offered(BIOS);
        expect(&bed, &machine.mac, LATER, "offer-not-requested", Some("dhcp"), "OFFER");
    });
}
