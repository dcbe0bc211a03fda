//! The TFTP server on a real bridge, asked by the clients people have: atftp, tftp-hpa, busybox and curl; and by
//! datagrams no well-behaved client sends.

mod bench;
mod datagrams;
#[path = "../it/dissect.rs"]
mod dissect;

use std::process::Command;

use bench::{Bench, SERVER, content, in_namespace, package};
use farrier::node::timeline::FileOutcome;

const SIZES: [usize; 6] = [0, 1, 511, 512, 513, 1468 * 7];

fn get_with(bench: &Bench, client: &str, name: &str, into: &str) {
    let server = SERVER.to_string();
    match client {
        "tftp-hpa" => {
            bench.client("tftp", "tftp-hpa", &["-m", "octet", &server, "-c", "get", name, into]);
        }
        "busybox" => {
            bench.client("busybox", "busybox-static", &["tftp", "-g", "-r", name, "-l", into, &server]);
        }
        "curl" => {
            bench.client("curl", "curl", &["-s", "-S", "-o", into, &format!("tftp://{server}/{name}")]);
        }
        "atftp" => {
            bench.client("atftp", "atftp", &["--get", "-r", name, "-l", into, &server]);
        }
        other => panic!("{other} is no client"),
    }
}

fn atftp_get(bench: &Bench, name: &str, into: &str, options: &[String]) {
    let mut command = bench.client_command("atftp", "atftp");
    for option in options {
        command.args(["--option", option]);
    }
    let output = command.args(["--get", "-r", name, "-l", into, &SERVER.to_string()]).output().unwrap();
    assert!(output.status.success(), "atftp {options:?}: {output:?}");
}

#[test]
fn every_client_reads_every_size() {
    in_namespace("every_client_reads_every_size", |bench| {
        let memory = bench.serve(SIZES.map(|size| (format!("f{size}"), content(size))));
        for client in ["tftp-hpa", "busybox", "curl", "atftp"] {
            for size in SIZES {
                // curl makes no file of nothing.
                if client == "curl" && size == 0 {
                    continue;
                }
                let into = format!("{client}-{size}");
                get_with(bench, client, &format!("f{size}"), &into);
                assert!(bench.read(&into) == content(size), "{client}, {size} bytes");
            }
        }
        let report = memory.report(|report| report.size == 513);
        assert_eq!((report.outcome, report.sent, report.ticket), (FileOutcome::Complete, 513, 4));
    });
}

#[test]
fn block_numbers_roll_over_for_every_client() {
    in_namespace("block_numbers_roll_over_for_every_client", |bench| {
        let size = 65536 * 512 + 1;
        let expected = content(size);
        bench.serve([("big".to_owned(), expected.clone())]);
        for client in ["tftp-hpa", "busybox", "curl"] {
            get_with(bench, client, "big", client);
            assert!(bench.read(client) == expected, "{client}");
        }
        atftp_get(bench, "big", "atftp", &["windowsize 16".to_owned()]);
        assert!(bench.read("atftp") == expected, "atftp");
    });
}

#[test]
fn t_04_every_block_and_window_size_is_bit_exact() {
    in_namespace("t_04_every_block_and_window_size_is_bit_exact", |bench| {
        let expected = content(300_000);
        let small = content(20_000);
        let memory = bench.serve([("f".to_owned(), expected.clone()), ("small".to_owned(), small.clone())]);
        for blksize in [8, 512, 1024, 1428, 1468, 1469, 8192, 65464] {
            for windowsize in [1, 4, 16, 64, 65535] {
                let (name, expected) = if blksize == 8 { ("small", &small) } else { ("f", &expected) };
                let into = format!("{blksize}-{windowsize}");
                let options =
                    [format!("blksize {blksize}"), format!("windowsize {windowsize}"), "tsize 0".to_owned()];
                atftp_get(bench, name, &into, &options);
                assert!(bench.read(&into) == *expected, "blksize {blksize}, windowsize {windowsize}");
            }
        }
        let report = memory.report(|report| report.windowsize == 64 && report.blksize == 1468);
        assert_eq!((report.outcome, report.retransmissions), (FileOutcome::Complete, 0));
    });
}

