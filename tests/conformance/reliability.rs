//! Starting with much on record, and telling the truth about what was not answered.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::dhcp::*;
use crate::ground::{Group, alone, with_files, with_nothing};
use crate::leases::{store_leases, stored_mac};
use crate::station::PATIENCE;
use crate::support::{SERVER, eventually};

static GROUP: Group = Group::new("reliability", "", with_files);
const LEASES: u32 = 50_000;

#[test]
fn r_08_fifty_thousand_leases_are_no_reason_to_start_slowly() {
    alone("[dhcp]\npool = \"192.168.78.0-192.168.255.254\"\n", with_nothing, |ground| {
        let mut bed = ground.bed();
        bed.signal(nix::sys::signal::Signal::SIGTERM);
        bed.wait_server();
        let first = Ipv4Addr::new(192, 168, 50, 0);
        store_leases(&bed, first, LEASES);
        let began = Instant::now();
        bed.start_server();
        let took = began.elapsed();
        drop(bed);
        println!("{LEASES} leases: ready after {took:?}");
        // One second is the promise; this machine is shared and the build has no optimisation.
        assert!(took < Duration::from_secs(6), "{took:?}");
        let station = ground.station();
        // Of those the pool covers.
        for number in [LEASES / 4, LEASES / 2, LEASES - 1] {
            let mut client = Client::new(&station, stored_mac(number));
            assert_eq!(client.offer().yiaddr, Ipv4Addr::from(u32::from(first) + number));
        }
    });
}

#[test]
fn r_16_whatever_is_not_answered_is_counted_and_told_with_its_reason() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let bound = client.bind().yiaddr;
        let mut sent: Vec<(&str, Vec<u8>)> = Vec::new();
        let good = client.message(DISCOVER);
        sent.push(("truncated", good.bytes()[..100].to_vec()));
        let change = |at: usize, value: u8| {
            let mut bytes = good.bytes();
            bytes[at] = value;
            bytes
        };
        sent.push(("bad-operation", change(0, 9)));
        sent.push(("bad-hardware-address", change(2, 5)));
        sent.push(("bootp", change(236, 0)));
        sent.push(("unknown-message", change(242, 10)));
        sent.push(("discover-names-server", good.clone().with(54, SERVER.octets()).bytes()));
        sent.push((
            "other-server",
            client.message(REQUEST).with(50, bound.octets()).with(54, [9, 9, 9, 9]).bytes(),
        ));
        sent.push(("decline-unfounded", client.message(DECLINE).with(54, SERVER.octets()).bytes()));
        sent.push(("release-unfounded", client.message(RELEASE).with(54, SERVER.octets()).bytes()));
        sent.push(("inform-without-address", client.message(INFORM).bytes()));
        for (_, bytes) in &sent {
            client.send_bytes(bytes, NOWHERE);
        }
        for (reason, _) in &sent {
            eventually(reason, || (ground.counted("dhcp", reason) >= 1).then_some(()));
            assert!(ground.bed().log().contains(reason), "{reason} is not in the log");
        }
        // NAKs, and what files end in.
        let wrong = client.message(REQUEST).with(50, [10, 0, 0, 1]);
        assert_eq!(client.ask(&wrong).kind, NAK);
        let machine = ground.booted();
        machine.output("curl", &["-sS", "-o", "got", &format!("tftp://{SERVER}/nothing-here")]);
        machine.run("curl", &["-sS", "-o", "got", &format!("http://{SERVER}/nothing-here")]);
        for (service, outcome) in [("dhcp", "nak"), ("tftp", "not-found"), ("http", "not-found")] {
            let counted =
                eventually(outcome, || Some(ground.counted(service, outcome)).filter(|count| *count > 0));
            assert!(counted > 0, "{service} {outcome}");
        }
        // And for monitoring the same words.
        let socket = ground.bed().path("operator.sock");
        let metrics = std::process::Command::new("curl")
            .args(["-sS", "--unix-socket"])
            .arg(&socket)
            .arg("http://localhost/metrics")
            .output()
            .expect("curl");
        let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
        let words: BTreeSet<&str> = sent.iter().map(|(reason, _)| *reason).collect();
        for word in words {
            assert!(metrics.contains(&format!("outcome=\"{word}\"")), "{word} in {metrics}");
        }
    });
}

#[test]
fn r_16_readiness_follows_what_can_be_served() {
    alone("", with_files, |ground| {
        let ready = || {
            let output = std::process::Command::new("curl")
                .args(["-sS", "-w", "%{http_code}", "--unix-socket"])
                .arg(ground.bed().path("operator.sock"))
                .arg("http://localhost/readyz")
                .output()
                .expect("curl");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let until = |code: &str, word: &str| {
            let began = Instant::now();
            loop {
                let told = ready();
                if told.ends_with(code) && told.contains(word) {
                    return;
                }
                assert!(began.elapsed() < PATIENCE, "{word} {code}: {told}");
                std::thread::yield_now();
            }
        };
        until("200", "\"ok\":true");
        crate::support::run("ip", &["link", "set", "br0", "down"]);
        until("503", "br0");
        crate::support::run("ip", &["link", "set", "br0", "up"]);
        until("200", "\"ok\":true");
        ground.booted();
    });
}

#[test]
fn replies_dissect_without_a_mark() {
    GROUP.dissect();
}
