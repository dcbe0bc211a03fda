//! TFTP against the whole appliance: options, sizes, names, and clients that do not behave.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::ground::{Group, alone, with_files, with_nothing};
use crate::station::PATIENCE;
use crate::support::{ClientMachine, SERVER, TestBed, eventually, pattern};

static GROUP: Group = Group::new("tftp", "", prepared);
/// Ends with an empty block at 512 bytes a block.
const EVEN: usize = 4096 * 512;
const CROWD: usize = 65_000;
const AGAIN_AFTER: Duration = Duration::from_secs(2);
const BIG: usize = 131_072 * 512;

fn prepared(bed: &TestBed) {
    with_files(bed);
    bed.publish("even", &pattern(EVEN), b"ramdisk");
    bed.publish("long", &pattern(200_000 * 8 - 3), &pattern(1_000_000));
    bed.publish("big", &pattern(BIG), b"ramdisk");
    bed.publish("text", &text(), b"ramdisk");
    bed.publish("crowd", &pattern(CROWD), b"ramdisk");
}

pub fn rrq(name: &str, options: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = [b"\0\x01", name.as_bytes(), b"\0octet\0"].concat();
    for (option, value) in options {
        bytes.extend_from_slice(&[option.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    bytes
}

/// Line ends of every kind, so many that blocks' ends cut some of their pairs.
fn text() -> Vec<u8> {
    (0..2000_usize).map(|index| b"a\nb\rc\r\n\0\n\n\r"[index % 11]).collect()
}

/// A socket of the machine; receiving from it fails in the end.
pub fn socket(machine: &ClientMachine) -> UdpSocket {
    machine.inside(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        socket
    })
}

fn ask(socket: &UdpSocket, datagram: &[u8]) {
    socket.send_to(datagram, (SERVER, 69)).expect("sent");
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2000];
    let (length, source) = socket.recv_from(&mut buffer).expect("an answer");
    (buffer[..length].to_vec(), source)
}

/// The answer to a request, which is repeated until there is one, as firmware does: other checks press upon the same port
/// meanwhile, and a datagram may be lost.
fn answer(socket: &UdpSocket, request: &[u8]) -> (Vec<u8>, SocketAddr) {
    socket.set_read_timeout(Some(AGAIN_AFTER)).expect("a time-out");
    let until = Instant::now() + PATIENCE;
    let mut buffer = [0; 2000];
    loop {
        ask(socket, request);
        if let Ok((length, source)) = socket.recv_from(&mut buffer) {
            socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
            return (buffer[..length].to_vec(), source);
        }
        assert!(Instant::now() < until, "no answer to {}", request.escape_ascii());
    }
}

/// The first answer to a request, after which the transfer is ended.
pub fn first_answer(machine: &ClientMachine, request: &[u8]) -> Vec<u8> {
    let socket = socket(machine);
    let (answer, transfer) = answer(&socket, request);
    socket.send_to(b"\0\x05\0\0enough\0", transfer).expect("sent");
    answer
}

fn ack(block: u64) -> [u8; 4] {
    let [high, low] = (block as u16).to_be_bytes();
    [0, 4, high, low]
}

/// A whole transfer, as RFC 7440 wants it: acknowledging each window, and the last block in order when one is missing.
pub fn fetch(socket: &UdpSocket, name: &str, options: &[(&str, &str)], window: u64) -> Vec<u8> {
    let mut received = answer(socket, &rrq(name, options));
    let mut block_size = 512;
    let (mut content, mut next, mut in_window) = (Vec::new(), 1_u64, 0);
    loop {
        let (datagram, transfer) = received;
        match datagram[1] {
            6 => {
                let words: Vec<&[u8]> = datagram[2..].split(|byte| *byte == 0).collect();
                if let Some(at) = words.iter().position(|word| *word == b"blksize") {
                    block_size = String::from_utf8_lossy(words[at + 1]).parse().expect("a number");
                }
                socket.send_to(&ack(0), transfer).expect("sent");
            }
            3 => {
                let number = u16::from_be_bytes([datagram[2], datagram[3]]);
                if number != next as u16 {
                    received = receive(socket);
                    continue;
                }
                content.extend_from_slice(&datagram[4..]);
                let last = datagram.len() - 4 < block_size;
                in_window += 1;
                if last || in_window == window {
                    socket.send_to(&ack(next), transfer).expect("sent");
                    in_window = 0;
                }
                if last {
                    return content;
                }
                next += 1;
            }
            other => panic!("{other}: {}", datagram.escape_ascii()),
        }
        received = receive(socket);
    }
}

#[test]
fn t_02_block_sizes_are_clamped_to_what_a_frame_holds() {
    GROUP.check(|ground| {
        let machine = ground.booted();
        for (asked, granted) in
            [(8, 8), (512, 512), (1428, 1428), (1468, 1468), (1469, 1468), (65464, 1468), (65465, 1468)]
        {
            let socket = socket(&machine);
            let (asked, granted) = (asked.to_string(), granted.to_string());
            let (oack, transfer) = answer(&socket, &rrq("image/even/vmlinuz", &[("blksize", &asked)]));
            assert_eq!(oack, [b"\0\x06blksize\0", granted.as_bytes(), b"\0"].concat());
            socket.send_to(&ack(0), transfer).expect("sent");
            let (block, _) = receive(&socket);
            assert_eq!(block.len() - 4, granted.parse::<usize>().expect("a number"));
            assert!(block.len() + 28 <= 1500, "one frame each");
            socket.send_to(b"\0\x05\0\0enough\0", transfer).expect("sent");
        }
        for nonsense in ["7", "0", "-1", "abc", ""] {
            let block = first_answer(&machine, &rrq("image/even/vmlinuz", &[("blksize", nonsense)]));
            assert!(block.starts_with(&[0, 3, 0, 1]) && block.len() == 516, "{nonsense:?} is ignored");
        }
    });
}

#[test]
fn t_05_a_time_out_is_echoed_or_ignored() {
    GROUP.check(|ground| {
        let machine = ground.booted();
        for value in ["1", "3", "255"] {
            let answer = first_answer(&machine, &rrq("undionly.kpxe", &[("timeout", value)]));
            assert_eq!(answer, format!("\0\x06timeout\0{value}\0").as_bytes());
        }
        for value in ["0", "256", "-1", "x", "", "1.5", "99999999999"] {
            let answer = first_answer(&machine, &rrq("undionly.kpxe", &[("timeout", value)]));
            assert!(answer.starts_with(&[0, 3, 0, 1]), "{value:?}: {}", answer.escape_ascii());
        }
    });
}

#[test]
fn t_06_only_what_was_asked_for_is_in_the_option_ack() {
    GROUP.check(|ground| {
        let machine = ground.booted();
        let size = EVEN.to_string();
        let told = |options: &[(&str, &str)]| first_answer(&machine, &rrq("image/even/vmlinuz", options));
        assert_eq!(told(&[("tsize", "0")]), format!("\0\x06tsize\0{size}\0").as_bytes());
        assert_eq!(
            told(&[("BlkSize", "1024"), ("unknown", "5")]).to_ascii_lowercase(),
            b"\0\x06blksize\x001024\0"
        );
        for none in [&[][..], &[("unknown", "1")], &[("windowsize", "0")], &[("multicast", "")]] {
            let block = told(none);
            assert!(block.starts_with(&[0, 3, 0, 1]) && block.len() == 516, "{none:?}");
        }
        let all =
            told(&[("windowsize", "16"), ("blksize", "1400"), ("x", "y"), ("timeout", "2"), ("tsize", "0")]);
        let mut words: Vec<String> = all[2..]
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        words.retain(|word| !word.is_empty());
        let pairs: BTreeSet<(String, String)> =
            words.chunks(2).map(|pair| (pair[0].to_ascii_lowercase(), pair[1].clone())).collect();
        let expected =
            [("blksize", "1400"), ("timeout", "2"), ("tsize", size.as_str()), ("windowsize", "16")];
        assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    });
}

#[test]
fn t_07_the_block_counter_rolls_over_as_often_as_it_must() {
    GROUP.check(|ground| {
        let machine = ground.booted();
        let socket = socket(&machine);
        // 200 000 blocks: over twice, and then some.
        let long = fetch(&socket, "image/long/vmlinuz", &[("blksize", "8"), ("windowsize", "64")], 64);
        assert!(long == pattern(200_000 * 8 - 3));
        // 64 MiB at 512 bytes, the bar of every client; ends with an empty block.
        let big = fetch(&socket, "image/big/vmlinuz", &[("windowsize", "64")], 64);
        assert!(big == pattern(BIG));
    });
}

#[test]
fn t_08_a_repeated_ack_brings_no_second_block() {
    GROUP.check(|ground| {
        let machine = ground.booted();
        let socket = socket(&machine);
        let (_, transfer) = answer(&socket, &rrq("image/even/vmlinuz", &[]));
        let mut blocks = 1;
        // Sorcerer's apprentice: each ACK three times. A server that answers them all sends ever more.
        for block in 1..=200_u64 {
            for _ in 0..3 {
                socket.send_to(&ack(block), transfer).expect("sent");
            }
            loop {
                let (datagram, _) = receive(&socket);
                blocks += 1;
                if datagram[2..4] == ack(block + 1)[2..] {
                    break;
                }
            }
        }
        // The timer may have sent a block or two again while this machine was busy.
        assert!((201..=206).contains(&blocks), "{blocks} blocks for 201");
        socket.send_to(b"\0\x05\0\0enough\0", transfer).expect("sent");
    });
}

#[test]
fn t_12_whatever_is_not_ours_to_give_is_not_found_in_the_same_words() {
    GROUP.check(|ground| {
        let machine = ground.booted();
        let state = ground.bed().state();
        let mut names: Vec<Vec<u8>> = [
            "/etc/passwd",
            "../../etc/passwd",
            "..\\..\\boot.ini",
            "\\\\host\\share\\f",
            "%2e%2e/%2e%2e/etc/shadow",
            "image/../farrier.db",
            "./../farrier.db",
            "file:///etc/passwd",
            "C:\\f",
            "....//....//etc/passwd",
            "~root/.ssh/id_rsa",
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
            "farrier.db",
            "images",
            "images/blobs",
            "image/metal",
            "image/metal.json",
            "image/metal/vmlinuz/../initrd.img",
            "loaders/usr/lib/ipxe/undionly.kpxe",
        ]
        .map(|name| name.as_bytes().to_vec())
        .into();
        names.push(state.join("farrier.db").to_string_lossy().into_owned().into_bytes());
        names.extend((1..=100).map(|depth| [b"../".repeat(depth), b"etc/passwd".to_vec()].concat()));
        names.extend((1..=40).map(|depth| [b"image/metal/".to_vec(), b"..\\".repeat(depth)].concat()));
        names.extend([255, 256, 300, 400, 490].map(|length| vec![b'a'; length]));
        names.extend((128..=255).step_by(5).map(|byte| vec![byte; 3]));
        assert!(names.len() >= 200, "{}", names.len());
        // More than one machine may ask for at once: the last of them are answered at the second attempt.
        for name in names {
            let socket = socket(&machine);
            let (refusal, _) = answer(&socket, &[b"\0\x01", &name[..], b"\0octet\0"].concat());
            assert_eq!(refusal, b"\0\x05\0\x01file not found\0", "{}", name.escape_ascii());
        }
    });
}

#[test]
fn t_13_writing_is_refused_and_changes_nothing() {
    GROUP.check(|ground| {
        let machine = ground.booted();
        let images = ground.bed().state().join("images");
        let before = snapshot(&images);
        std::fs::write(machine.path("upload"), pattern(5000)).expect("a file");
        for name in ["upload", "undionly.kpxe", "image/even/vmlinuz", "../upload", "image/metal.json"] {
            let request = [b"\0\x02", name.as_bytes(), b"\0octet\0"].concat();
            assert!(first_answer(&machine, &request).starts_with(&[0, 5, 0, 4]), "{name}");
            let put =
                machine.output("tftp", &["-m", "binary", &SERVER.to_string(), "-c", "put", "upload", name]);
            let said = String::from_utf8_lossy(&[put.stdout, put.stderr].concat()).into_owned();
            assert!(said.contains("Error code 4"), "{said}");
        }
        assert_eq!(snapshot(&images), before);
        assert!(!ground.bed().state().join("upload").exists());
    });
}

#[test]
fn t_14_text_is_sent_as_netascii_without_size_and_window_and_mail_is_refused() {
    GROUP.check(|ground| {
        let machine = ground.booted();
        // RFC 764: a line feed is CR LF, a carriage return that ends no line CR NUL.
        let on_the_wire: Vec<u8> = text()
            .iter()
            .flat_map(|byte| match byte {
                b'\n' => b"\r\n".to_vec(),
                b'\r' => b"\r\0".to_vec(),
                other => vec![*other],
            })
            .collect();
        for (mode, options, granted) in [
            ("netascii", "", ""),
            ("NetASCII", "blksize\x0064\0tsize\x000\0windowsize\x008\0", "blksize\x0064\0"),
        ] {
            let request = format!("\0\x01image/text/vmlinuz\0{mode}\0{options}");
            let socket = socket(&machine);
            let mut received = answer(&socket, request.as_bytes());
            let (mut content, mut size) = (Vec::new(), 512);
            if !granted.is_empty() {
                assert_eq!(received.0, [b"\0\x06", granted.as_bytes()].concat());
                socket.send_to(&ack(0), received.1).expect("sent");
                (received, size) = (receive(&socket), 64);
            }
            for block in 1.. {
                let (datagram, transfer) = received;
                assert_eq!(datagram[..4], [0, 3, 0, block], "one block at a time");
                content.extend_from_slice(&datagram[4..]);
                socket.send_to(&ack(block.into()), transfer).expect("sent");
                if datagram.len() - 4 < size {
                    break;
                }
                received = receive(&socket);
            }
            assert!(content == on_the_wire, "{mode}: {}", content.escape_ascii());
        }
        // A client that turns it back into what it was.
        let server = SERVER.to_string();
        machine.run("tftp", &["-m", "netascii", &server, "-c", "get", "image/text/vmlinuz", "got"]);
        assert!(machine.read("got") == text());
        let refused = first_answer(&machine, b"\0\x01image/text/vmlinuz\0mail\0");
        assert_eq!(refused, b"\0\x05\0\x04mail is not supported\0");
    });
}

fn snapshot(folder: &Path) -> Vec<(PathBuf, u64, u32)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
            let about = entry.metadata().expect("a file");
            match about.is_dir() {
                true => folders.push(entry.path()),
                false => found.push((entry.path(), about.len(), about.permissions().mode())),
            }
        }
    }
    found.sort();
    found
}