#[test]
fn writing_is_refused_and_a_missing_file_is_not_found() {
    in_namespace("writing_is_refused_and_a_missing_file_is_not_found", |bench| {
        bench.serve([("f".to_owned(), content(10))]);
        std::fs::write(bench.directory.path().join("mine"), "secret").unwrap();
        let server = SERVER.to_string();
        let put = bench
            .client_command("busybox", "busybox-static")
            .args(["tftp", "-p", "-l", "mine", "-r", "f", &server])
            .output()
            .unwrap();
        assert!(!put.status.success());
        assert!(String::from_utf8_lossy(&put.stderr).contains("this server is read-only"), "{put:?}");
        let get = bench
            .client_command("busybox", "busybox-static")
            .args(["tftp", "-g", "-r", "nothing", "-l", "nothing", &server])
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&get.stderr).contains("file not found"), "{get:?}");
        assert_eq!(bench.tally.value("tftp", "write-refused"), 1);
        assert_eq!(bench.tally.value("tftp", "not-found"), 1);
    });
}

#[test]
fn sixty_clients_at_once_all_get_their_file() {
    in_namespace("sixty_clients_at_once_all_get_their_file", |bench| {
        let expected = content(1 << 20);
        // Sixteen transfers per machine are the limit, so the clients are many machines.
        for host in 101..=160 {
            let address = format!("192.168.2.{host}/24");
            bench.client("ip", "iproute2", &["addr", "add", &address, "dev", "nic0"]);
        }
        let memory = bench.serve([("f".to_owned(), expected.clone())]);
        let clients = (101..=160).map(|host| {
            bench
                .client_command("curl", "curl")
                .args(["-s", "-S", "--tftp-blksize", "1468", "--interface", &format!("192.168.2.{host}")])
                .args(["-o", &format!("c{host}"), &format!("tftp://{SERVER}/f")])
                .spawn()
                .unwrap()
        });
        let clients = clients.collect::<Vec<_>>();
        for mut client in clients {
            assert!(client.wait().unwrap().success());
        }
        for host in 101..=160 {
            assert!(bench.read(&format!("c{host}")) == expected, "client {host}");
            let report = memory.report(|report| report.peer.ip().octets()[3] == host);
            assert_eq!(report.outcome, FileOutcome::Complete);
        }
        assert_eq!(memory.reports(), 60);
    });
}

#[test]
fn t_15_loss_each_way_costs_seconds_not_minutes() {
    in_namespace("t_15_loss_each_way_costs_seconds_not_minutes", |bench| {
        let sizes = [(1, 1 << 20, 20), (5, 1 << 18, 20), (20, 1 << 16, 60)];
        let memory = bench.serve(sizes.map(|(percent, size, _)| (format!("at-{percent}"), content(size))));
        for (percent, size, seconds) in sizes {
            // Both at the receiver's door: a sender told EPERM by its own firewall would behave differently.
            let rules = |opcode| {
                format!(
                    "flush ruleset
                    table ip loss {{
                        chain door {{ type filter hook input priority 0; @th,64,16 {opcode} numgen random mod 100 < {percent} drop
                        }}
                    }}"
                )
            };
            bench.client("nft", "nftables", &[&rules(3)]);
            let status = Command::new(package("nft", "nftables")).arg(rules(4)).status().unwrap();
            assert!(status.success());
            let started = std::time::Instant::now();
            let (server, name) = (SERVER.to_string(), format!("at-{percent}"));
            // Not atftp: it aborts when an OACK comes twice.
            let arguments = ["tftp", "-b", "1468", "-g", "-r", &name, "-l", &name, &server];
            bench.client("busybox", "busybox-static", &arguments);
            assert!(bench.read(&name) == content(size));
            let took = started.elapsed();
            println!("{size} bytes at {percent} % loss each way: {took:?}");
            assert!(took.as_secs() < seconds, "{took:?}");
            let report = memory.report(|report| report.name == name);
            assert!(report.outcome == FileOutcome::Complete && report.retransmissions > 0, "{report:?}");
        }
    });
}
