//! `farrier serve`: how it refuses, reloads and ends.

use std::process::Command;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::support::{
    Process, SERVER, TestBed, add_bridge, eventually, farrier_program, in_namespace, pattern, run,
};

/// Exit code and standard error of a `farrier serve` that must refuse to start.
fn refused(bed: &TestBed, configuration: &str) -> (Option<i32>, String) {
    let path = bed.path("refused.toml");
    std::fs::write(&path, configuration).unwrap();
    let output = Command::new(farrier_program()).args(["serve", "--config"]).arg(&path).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_mistake_in_the_configuration_is_named_and_exits_2() {
    in_namespace("serve::a_mistake_in_the_configuration_is_named_and_exits_2", || {
        let bed = TestBed::new("");
        let network = "[network]\nbridge = \"br0\"\naddress = \"192.168.77.2/24\"\n";
        let (socket, file) = (bed.path("other.sock"), bed.path("farrier.toml"));
        let (socket, file) = (socket.display(), file.display());
        let cases = [
            (network.replace("br0", "nosuch"), &["network.bridge", "nosuch", "ip link add"][..]),
            (format!("{network}brigde = \"br0\"\n"), &["brigde"]),
            (
                format!("{network}[dhcp]\npool = \"10.0.0.5-10.0.0.9\"\n"),
                &["dhcp.pool", "10.0.0.5", "192.168.77.0/24"],
            ),
            (
                format!(
                    "{network}[[dhcp.reservation]]\nmac = \"02:00:00:00:00:01\"\naddress = \"192.168.77.9\"\n\
                     [[dhcp.reservation]]\nmac = \"02:00:00:00:00:02\"\naddress = \"192.168.77.9\"\n"
                ),
                &["reservation", "192.168.77.9"],
            ),
            ("[network]\naddress = \"192.168.77.2/24\"\n".to_owned(), &["bridge"]),
            (network.replace("br0", "lo"), &["network.bridge", "not a bridge", "cannot be attached"]),
            (
                format!(
                    "{network}[operator]\nlisten = \"off\"\nsocket = \"{socket}\"\n[store]\npath = \"{file}/state\"\n"
                ),
                &["store.path", "no directory", "way out"],
            ),
        ];
        for (configuration, words) in cases {
            let (code, said) = refused(&bed, &configuration);
            assert_eq!(code, Some(2), "{said}");
            for word in words {
                assert!(said.contains(word), "{word:?} in:\n{said}");
            }
        }
    });
}

#[test]
fn sigterm_drains_and_ends_within_two_seconds() {
    in_namespace("serve::sigterm_drains_and_ends_within_two_seconds", || {
        let mut bed = TestBed::new("");
        bed.publish("metal", &pattern(32 << 20), b"ramdisk");
        bed.start_server();
        let machine = bed.plug("02:00:00:00:00:01");
        machine.boot_udhcpc();
        // A download that would take minutes.
        let url = format!("http://{SERVER}/image/metal/vmlinuz");
        let mut command = machine.command("curl", &["-s", "--limit-rate", "100k", "-o", "kernel", &url]);
        let _download = Process(command.spawn().unwrap());
        eventually("the download has begun", || {
            machine.path("kernel").metadata().ok().filter(|file| file.len() > 0)
        });
        let asked_at = Instant::now();
        bed.signal(Signal::SIGTERM);
        assert_eq!(bed.wait_server(), Some(0), "{}", bed.log());
        // Two seconds is the promise; a busy machine gets some more before the test calls it broken.
        assert!(asked_at.elapsed().as_secs() < 4, "took {:?}", asked_at.elapsed());
    });
}

#[test]
fn a_second_instance_leaves_nothing_behind() {
    in_namespace("serve::a_second_instance_leaves_nothing_behind", || {
        let bed = TestBed::start("");
        let (socket, state) = (bed.path("second.sock"), bed.path("second/state"));
        let configuration = format!(
            "[network]\nbridge = \"br0\"\naddress = \"192.168.77.2/24\"\n\
             [operator]\nlisten = \"off\"\nsocket = \"{}\"\n[store]\npath = \"{}\"\n",
            socket.display(),
            state.display()
        );
        let (code, said) = refused(&bed, &configuration);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("port 67") && said.contains("is taken"), "{said}");
        assert!(!bed.path("second").exists() && !socket.exists());
    });
}

