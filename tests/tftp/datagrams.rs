//! One datagram at a time: what a well-behaved client never sends, or sends once in a thousand boots.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use farrier::node::timeline::FileOutcome;

use crate::bench::{CLIENT, SERVER, content, in_namespace, ip};

fn rrq(name: &[u8], rest: &[u8]) -> Vec<u8> {
    [b"\0\x01", name, b"\0octet\0", rest].concat()
}

fn ask(socket: &UdpSocket, datagram: &[u8]) {
    socket.send_to(datagram, (SERVER, 69)).unwrap();
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2000];
    let (length, source) = socket.recv_from(&mut buffer).expect("an answer");
    (buffer[..length].to_vec(), source)
}

/// Whether nothing more arrives before an answer to something else does: no guess how long to wait.
fn is_silent(socket: &UdpSocket) -> bool {
    ask(socket, &rrq(b"no such file", b""));
    let (datagram, source) = receive(socket);
    datagram.starts_with(&[0, 5, 0, 1]) && source.port() == 69
}

#[test]
fn t_12_hostile_names_are_not_found_all_with_the_same_text() {
    in_namespace("datagrams::t_12_hostile_names_are_not_found_all_with_the_same_text", |bench| {
        bench.serve([("f".to_owned(), content(10))]);
        let socket = bench.socket(CLIENT);
        let mut names: Vec<Vec<u8>> = [
            "/etc/passwd",
            "../../etc/passwd",
            "..\\..\\boot.ini",
            "\\\\host\\share\\f",
            "%2e%2e/%2e%2e/etc/shadow",
            "f/../f",
            "./../f",
            "file:///etc/passwd",
            "C:\\f",
            "....//....//etc/passwd",
            "~root/.ssh/id_rsa",
            "f\u{ff}",
            "\u{202e}f",
            " ",
            "|id",
            "$(id)",
            "`id`",
            "%s%s%s%n",
            "f;reboot",
            "-rf",
            "*",
            "?",
            ".",
            "..",
            "/",
            "//",
            "\\",
            "con",
            "/dev/zero",
            "/proc/self/mem",
        ]
        .map(|name| name.as_bytes().to_vec())
        .into();
        names.extend((1..=100).map(|depth| [b"../".repeat(depth), b"etc/passwd".to_vec()].concat()));
        names.extend([256, 400, 1000, 10_000].map(|length| vec![b'a'; length]));
        names.extend((128..=255).step_by(9).map(|byte| vec![byte; 3]));
        for name in names {
            ask(&socket, &rrq(&name, b""));
            let (answer, _) = receive(&socket);
            assert_eq!(answer, b"\0\x05\0\x01file not found\0", "{}", name.escape_ascii());
        }
        for datagram in [
            b"\0\x01f\0mail\0".as_slice(),
            b"\0\x01f\0image\0",
            b"\0\x01f",
            b"\0\x01\0octet\0",
            b"\0\x02f\0octet\0",
        ] {
            ask(&socket, datagram);
            assert!(receive(&socket).0.starts_with(&[0, 5, 0, 4]), "{}", datagram.escape_ascii());
        }
    });
}

#[test]
fn t_03_the_size_is_exact_also_beyond_four_gigabytes() {
    in_namespace("datagrams::t_03_the_size_is_exact_also_beyond_four_gigabytes", |bench| {
        // Zeros that nobody touches take no memory.
        let sizes = [0, 1, 513, (1 << 31) + 1, u32::MAX as usize, (1 << 32) + 1];
        bench.serve(sizes.map(|size| (format!("f{size}"), vec![0; size].into())));
        for size in sizes {
            let client = bench.socket(CLIENT);
            ask(&client, &rrq(format!("f{size}").as_bytes(), b"tsize\x000\0"));
            let (oack, transfer) = receive(&client);
            assert_eq!(oack, format!("\0\x06tsize\0{size}\0").as_bytes());
            client.send_to(b"\0\x04\0\0", transfer).unwrap();
            let (block, _) = receive(&client);
            assert_eq!((&block[..4], block.len() - 4), ([0, 3, 0, 1].as_slice(), size.min(512)));
            client.send_to(b"\0\x05\0\0enough\0", transfer).unwrap();
        }
    });
}