/// A relay that repeats, holds back and swaps one datagram in ten, each way.
fn disorder(upstream: &UdpSocket, client: &UdpSocket, done: &AtomicBool) {
    let mut random = 1_u32;
    let mut one_in_ten = move || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 16).is_multiple_of(10)
    };
    let (mut client_at, mut server_at) = (None, SocketAddr::from((SERVER, 69)));
    let mut held: Option<(bool, Vec<u8>)> = None;
    let mut buffer = [0; 2000];
    while !done.load(Ordering::Relaxed) {
        for to_server in [true, false] {
            let from = if to_server { client } else { upstream };
            let Ok((length, source)) = from.recv_from(&mut buffer) else { continue };
            match to_server {
                true => client_at = Some(source),
                false => server_at = source,
            }
            let mut out = vec![(to_server, buffer[..length].to_vec())];
            if one_in_ten() {
                out.push(out[0].clone());
            }
            match held.take() {
                Some(earlier) => out.push(earlier),
                None if one_in_ten() => held = out.pop(),
                None => {}
            }
            for (to_server, datagram) in out {
                let sent = match to_server {
                    true => upstream.send_to(&datagram, server_at),
                    false => client.send_to(&datagram, client_at.expect("who asked")),
                };
                sent.expect("sent");
            }
        }
    }
}

