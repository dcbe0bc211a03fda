//! `farrier doctor`: each fault that can be made in a namespace is made, found, mended by `--fix`, and gone.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{ClientMachine, Process, TestBed, eventually, in_namespace, run};

/// A bridge with a machine on it, and kernel and ramdisk to boot: nothing is wrong that matters.
fn healthy() -> (TestBed, ClientMachine) {
    let mut bed = TestBed::new("");
    let machine = bed.plug("52:54:00:00:00:01");
    bed.publish("metal", b"kernel", b"ramdisk");
    // The host's setting, where the kernel has it; it is not ours to mend.
    let _ = fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
    (bed, machine)
}

struct Diagnosis {
    code: i32,
    document: Value,
    said: String,
}

impl Diagnosis {
    /// The worst severity of a check.
    fn severity(&self, check: &str) -> &str {
        let order = ["ok", "warning", "would-not-boot"];
        let findings = self.document["findings"].as_array().expect("findings");
        let of_check = findings.iter().filter(|finding| finding["check"] == check);
        let worst = of_check.filter_map(|finding| finding["severity"].as_str());
        worst
            .max_by_key(|word| order.iter().position(|known| known == word))
            .expect("the check says something")
    }

    fn text(&self, check: &str) -> String {
        let findings = self.document["findings"].as_array().expect("findings");
        let of_check = findings.iter().filter(|finding| finding["check"] == check);
        of_check.map(Value::to_string).collect::<Vec<_>>().join("\n")
    }
}

/// Without asking for rivals, which takes four seconds where there are none.
fn doctor(bed: &TestBed, more: &[&str]) -> Diagnosis {
    asking_doctor(bed, &[&["--no-probe"], more].concat())
}