#[test]
fn t_09_a_wrong_tid_is_told_so_and_the_transfer_goes_on() {
    in_namespace("datagrams::t_09_a_wrong_tid_is_told_so_and_the_transfer_goes_on", |bench| {
        bench.serve([("f".to_owned(), content(1000))]);
        let (client, stranger) = (bench.socket(CLIENT), bench.socket(CLIENT));
        ask(&client, &rrq(b"f", b""));
        let (first, transfer) = receive(&client);
        assert!(first.starts_with(&[0, 3, 0, 1]) && transfer.port() != 69);
        for datagram in [b"\0\x04\0\x01".as_slice(), b"noise"] {
            stranger.send_to(datagram, transfer).unwrap();
            let (refusal, source) = receive(&stranger);
            assert!(refusal.starts_with(&[0, 5, 0, 5]) && source == transfer);
        }
        stranger.send_to(b"\0\x05\0\0stop\0", transfer).unwrap();
        assert!(is_silent(&stranger), "an ERROR is not answered");
        client.send_to(b"\0\x04\0\x01", transfer).unwrap();
        let (second, source) = receive(&client);
        assert_eq!((&second[..4], second.len(), source), ([0, 3, 0, 2].as_slice(), 4 + 488, transfer));
        assert_eq!(bench.tally.value("tftp", "unknown-tid"), 3);
    });
}

#[test]
fn what_arrives_after_the_end_is_met_with_silence() {
    in_namespace("datagrams::what_arrives_after_the_end_is_met_with_silence", |bench| {
        let memory = bench.serve([("f".to_owned(), content(10))]);
        let client = bench.socket(CLIENT);
        ask(&client, &rrq(b"f", b""));
        let (_, transfer) = receive(&client);
        client.send_to(b"\0\x04\0\x01", transfer).unwrap();
        assert_eq!(memory.report(|_| true).outcome, FileOutcome::Complete);
        client.send_to(b"\0\x04\0\x01", transfer).unwrap();
        // Were there an answer, it would come before this one, which has another port.
        ask(&client, &rrq(b"f", b""));
        let (block, next_transfer) = receive(&client);
        assert!(block.starts_with(&[0, 3, 0, 1]) && next_transfer != transfer);
        client.send_to(b"\0\x04\0\x01", transfer).unwrap();
        // On another port than what is asked next: nobody says which of the two is read first.
        let until = Instant::now() + Duration::from_secs(20);
        while bench.tally.value("tftp", "unknown-tid") != 2 {
            assert!(is_silent(&client) && Instant::now() < until, "nor while the next one runs");
        }
        assert!(is_silent(&client), "nor while the next one runs");
    });
}

#[test]
fn t_10_a_repeated_request_does_not_start_a_second_transfer() {
    in_namespace("datagrams::t_10_a_repeated_request_does_not_start_a_second_transfer", |bench| {
        let memory = bench.serve([("f".to_owned(), content(1000))]);
        let client = bench.socket(CLIENT);
        ask(&client, &rrq(b"f", b""));
        let (first, transfer) = receive(&client);
        ask(&client, &rrq(b"f", b""));
        assert_eq!(receive(&client), (first.clone(), transfer), "from the same port");
        client.send_to(b"\0\x04\0\x01", transfer).unwrap();
        assert!(receive(&client).0.starts_with(&[0, 3, 0, 2]));
        client.send_to(b"\0\x04\0\x02", transfer).unwrap();
        assert_eq!(memory.report(|_| true).outcome, FileOutcome::Complete);
        ask(&client, &rrq(b"f", b""));
        let (again, next_transfer) = receive(&client);
        assert_eq!(again, first, "once it has ended, the same port may ask again");
        ask(&client, &rrq(b"f", b"tsize\x000\0"));
        assert_eq!(receive(&client).0, b"\0\x06tsize\x001000\0", "and for something else at once");
        assert!(next_transfer.port() != 69 && next_transfer.port() != transfer.port());
    });
}

#[test]
fn t_11_the_size_probe_of_uefi_ends_at_once_and_is_no_failure() {
    in_namespace("datagrams::t_11_the_size_probe_of_uefi_ends_at_once_and_is_no_failure", |bench| {
        let memory = bench.serve([("f".to_owned(), content(1000))]);
        let client = bench.socket(CLIENT);
        ask(&client, &rrq(b"f", b"tsize\x000\0blksize\x001468\0windowsize\x004\0"));
        let (oack, transfer) = receive(&client);
        assert_eq!(oack, b"\0\x06blksize\x001468\0tsize\x001000\0windowsize\x004\0");
        client.send_to(b"\0\x05\0\x08User aborted the transfer\0", transfer).unwrap();
        let report = memory.report(|_| true);
        assert_eq!((report.outcome, report.sent, report.name.as_str()), (FileOutcome::Probe, 0, "f"));
        ask(&client, &rrq(b"f", b"blksize\x001468\0windowsize\x004\0"));
        assert_eq!(receive(&client).0, b"\0\x06blksize\x001468\0windowsize\x004\0");
    });
}