#[test]
fn t_16_repeated_and_swapped_datagrams_do_no_harm() {
    GROUP.check(|ground| {
        let machine = ground.booted();
        machine.inside(|| {
            let socket_at = |address: Ipv4Addr, port| {
                let socket = UdpSocket::bind((address, port)).expect("a port");
                socket.set_nonblocking(true).expect("non-blocking");
                socket
            };
            let (upstream, relay) = (socket_at(Ipv4Addr::UNSPECIFIED, 0), socket_at(Ipv4Addr::LOCALHOST, 69));
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| disorder(&upstream, &relay, &done));
                let arguments =
                    ["tftp", "-b", "1428", "-g", "-l", "got", "-r", "image/long/initrd.img", "127.0.0.1"];
                let child = std::process::Command::new("timeout")
                    .args([&PATIENCE.as_secs().to_string(), "busybox"])
                    .args(arguments)
                    .current_dir(machine.path(""))
                    .output();
                done.store(true, Ordering::Relaxed);
                let child = child.expect("busybox");
                assert!(child.status.success(), "{child:?}");
            });
        });
        assert!(machine.read("got") == pattern(1_000_000));
    });
}

#[test]
fn t_17_a_thousand_clients_at_once_all_get_their_file() {
    GROUP.check(|ground| {
        let machine = ground.booted();
        // Sixteen transfers a machine are the limit, so these are many machines.
        let addresses: Vec<Ipv4Addr> = (0..100).map(|host| Ipv4Addr::new(192, 168, 190, host + 1)).collect();
        let commands: String =
            addresses.iter().map(|address| format!("addr add {address}/16 dev eth0\n")).collect();
        std::fs::write(machine.path("addresses"), commands).expect("a file");
        machine.run("ip", &["-batch", "addresses"]);
        for address in &addresses {
            // A lease each, as an address without one gets nothing.
            let station = ground.station();
            let mut client = crate::dhcp::Client::new(&station, ground.mac());
            let request = client.message(crate::dhcp::REQUEST).with(50, address.octets());
            assert_eq!(client.ask(&request).kind, crate::dhcp::ACK);
        }
        let expected = pattern(CROWD);
        let request = rrq("image/crowd/vmlinuz", &[("blksize", "1428"), ("windowsize", "4")]);
        let sockets: Vec<UdpSocket> = machine.inside(|| {
            let all = (0..1000).map(|number: usize| {
                let socket = UdpSocket::bind((addresses[number % addresses.len()], 0)).expect("a port");
                socket.set_nonblocking(true).expect("non-blocking");
                ask(&socket, &request);
                socket
            });
            all.collect()
        });
        let mut contents = vec![Vec::new(); sockets.len()];
        let (mut left, mut buffer) = (sockets.len(), [0; 2000]);
        let mut until = Instant::now() + PATIENCE;
        let mut ask_again_at = Instant::now() + AGAIN_AFTER;
        while left > 0 {
            assert!(Instant::now() < until, "{left} transfers stand still");
            if Instant::now() > ask_again_at {
                // A thousand requests at once may be more than a receive buffer holds.
                for (socket, _) in sockets.iter().zip(&contents).filter(|(_, content)| content.is_empty()) {
                    ask(socket, &request);
                }
                ask_again_at = Instant::now() + AGAIN_AFTER;
            }
            for (socket, content) in sockets.iter().zip(&mut contents) {
                while let Ok((length, transfer)) = socket.recv_from(&mut buffer) {
                    let done = content.len() / 1428;
                    let number = u16::from_be_bytes([buffer[2], buffer[3]]);
                    match buffer[1] {
                        6 => drop(socket.send_to(&ack(0), transfer)),
                        3 if usize::from(number) == done + 1 && content.len() < expected.len() => {
                            content.extend_from_slice(&buffer[4..length]);
                            if length < 1432 || number % 4 == 0 {
                                drop(socket.send_to(&ack(number.into()), transfer));
                            }
                            left -= usize::from(length < 1432);
                            until = Instant::now() + PATIENCE;
                        }
                        3 => {}
                        _ => panic!("{}", buffer[..length].escape_ascii()),
                    }
                }
            }
        }
        assert!(contents.iter().all(|content| *content == expected));
    });
}

