//! What an operator sets for one node's firmware: kept and told wherever nodes are, obeyed on the wire, for it alone.

use std::time::{Duration, Instant};

use farrier::net::MacAddr;
use serde_json::{Value, json};

use crate::dhcp::{ACK, Client, OFFER, Reply};
use crate::ground::{Ground, Group, alone, with_files};
use crate::support::{ClientMachine, SERVER, eventually, pattern, run};
use crate::tftp::{fetch, first_answer, rrq, socket};

static GROUP: Group = Group::new("quirks", "", with_files);
const RAMDISK: usize = 2_000_000;
const GRUB: &str = "uefi-x64/grubx64.efi";

/// One call of the operator API: status, ETag, document.
fn call(ground: &Ground, method: &str, path: &str, headers: &[&str], body: &Value) -> (u16, String, Value) {
    let socket = ground.bed().path("operator.sock");
    let (url, body) = (format!("http://localhost{path}"), body.to_string());
    let mut arguments =
        vec!["-sS", "-D", "-", "-X", method, "--unix-socket", socket.to_str().expect("a path")];
    if method != "GET" {
        arguments.extend(["-H", "Content-Type: application/json", "-d", &body]);
    }
    for header in headers {
        arguments.extend(["-H", header]);
    }
    arguments.push(&url);
    let text = String::from_utf8(run("curl", &arguments).stdout).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head[9..12].parse().expect("a status");
    let etag =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("etag: ").map(str::to_owned));
    (status, etag.unwrap_or_default(), serde_json::from_str(body).unwrap_or(Value::Null))
}

fn set(ground: &Ground, mac: MacAddr, quirks: &[&str]) {
    let mac = mac.to_string();
    ground.bed().farrier_json(&[&["node", "quirks", &mac], quirks].concat());
}

/// A registered machine with an address.
fn registered(ground: &Ground) -> (MacAddr, ClientMachine) {
    let mac = ground.mac();
    ground.bed().farrier_json(&["node", "add", &mac.to_string()]);
    let machine = ground.machine(mac);
    machine.boot_udhcpc();
    (mac, machine)
}