#[test]
fn option_acks_and_errors_arrive_whole_whatever_the_block_size() {
    in_namespace("datagrams::option_acks_and_errors_arrive_whole_whatever_the_block_size", |bench| {
        bench.serve([("f".to_owned(), content(1000))]);
        for blksize in [8, 40, 100, 101, 512] {
            let (client, stranger) = (bench.socket(CLIENT), bench.socket(CLIENT));
            let options = format!("blksize\0{blksize}\0tsize\x000\0timeout\x003\0windowsize\x004\0");
            ask(&client, &rrq(b"f", options.as_bytes()));
            let (oack, transfer) = receive(&client);
            let expected = format!("\0\x06{}", options.replace("tsize\x000", "tsize\x001000"));
            assert_eq!(oack, expected.as_bytes(), "{blksize}");
            stranger.send_to(b"noise", transfer).unwrap();
            assert_eq!(receive(&stranger).0, b"\0\x05\0\x05unknown transfer ID\0", "{blksize}");
            client.send_to(b"\0\x05\0\0enough\0", transfer).unwrap();
        }
    });
}

#[test]
fn t_19_strangers_and_broadcasts_hear_nothing() {
    in_namespace("datagrams::t_19_strangers_and_broadcasts_hear_nothing", |bench| {
        bench.serve([("f".to_owned(), content(1000))]);
        // The server could reach this address; it does not answer because the bridge's subnet is another.
        ip(&["route", "add", "10.0.0.0/8", "dev", "bench0"]);
        bench.client("ip", "iproute2", &["addr", "add", "10.1.2.3/8", "dev", "nic0"]);
        let foreign = bench.socket(Ipv4Addr::new(10, 1, 2, 3));
        ask(&foreign, &rrq(b"f", b""));
        let local = bench.socket(CLIENT);
        local.set_broadcast(true).unwrap();
        local.send_to(&rrq(b"f", b""), (Ipv4Addr::new(192, 168, 2, 255), 69)).unwrap();
        ask(&local, b"\0\x05\0\0an error\0");
        ask(&local, b"\0\x04\0\0");
        ask(&local, b"");
        assert!(is_silent(&local));
        foreign.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(foreign.recv(&mut [0; 100]).is_err());
        for (reason, count) in [("foreign-source", 1), ("broadcast", 1), ("not-a-request", 3)] {
            assert_eq!(bench.tally.value("tftp", reason), count, "{reason}");
        }
    });
}

#[test]
fn t_20_one_machine_cannot_take_every_session() {
    in_namespace("datagrams::t_20_one_machine_cannot_take_every_session", |bench| {
        bench.serve([("f".to_owned(), content(1000))]);
        let sockets = (0..20).map(|_| bench.socket(CLIENT)).collect::<Vec<_>>();
        sockets.iter().for_each(|socket| ask(socket, &rrq(b"f", b"")));
        for socket in &sockets[..16] {
            assert!(receive(socket).0.starts_with(&[0, 3, 0, 1]));
        }
        for socket in &sockets[16..] {
            // A request that is answered whatever the limit: what comes first tells what came of the one before.
            ask(socket, b"\0\x02f\0octet\0");
            assert!(receive(socket).0.starts_with(&[0, 5, 0, 4]));
        }
        assert_eq!(bench.tally.value("tftp", "peer-busy"), 4);
    });
}

#[test]
fn stopping_tells_the_client_and_the_source() {
    in_namespace("datagrams::stopping_tells_the_client_and_the_source", |bench| {
        let memory = bench.serve([("f".to_owned(), content(1000))]);
        let client = bench.socket(CLIENT);
        ask(&client, &rrq(b"f", b""));
        let (_, transfer) = receive(&client);
        bench.stop();
        assert_eq!(receive(&client), (b"\0\x05\0\0the server is stopping\0".to_vec(), transfer));
        assert_eq!(memory.report(|_| true).outcome, FileOutcome::Aborted("the server stopped".to_owned()));
        bench.serve([]);
    });
}