#[test]
fn t_18_a_file_replaced_under_way_ends_as_it_began() {
    // Alone, for it changes what others look at.
    alone("", with_nothing, |ground| {
        let machine = ground.booted();
        ground.bed().publish("changing", &pattern(400_000), b"ramdisk");
        ground.bed().signal(nix::sys::signal::Signal::SIGHUP);
        let began = eventually("the new image is served", || {
            let socket = socket(&machine);
            ask(&socket, &rrq("image/changing/vmlinuz", &[]));
            let (block, transfer) = receive(&socket);
            (block[1] == 3).then_some((socket, block, transfer))
        });
        let (socket, block, transfer) = began;
        let mut content = block[4..].to_vec();
        ground.bed().publish("changing", &vec![7; 300_000], b"ramdisk");
        ground.bed().signal(nix::sys::signal::Signal::SIGHUP);
        eventually("the other content is served", || {
            machine.run("curl", &["-sS", "-o", "new", &format!("http://{SERVER}/image/changing/vmlinuz")]);
            (machine.read("new") == vec![7; 300_000]).then_some(())
        });
        let mut next = 2_u64;
        socket.send_to(&ack(1), transfer).expect("sent");
        loop {
            let (datagram, _) = receive(&socket);
            if datagram[2..4] != ack(next)[2..] {
                continue;
            }
            content.extend_from_slice(&datagram[4..]);
            socket.send_to(&ack(next), transfer).expect("sent");
            next += 1;
            if datagram.len() < 516 {
                break;
            }
        }
        assert!(content == pattern(400_000), "{} bytes", content.len());
    });
}