#[test]
fn p_20_quirks_are_set_by_api_and_command_line_told_everywhere_and_kept() {
    alone("", with_files, |ground| {
        let mac = ground.mac().to_string();
        ground.bed().farrier_json(&["node", "add", &mac, "--name", "dell7"]);
        let node = "/api/v1/nodes/dell7";
        let (status, first, document) = call(ground, "GET", node, &[], &Value::Null);
        assert_eq!((status, &document["quirks"]), (200, &json!({})));

        // By PATCH, if it still is what was seen.
        let wanted = json!({ "profile": "small-blocks", "windowsize_max": 1, "broadcast_replies": true });
        let patch = json!({ "quirks": wanted });
        let if_first = format!("If-Match: {first}");
        let (status, second, document) = call(ground, "PATCH", node, &[&if_first], &patch);
        assert_eq!((status, &document["quirks"]), (200, &wanted), "{document}");
        assert_ne!(first, second);
        assert_eq!(call(ground, "PATCH", node, &[&if_first], &patch).0, 412);
        let (status, again, _) = call(ground, "PATCH", node, &[], &patch);
        assert_eq!((status, &again), (200, &second), "the same once more is no change");
        for wrong in [
            json!({ "quirks": { "blksize_max": 511 } }),
            json!({ "quirks": { "windowsize_max": 0 } }),
            json!({ "quirks": { "rate_mbps_max": 10_001 } }),
            json!({ "quirks": { "profile": "dell" } }),
            json!({ "quirks": { "blksize": 1024 } }),
            json!({ "quirks": null, "blksize_max": 1024 }),
        ] {
            let (status, _, problem) = call(ground, "PATCH", node, &[], &wrong);
            assert!([400, 422].contains(&status), "{wrong}: {problem}");
        }
        assert_eq!(
            call(ground, "GET", node, &[], &Value::Null).1,
            second,
            "what was refused changed nothing"
        );

        // By PUT: left out they stay, named they are all there is.
        let ports = json!([{ "mac": mac }]);
        let (status, _, document) = call(ground, "PUT", node, &[], &json!({ "ports": ports }));
        assert_eq!((status, &document["quirks"]), (200, &wanted));
        let put = json!({ "ports": ports, "quirks": { "rate_mbps_max": 50 } });
        let (status, _, document) = call(ground, "PUT", node, &[], &put);
        assert_eq!((status, &document["quirks"]), (200, &json!({ "rate_mbps_max": 50 })));
        let new = json!({ "ports": [{ "mac": "52:54:00:c0:77:77" }], "quirks": { "shim_fallback": true } });
        let (status, _, document) = call(ground, "PUT", "/api/v1/nodes/wyse1", &[], &new);
        assert_eq!((status, &document["quirks"]), (201, &json!({ "shim_fallback": true })));

        // By the command line, and shown by it.
        let bed = ground.bed();
        let quirks =
            ["node", "quirks", "dell7", "--profile", "stalls-on-fast-links", "--blksize-max", "1400"];
        let set = json!({ "profile": "stalls-on-fast-links", "blksize_max": 1400 });
        assert_eq!(bed.farrier_json(&quirks)["quirks"], set);
        let said = |arguments: &[&str]| String::from_utf8(bed.farrier(arguments).stdout).expect("text");
        let effects = ["stalls-on-fast-links", "at most 1400 bytes", "one block at a time", "100 Mbit/s"];
        let explained = ["explain", "--mac", mac.as_str(), "--firmware", "uefi"];
        for shown in [&["node", "quirks", "dell7"][..], &["node", "show", "dell7"], &explained] {
            let text = said(shown);
            assert!(effects.iter().all(|effect| text.contains(effect)), "{shown:?}: {text}");
        }
        assert!(said(&explained).contains(", blocks of 1400 bytes at most"));
        assert!(!bed.farrier(&["node", "quirks", "dell7", "--blksize-max", "9"]).status.success());

        // On the timeline and in the audit, with before and after.
        let events = bed.farrier_json(&["event", "list", "dell7", "--boot", "0"]);
        let events = events[0]["events"].as_array().expect("events").iter();
        let noted: Vec<&Value> =
            events.filter(|event| event["event"] == "quirks-set").map(|event| &event["quirks"]).collect();
        assert_eq!(noted, [&wanted, &json!({ "rate_mbps_max": 50 }), &set]);
        let audit = bed.farrier_json(&["audit"]);
        let entry = &audit[0];
        assert_eq!((&entry["action"], &entry["subject"]), (&json!("node.edit"), &json!("dell7")));
        assert_eq!(entry["before"]["quirks"], json!({ "rate_mbps_max": 50 }));
        assert_eq!(entry["after"]["quirks"], set);
        drop(bed);

        // After a crash as before it; and taken away.
        let mut bed = ground.bed();
        bed.kill_server();
        bed.start_server();
        assert_eq!(bed.farrier_json(&["node", "show", "dell7"])["node"]["quirks"], set);
        assert_eq!(bed.farrier_json(&["node", "quirks", "dell7", "--none"])["quirks"], json!({}));
        assert_eq!(
            bed.farrier_json(&["node", "show", "wyse1"])["node"]["quirks"],
            json!({ "shim_fallback": true })
        );
        drop(bed);
        ground.booted();
    });
}

#[test]
fn p_20_a_node_deaf_to_unicast_is_answered_by_broadcast() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mac = ground.mac();
        ground.bed().farrier_json(&["node", "add", &mac.to_string()]);
        let mut client = Client::new(&station, mac);
        let to_everybody = |reply: &Reply| {
            let flagged = reply.flags & 0x8000 != 0;
            assert_eq!(reply.frame.destination.0.is_broadcast(), flagged);
            assert_eq!(reply.frame.to, if flagged { MacAddr([0xff; 6]) } else { mac });
            flagged
        };
        assert!(!to_everybody(&client.offer()), "nothing asks for it yet");
        for quirks in [&["--broadcast-replies"][..], &["--profile", "deaf-to-unicast"]] {
            set(ground, mac, quirks);
            let offer = client.offer();
            let request = client.selecting(offer.yiaddr);
            let ack = client.ask(&request);
            assert_eq!((offer.kind, ack.kind), (OFFER, ACK));
            assert!(to_everybody(&offer) && to_everybody(&ack));
        }
        let mut other = Client::new(&station, ground.mac());
        assert_eq!(other.offer().flags & 0x8000, 0, "others are answered as they ask");
        set(ground, mac, &["--none"]);
        assert!(!to_everybody(&client.offer()));
    });
}