#[test]
fn r_14_sighup_takes_a_good_file_whole_and_a_bad_one_not_at_all() {
    in_namespace("serve::r_14_sighup_takes_a_good_file_whole_and_a_bad_one_not_at_all", || {
        let mut bed = TestBed::start("[dhcp]\npool = \"192.168.77.100-192.168.77.110\"\n");
        let first = bed.plug("02:00:00:00:00:01");
        assert!((100..=110).contains(&first.boot_udhcpc().octets()[3]));

        bed.configure("[dhcp]\npool = \"192.168.77.200-192.168.77.210\"\n[boot]\nno_such_key = 1\n");
        bed.signal(Signal::SIGHUP);
        eventually("the bad file is reported", || bed.log().contains("no_such_key").then_some(()));
        let second = bed.plug("02:00:00:00:00:02");
        assert!((100..=110).contains(&second.boot_udhcpc().octets()[3]), "a bad file changed something");

        bed.configure("[dhcp]\npool = \"192.168.77.200-192.168.77.210\"\n");
        bed.signal(Signal::SIGHUP);
        let mut number = 2;
        eventually("the new pool is in use", || {
            number += 1;
            let machine = bed.plug(&format!("02:00:00:00:00:{number:02x}"));
            (200..=210).contains(&machine.boot_udhcpc().octets()[3]).then_some(())
        });
    });
}

#[test]
fn a_bridge_that_is_made_anew_is_served_again_by_everything() {
    in_namespace("serve::a_bridge_that_is_made_anew_is_served_again_by_everything", || {
        let mut bed = TestBed::new("");
        let kernel = pattern(70_000);
        bed.publish("metal", &kernel, b"ramdisk");
        bed.start_server();
        let machine = bed.plug("02:00:00:00:00:01");
        machine.boot_udhcpc();
        let running = || {
            let status = bed.farrier_json(&["status"]);
            let services = status["services"].as_array().unwrap().clone();
            services.iter().filter(|service| service["running"] == true).count()
        };
        let all = running();
        run("ip", &["link", "del", "br0"]);
        eventually("the status tells", || (running() < all).then_some(()));
        add_bridge("br0", "192.168.77.2/24");
        run("ip", &["link", "set", "port1", "master", "br0"]);
        for scheme in ["http", "tftp"] {
            let url = format!("{scheme}://{SERVER}/image/metal/vmlinuz");
            eventually(&url, || {
                let got = machine.output("curl", &["-s", "-m", "2", &url]);
                (got.stdout == kernel).then_some(())
            });
        }
        machine.boot_udhcpc();
        assert_eq!(running(), all, "{}", bed.log());
    });
}

#[test]
fn an_empty_pool_is_told_once() {
    in_namespace("serve::an_empty_pool_is_told_once", || {
        let mut bed = TestBed::start("[dhcp]\npool = \"192.168.77.100-192.168.77.100\"\n");
        bed.plug("02:00:00:00:00:01").boot_udhcpc();
        for number in 2..4 {
            let machine = bed.plug(&format!("02:00:00:00:00:0{number}"));
            let got = machine.output("udhcpc", &["-i", "eth0", "-n", "-q", "-f", "-t", "2", "-T", "1"]);
            assert!(!got.status.success(), "there was no address to have");
        }
        assert_eq!(bed.log().matches("no address is left").count(), 1, "{}", bed.log());
        let status = bed.farrier_json(&["status"]);
        assert!(status["problems"].to_string().contains("no address is left"), "{status}");
    });
}
