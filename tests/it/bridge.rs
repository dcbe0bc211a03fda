//! What befalls the bridge while it is served: told as it happens, kept over a restart, and blamed for what it broke.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{TestBed, eventually, in_namespace, run};

fn ip(words: &str) {
    run("ip", &words.split(' ').collect::<Vec<_>>());
}

fn told(bed: &TestBed) -> Vec<Value> {
    bed.farrier_json(&["event", "bridge"]).as_array().expect("a list").clone()
}

/// Waits until the newest event is this one.
fn newest(bed: &TestBed, event: &str) -> Value {
    eventually(event, || told(bed).pop().filter(|newest| newest["event"] == event))
}

fn readiness(bed: &TestBed) -> String {
    let socket = bed.path("operator.sock");
    let output = run("curl", &["-s", "--unix-socket", socket.to_str().unwrap(), "http://localhost/readyz"]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_outage_is_blamed_for_the_boot_it_broke_also_after_a_restart() {
    in_namespace("bridge::an_outage_is_blamed_for_the_boot_it_broke_also_after_a_restart", || {
        let mut bed = TestBed::start("");
        let machine = bed.plug("02:00:00:00:00:01");
        machine.write_udhcpc_script();
        assert!(told(&bed).is_empty(), "{:?}", told(&bed));
        // What a BIOS ROM asks: the class of PXE, its architecture, and what else it wants to know.
        let rom = ["-x", "0x5d:0000", "-V", "PXEClient:Arch:00000:UNDI:002001", "-O", "66", "-O", "67"];
        let arguments = ["-i", "eth0", "-n", "-q", "-f", "-t", "8", "-T", "1", "-s", "./udhcpc.sh"];
        machine.run("udhcpc", &[&arguments[..], &rom[..]].concat());
        ip("link set br0 down");
        let out = newest(&bed, "bridge-out");
        assert_eq!(out["fault"], "down");
        assert!(readiness(&bed).contains("bridge br0"), "{}", readiness(&bed));
        ip("link set br0 up");
        let back = newest(&bed, "bridge-back");
        assert_eq!(back["out_since"], out["at"]);
        let shown = String::from_utf8(bed.farrier(&["event", "bridge"]).stdout).unwrap();
        assert!(shown.contains("it was down for"), "{shown}");

        // Whoever starts it again finds the same, with what was down meanwhile.
        bed.signal(Signal::SIGTERM);
        assert_eq!(bed.wait_server(), Some(0));
        bed.start_server();
        assert_eq!(told(&bed), [out, back]);
        // As of a time by which nothing is waited for any more.
        let verdict = bed.farrier_json(&["why", "02:00:00:00:00:01", "--at", "2100-01-01T00:00:00Z"]);
        assert_eq!(verdict["cause"], "bridge-down", "{verdict:#}");
        assert!(verdict["headline"].as_str().unwrap().contains("br0 was down from"), "{verdict:#}");
    });
}

#[test]
fn a_default_route_that_comes_later_is_told_until_it_is_gone() {
    in_namespace("bridge::a_default_route_that_comes_later_is_told_until_it_is_gone", || {
        let mut bed = TestBed::start("");
        ip("route add default via 192.168.77.1 dev br0");
        assert_eq!(newest(&bed, "default-route")["route"], "default via 192.168.77.1");
        for said in ["default route", "default via 192.168.77.1", "allow = [\\\"default-route\\\"]"] {
            assert!(readiness(&bed).contains(said), "{said}: {}", readiness(&bed));
        }
        let status = String::from_utf8(bed.farrier(&["status"]).stdout).unwrap();
        assert!(status.contains("it carries this host's default route"), "{status}");
        ip("route del default");
        newest(&bed, "default-route-gone");
        assert!(!readiness(&bed).contains("default route"), "{}", readiness(&bed));
        bed.kill_server();

        // Whoever wrote it down is not told.
        let text = std::fs::read_to_string(bed.path("farrier.toml")).unwrap();
        let text = text.replace("[network]\n", "[network]\nallow = [\"default-route\"]\n");
        std::fs::write(bed.path("farrier.toml"), text).unwrap();
        bed.start_server();
        ip("route add default via 192.168.77.1 dev br0");
        // Something that is told comes after it.
        ip("link set br0 down");
        newest(&bed, "bridge-out");
        let routes = told(&bed).iter().filter(|event| event["event"] == "default-route").count();
        assert_eq!(routes, 1, "{:?}", told(&bed));
    });
}