fn asking_doctor(bed: &TestBed, more: &[&str]) -> Diagnosis {
    let config = bed.path("farrier.toml");
    let arguments =
        [&["doctor", "--no-lab", "--json", "--config", config.to_str().expect("UTF-8")], more].concat();
    let output = bed.farrier(&arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let document = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    Diagnosis { code: output.status.code().expect("an exit code"), document, said }
}

/// Makes a fault with `ip` or `nft`, sees it found, mended and gone.
fn made_found_mended(bed: &TestBed, check: &str, severity: &str, fault: &[&[&str]]) {
    for words in fault {
        run(words[0], &words[1..]);
    }
    let found = doctor(bed, &[]);
    assert_eq!(found.severity(check), severity, "{fault:?}: {:#}", found.document);
    assert_eq!(found.code, i32::from(severity == "would-not-boot"), "{fault:?}: {:#}", found.document);
    assert_eq!(found.document["mended"], Value::Array(Vec::new()), "nothing is done unasked");
    let mended = doctor(bed, &["--fix"]);
    assert_eq!((mended.severity(check), mended.code), ("ok", 0), "{fault:?}: {:#}", mended.document);
    for done in mended.document["mended"].as_array().expect("mends") {
        assert_eq!(done["done"], true, "{done}");
        let command = done["command"].as_str().expect("a command");
        assert!(mended.said.contains(command), "{command} was not said: {}", mended.said);
    }
    let after = doctor(bed, &[]);
    assert_eq!((after.severity(check), after.code), ("ok", 0), "{fault:?}: {:#}", after.document);
}

#[test]
fn every_fault_is_found_and_mended() {
    in_namespace("doctor::every_fault_is_found_and_mended", || {
        let (bed, _machine) = healthy();
        let fixed = doctor(&bed, &["--fix"]);
        assert_eq!(
            (fixed.code, &fixed.document["would_boot"]),
            (0, &Value::Bool(true)),
            "{:#}",
            fixed.document
        );
        let set = ["ip", "link", "set", "br0", "type", "bridge"];
        for (check, severity, fault) in [
            ("bridge", "would-not-boot", vec![vec!["ip", "link", "set", "br0", "down"]]),
            ("address", "would-not-boot", vec![vec!["ip", "addr", "flush", "dev", "br0"]]),
            (
                "spanning-tree",
                "would-not-boot",
                vec![
                    [set.as_slice(), &["stp_state", "1"]].concat(),
                    [set.as_slice(), &["forward_delay", "1500"]].concat(),
                ],
            ),
            ("bridge-netfilter", "warning", vec![[set.as_slice(), &["nf_call_iptables", "1"]].concat()]),
            ("bridge-ports", "would-not-boot", vec![vec!["ip", "link", "set", "port1", "down"]]),
            (
                "checksums",
                "warning",
                vec![
                    vec!["ip", "link", "add", "port9", "type", "veth", "peer", "name", "far9"],
                    vec!["ip", "link", "set", "far9", "up"],
                    vec!["ip", "link", "set", "port9", "master", "br0", "up"],
                ],
            ),
        ] {
            let fault: Vec<&[&str]> = fault.iter().map(Vec::as_slice).collect();
            made_found_mended(&bed, check, severity, &fault);
        }
    });
}

#[test]
fn a_bridge_that_is_missing_is_made() {
    in_namespace("doctor::a_bridge_that_is_missing_is_made", || {
        let (bed, _machine) = healthy();
        run("ip", &["link", "del", "br0"]);
        let found = doctor(&bed, &[]);
        assert_eq!((found.severity("bridge"), found.code), ("would-not-boot", 1));
        let mended = doctor(&bed, &["--fix"]);
        assert_eq!((mended.severity("bridge"), mended.severity("address"), mended.code), ("ok", "ok", 0));
        assert_eq!(
            mended.severity("bridge-ports"),
            "warning",
            "which port the machines are on, nobody knows"
        );
    });
}

#[test]
fn rules_that_eat_a_boot_are_found_and_outdone() {
    in_namespace("doctor::rules_that_eat_a_boot_are_found_and_outdone", || {
        let (bed, machine) = healthy();
        let rules = "table inet filter {\n chain input {\n type filter hook input priority 0; policy drop;\n \
                     iifname \"lo\" accept\n }\n chain output {\n type filter hook output priority 0; policy accept;\n \
                     udp sport { 67, 69 } drop\n }\n}\ntable ip raw {\n chain pre {\n \
                     type filter hook prerouting priority -300; policy accept;\n udp dport 67 drop\n }\n}\n";
        let file = bed.path("rules.nft");
        fs::write(&file, rules).expect("rules");
        made_found_mended(
            &bed,
            "firewall",
            "would-not-boot",
            &[&["nft", "-f", file.to_str().expect("UTF-8")]],
        );
        let listed = String::from_utf8(run("nft", &["list", "ruleset"]).stdout).expect("text");
        assert!(listed.contains("policy drop"), "what was not in the way stays: {listed}");
        let rules: Vec<&str> =
            listed.lines().filter(|line| line.contains("accept") && line.contains("br0")).collect();
        assert!(!rules.is_empty() && rules.iter().all(|rule| rule.contains("ifname \"br0\"")), "{listed}");
        // The proof: a client gets its address through these rules.
        let mut bed = bed;
        bed.start_server();
        machine.boot_udhcpc();
    });
}

#[test]
fn whoever_has_our_port_is_named() {
    in_namespace("doctor::whoever_has_our_port_is_named", || {
        let (mut bed, _machine) = healthy();
        let config = bed.path("rival.conf");
        fs::write(&config, "port=0\ninterface=br0\nbind-interfaces\ndhcp-range=192.168.77.50,192.168.77.60,1h\nleasefile-ro\nuser=root\n")
            .expect("a configuration");
        let rival = Command::new("dnsmasq")
            .args(["--keep-in-foreground", "--pid-file", &format!("--conf-file={}", config.display())])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("dnsmasq");
        let rival = Process(rival);
        let found = eventually("dnsmasq has the port", || {
            Some(doctor(&bed, &[])).filter(|found| found.severity("sockets") == "would-not-boot")
        });
        assert_eq!(found.code, 1);
        let text = found.text("sockets");
        assert!(text.contains("DHCP (udp 67) is taken by dnsmasq"), "{text}");
        assert!(text.contains(config.to_str().expect("UTF-8")), "{text}");
        // Another program is not ours to end.
        let left = doctor(&bed, &["--fix"]);
        assert_eq!((left.severity("sockets"), left.code), ("would-not-boot", 1));
        drop(rival);
        assert_eq!(doctor(&bed, &[]).severity("sockets"), "ok");
        bed.start_server();
        let ours = doctor(&bed, &[]);
        assert!(ours.text("sockets").contains("farrier serves"), "{:#}", ours.document);
        assert_eq!(ours.code, 0, "{:#}", ours.document);
    });
}

#[test]
fn a_rival_is_heard_unless_nobody_is_to_be_asked() {
    in_namespace("doctor::a_rival_is_heard_unless_nobody_is_to_be_asked", || {
        let (mut bed, machine) = healthy();
        // Our own appliance is no rival.
        bed.start_server();
        let alone = asking_doctor(&bed, &["--probe"]);
        assert!(alone.text("other-dhcp").contains("no other DHCP server answers"), "{:#}", alone.document);
        assert_eq!(alone.code, 0, "{:#}", alone.document);
        machine.run("ip", &["addr", "add", "192.168.77.99/24", "dev", "eth0"]);
        let rival = machine
            .command(
                "dnsmasq",
                &[
                    "--keep-in-foreground",
                    "--port=0",
                    "--interface=eth0",
                    "--bind-interfaces",
                    "--user=root",
                    "--conf-file=/dev/null",
                    "--leasefile-ro",
                    "--pid-file",
                    "--no-ping",
                    "--dhcp-range=192.168.77.50,192.168.77.60,1h",
                ],
            )
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("dnsmasq");
        let _rival = Process(rival);
        let found = eventually("the rival answers", || {
            Some(asking_doctor(&bed, &["--probe"]))
                .filter(|found| found.severity("other-dhcp") == "would-not-boot")
        });
        let text = found.text("other-dhcp");
        assert!(text.contains("192.168.77.99 at 52:54:00:00:00:01, offering 192.168.77."), "{text}");
        assert_eq!(found.code, 1);
        // What the appliance knows is taken as it is; it has asked as well, and knows where the server is.
        let known = eventually("the appliance knows it", || {
            let status = bed.farrier_json(&["status"]);
            let known = status["rivals"].as_array().is_some_and(|rivals| !rivals.is_empty());
            let settled = status["uptime_secs"].as_u64().is_some_and(|seconds| seconds >= 5);
            (known && settled).then(|| asking_doctor(&bed, &[]))
        });
        let text = known.text("other-dhcp");
        assert!(text.contains("192.168.77.99") && !text.contains("offering"), "{text}");
        assert!(text.contains("dnsmasq") || text.contains("behind port port1"), "where it is: {text}");
        assert_eq!(known.code, 1);
        // Without an appliance it is asked by itself; and if nobody is to be asked, nothing is known.
        bed.kill_server();
        let asked = asking_doctor(&bed, &[]);
        assert!(asked.text("other-dhcp").contains("offering 192.168.77."), "{:#}", asked.document);
        assert_eq!(asked.code, 1);
        let unasked = doctor(&bed, &[]);
        assert_eq!((unasked.severity("other-dhcp"), unasked.code), ("warning", 0));
        assert!(unasked.text("other-dhcp").contains("leave out --no-probe"), "{:#}", unasked.document);
    });
}

#[test]
fn what_serve_refuses_is_no_place_to_boot_from_unless_it_is_allowed() {
    in_namespace("doctor::what_serve_refuses_is_no_place_to_boot_from_unless_it_is_allowed", || {
        let (bed, _machine) = healthy();
        let fixed = doctor(&bed, &["--fix"]);
        assert_eq!(fixed.code, 0, "{:#}", fixed.document);
        let config = std::fs::read_to_string(bed.path("farrier.toml")).expect("the configuration");
        let allow = |words: &str| {
            let text = config.replacen("[network]\n", &format!("[network]\nallow = [{words}]\n"), 1);
            fs::write(bed.path("farrier.toml"), text).expect("the configuration");
        };
        let sockets_free = |found: &Diagnosis| found.text("sockets").contains("free: udp 67");
        run("ip", &["route", "add", "default", "via", "192.168.77.1", "dev", "br0"]);
        let refused = doctor(&bed, &[]);
        assert_eq!((refused.severity("shared-network"), refused.code), ("would-not-boot", 1));
        assert!(refused.text("shared-network").contains("via 192.168.77.1"), "{:#}", refused.document);
        // Where nothing may be served nothing is sent either.
        let asked = asking_doctor(&bed, &[]);
        assert!(asked.text("other-dhcp").contains("nobody was asked"), "{:#}", asked.document);
        allow("\"default-route\"");
        let allowed = doctor(&bed, &[]);
        assert_eq!((allowed.severity("shared-network"), allowed.code), ("warning", 0));
        assert!(sockets_free(&allowed), "{:#}", allowed.document);
        run("ip", &["route", "del", "default"]);

        // The machine's own port, without a bridge.
        run("ip", &["link", "del", "br0"]);
        run("ip", &["link", "add", "br0", "type", "veth", "peer", "name", "far"]);
        run("ip", &["link", "set", "br0", "up"]);
        run("ip", &["link", "set", "far", "up"]);
        run("ip", &["addr", "add", "192.168.77.2/24", "dev", "br0"]);
        let refused = doctor(&bed, &[]);
        assert_eq!((refused.severity("bridge"), refused.code), ("would-not-boot", 1));
        allow("\"not-a-bridge\"");
        let allowed = doctor(&bed, &[]);
        assert_eq!((allowed.severity("bridge"), allowed.code), ("ok", 0), "{:#}", allowed.document);
        assert!(sockets_free(&allowed), "{:#}", allowed.document);
    });
}

#[test]
fn the_exit_code_says_whether_a_machine_would_boot() {
    in_namespace("doctor::the_exit_code_says_whether_a_machine_would_boot", || {
        let mut bed = TestBed::new("");
        let _machine = bed.plug("52:54:00:00:00:01");
        let config = bed.path("farrier.toml");
        let arguments = ["doctor", "--no-lab", "--config", config.to_str().expect("UTF-8")];
        let output = bed.farrier(&arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("NO BOOT  image") && text.contains("$ farrier image build deploy"), "{text}");
        bed.publish("metal", b"kernel", b"ramdisk");
        let output = bed.farrier(&arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(text.contains("A machine would boot from here"), "{text}");
        let commands = |line: &&str| !line.trim_start().starts_with("$ ");
        let wide: Vec<&str> =
            text.lines().filter(commands).filter(|line| line.chars().count() > 80).collect();
        // Paths have no place to break.
        assert!(wide.iter().all(|line| line.contains('/')), "{wide:#?}");
        fs::write(&config, "[network]\n").expect("a broken configuration");
        assert_eq!(bed.farrier(&arguments).status.code(), Some(2));
    });
}