#[test]
fn p_20_blocks_and_windows_are_capped_for_this_node_alone() {
    GROUP.check(|ground| {
        let ((mac, machine), (_, other)) = (registered(ground), registered(ground));
        let asked = [("blksize", "1468"), ("windowsize", "16"), ("tsize", "0")];
        let granted = |machine: &ClientMachine| {
            let oack = first_answer(machine, &rrq("image/metal/initrd.img", &asked));
            assert_eq!(oack[..2], [0, 6], "{}", oack.escape_ascii());
            let words: Vec<String> = oack[2..]
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            let value =
                |name: &str| words.iter().position(|word| word == name).map(|at| words[at + 1].clone());
            (value("blksize"), value("windowsize"))
        };
        let is = |blksize: &str, windowsize: Option<&str>| {
            (Some(blksize.to_owned()), windowsize.map(str::to_owned))
        };
        assert_eq!(granted(&machine), is("1468", Some("16")));
        for (quirks, blksize, windowsize) in [
            (&["--profile", "small-blocks"][..], "1024", Some("16")),
            (&["--blksize-max", "512", "--windowsize-max", "4"], "512", Some("4")),
            (&["--windowsize-max", "1"], "1468", None),
            (&["--windowsize-max", "64"], "1468", Some("16")),
        ] {
            set(ground, mac, quirks);
            assert_eq!(granted(&machine), is(blksize, windowsize), "{quirks:?}");
        }
        set(ground, mac, &["--profile", "small-blocks", "--windowsize-max", "2"]);
        let whole = fetch(&socket(&machine), "image/metal/vmlinuz", &asked, 2);
        assert!(whole == pattern(300_000), "bit for bit");
        assert_eq!(granted(&other), is("1468", Some("16")));
    });
}

#[test]
fn p_20_a_garbled_name_beside_shim_is_its_second_stage_for_this_node_alone() {
    GROUP.check(|ground| {
        let ((mac, machine), (_, other)) = (registered(ground), registered(ground));
        let garbled = |name: &[u8]| [b"\0\x01uefi-x64/", name, b"\0octet\0"].concat();
        let grub = pattern(60_000 + GRUB.len());
        let names = [&b"\xb5\x01Onboard NIC"[..], b"?USB"];
        let refused = |machine: &ClientMachine, request: &[u8]| {
            let answer = first_answer(machine, request);
            assert_eq!(answer[..4], [0, 5, 0, 1], "{}", answer.escape_ascii());
        };
        names.iter().for_each(|name| refused(&machine, &garbled(name)));
        set(ground, mac, &["--profile", "garbled-shim-names"]);
        for name in names {
            let answer = first_answer(&machine, &garbled(name));
            assert_eq!(answer[..4], [0, 3, 0, 1], "{}", answer.escape_ascii());
            assert!(answer[4..] == grub[..512]);
        }
        let url = format!("http://{SERVER}/uefi-x64/%b5Onboard%20NIC");
        machine.run("curl", &["-sS", "-f", "-o", "got", &url]);
        assert!(machine.read("got") == grub);
        // What shim looks for and may do without is still not there, and nothing is for others.
        for probe in ["uefi-x64/revocations.efi", "uefi-x64/shim_certificate_0.efi", "oader/revocations.efi"]
        {
            refused(&machine, &rrq(probe, &[]));
        }
        names.iter().for_each(|name| refused(&other, &garbled(name)));
        let told = ground.bed().farrier_json(&["event", "list", &mac.to_string()]).to_string();
        assert!(told.contains(GRUB), "the timeline names what was sent: {told}");
    });
}

#[test]
fn p_20_files_are_sent_no_faster_than_a_node_takes_them() {
    GROUP.check(|ground| {
        let (mac, machine) = registered(ground);
        set(ground, mac, &["--rate-mbps-max", "16"]);
        let at_rate = Duration::from_secs_f64(RAMDISK as f64 / 2e6);
        let timed = |work: &(dyn Fn() + Sync)| {
            let began = Instant::now();
            work();
            began.elapsed()
        };
        let by_http = || {
            machine.run(
                "curl",
                &["-sS", "-f", "-o", "by-http", &format!("http://{SERVER}/image/metal/initrd.img")],
            );
            assert!(machine.read("by-http") == pattern(RAMDISK));
        };
        let by_tftp = || {
            let options = [("blksize", "1468"), ("windowsize", "16")];
            assert!(fetch(&socket(&machine), "image/metal/initrd.img", &options, 16) == pattern(RAMDISK));
        };
        // A few milliseconds' worth leaves at once, and what the clocks of two programs differ.
        let (one, other) = (timed(&by_http), timed(&by_tftp));
        assert!(one > at_rate * 9 / 10 && other > at_rate * 9 / 10, "{one:?}, {other:?}");
        let both = timed(&|| {
            std::thread::scope(|scope| {
                scope.spawn(by_http);
                by_tftp();
            });
        });
        assert!(both > at_rate * 2 * 9 / 10, "by two ways at once: {both:?}");
        set(ground, mac, &["--none"]);
        let free = eventually("a quicker one, for what was begun ends as it began", || {
            let took = timed(&by_http);
            (took < at_rate).then_some(took)
        });
        assert!(free < one);
    });
}

#[test]
fn replies_dissect_without_a_mark() {
    GROUP.dissect();
}