#[test]
fn t_19_a_request_that_is_never_answered_costs_four_packets() {
    GROUP.check(|ground| {
        let machine = ground.booted();
        let socket = socket(&machine);
        socket.set_read_timeout(Some(Duration::from_secs(9))).expect("a time-out");
        ask(&socket, &rrq("image/even/vmlinuz", &[]));
        let mut packets = 0;
        while socket.recv(&mut [0; 600]).is_ok() {
            packets += 1;
        }
        assert!((2..=4).contains(&packets), "{packets}");
    });
}

#[test]
fn t_20_more_than_a_machine_may_have_is_shed_and_costs_no_memory() {
    // Alone: a flood of requests would take the others' away.
    alone("", prepared, |ground| {
        let machine = ground.booted();
        let resident = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", ground.bed().server_pid()));
            let status = status.expect("the appliance runs");
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("kB")
        };
        let sockets: Vec<UdpSocket> = (0..16).map(|_| socket(&machine)).collect();
        for socket in &sockets {
            ask(socket, &rrq("image/even/vmlinuz", &[("windowsize", "64"), ("blksize", "1468")]));
            assert!(receive(socket).0.starts_with(&[0, 6]));
        }
        let before = (resident(), ground.counted("tftp", "peer-busy"));
        let more = socket(&machine);
        for _ in 0..5000 {
            ask(&more, &rrq("image/even/vmlinuz", &[("windowsize", "64")]));
        }
        eventually("all were taken note of", || {
            (ground.counted("tftp", "peer-busy") + ground.counted("tftp", "rate-limited") > before.1 + 100)
                .then_some(())
        });
        let other = ground.booted();
        assert!(
            first_answer(&other, &rrq("undionly.kpxe", &[])).starts_with(&[0, 3, 0, 1]),
            "others are served"
        );
        assert!(resident() < before.0 + 8192, "{} kB, then {} kB", before.0, resident());
    });
}

#[test]
fn replies_dissect_without_a_mark() {
    GROUP.dissect();
}
