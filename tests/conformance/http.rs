//! HTTP against the whole appliance, on the bridge: ranges, conditions, and clients that hold on to what they have.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use crate::browse::{Answer, connect, request};
use crate::dhcp::{ACK, Client, REQUEST};
use crate::ground::{Group, alone, with_files};
use crate::support::{SERVER, pattern};

static GROUP: Group = Group::new("http", "", with_files);
const KERNEL: &str = "/image/metal/vmlinuz";
const SIZE: usize = 300_000;

#[test]
fn h_03_every_kind_of_range() {
    GROUP.check(|ground| {
        let whole = pattern(SIZE);
        ground.booted().inside(|| {
            let mut stream = connect((SERVER, 80));
            let mut get =
                |range: &str| request(&mut stream, "GET", KERNEL, &format!("Range: {range}\r\n"), "");
            for (range, first, last) in [
                ("bytes=0-0", 0, 0),
                ("bytes=0-511", 0, 511),
                ("bytes=299999-299999", 299_999, 299_999),
                ("bytes=100000-", 100_000, SIZE - 1),
                ("bytes=-7", SIZE - 7, SIZE - 1),
                ("bytes=-999999999", 0, SIZE - 1),
                ("bytes=0-9223372036854775807", 0, SIZE - 1),
                ("bytes=5-18446744073709551615", 5, SIZE - 1),
            ] {
                let part = get(range);
                assert_eq!(part.status, 206, "{range}");
                assert_eq!(
                    part.header("Content-Range"),
                    Some(&*format!("bytes {first}-{last}/{SIZE}")),
                    "{range}"
                );
                assert!(part.body == whole[first..=last], "{range}");
            }
            for range in ["bytes=300000-", "bytes=9223372036854775808-", "bytes=-0"] {
                let none = get(range);
                assert_eq!(
                    (none.status, none.header("Content-Range")),
                    (416, Some("bytes */300000")),
                    "{range}"
                );
            }
            for range in [
                "bytes=5-4",
                "bytes=-",
                "bytes=",
                "bytes",
                "bytes=a-b",
                "bytes=--5",
                "bytes=-5-9",
                "bytes=0x1-2",
                "lines=0-1",
                "bytes=0-1,5-6",
                "bytes=99999999999999999999999-",
                "bytes= 0 - 1 x",
            ] {
                let all = get(range);
                assert!([200, 416].contains(&all.status), "{range}: {}", all.status);
                assert!(all.status == 416 || all.body == whole, "{range}: ignored, and all of it sent");
            }
        });
    });
}

#[test]
fn h_04_every_kind_of_condition() {
    GROUP.check(|ground| {
        ground.booted().inside(|| {
            let mut stream = connect((SERVER, 80));
            let head = request(&mut stream, "HEAD", KERNEL, "", "");
            let tag = head.header("Etag").expect("a tag").to_owned();
            let date = head.header("Last-Modified").expect("a date").to_owned();
            let (past, future) = ("Thu, 01 Jan 1998 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT");
            let mut get = |headers: String| -> Answer { request(&mut stream, "GET", KERNEL, &headers, "") };
            let part = "Range: bytes=0-9\r\n";
            for (headers, status) in [
                (format!("If-Match: {tag}\r\n"), 200),
                ("If-Match: *\r\n".to_owned(), 200),
                (format!("If-Match: \"x\", {tag}\r\n"), 200),
                ("If-Match: \"x\"\r\n".to_owned(), 412),
                (format!("If-Match: W/{tag}\r\n"), 412),
                (format!("If-Match: {tag}\r\n{part}"), 206),
                (format!("If-None-Match: {tag}\r\n"), 304),
                (format!("If-None-Match: W/{tag}\r\n"), 304),
                ("If-None-Match: \"x\"\r\n".to_owned(), 200),
                (format!("If-Unmodified-Since: {date}\r\n{part}"), 206),
                (format!("If-Unmodified-Since: {future}\r\n"), 200),
                (format!("If-Unmodified-Since: {past}\r\n{part}"), 412),
                ("If-Unmodified-Since: yesterday\r\n".to_owned(), 200),
                (format!("If-Range: {tag}\r\n{part}"), 206),
                (format!("If-Range: \"x\"\r\n{part}"), 200),
                (format!("If-Range: W/{tag}\r\n{part}"), 200),
                (format!("If-Range: {past}\r\n{part}"), 200),
            ] {
                assert_eq!(get(headers.clone()).status, status, "{headers}");
            }
        });
    });
}

#[test]
fn h_11_five_thousand_slow_heads_delay_nobody_and_are_dropped() {
    alone("", with_files, |ground| {
        let machine = ground.machine(ground.mac());
        let addresses: Vec<Ipv4Addr> = (0..170).map(|host| Ipv4Addr::new(192, 168, 190, host + 1)).collect();
        let commands: String =
            addresses.iter().map(|address| format!("addr add {address}/16 dev eth0\n")).collect();
        std::fs::write(machine.path("addresses"), commands).expect("a file");
        machine.run("ip", &["-batch", "addresses"]);
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let healthy = addresses[169];
        let lease = client.message(REQUEST).with(50, healthy.octets());
        assert_eq!(client.ask(&lease).kind, ACK);
        let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
        let (_, hard) = nix::sys::resource::getrlimit(limit).expect("a limit");
        nix::sys::resource::setrlimit(limit, hard, hard).expect("as many files as allowed");
        let from = |address: Ipv4Addr| {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
            socket.bind(&std::net::SocketAddr::from((address, 0)).into()).expect("its address");
            socket.connect(&std::net::SocketAddr::from((SERVER, 80)).into()).expect("a connection");
            TcpStream::from(socket)
        };
        machine.inside(|| {
            let mut attackers: Vec<(Instant, TcpStream)> = (0..5000_usize)
                .map(|number| {
                    let mut stream = from(addresses[number % 169]);
                    stream.write_all(b"GET / HTTP/1.1\r\nX-").expect("sent");
                    (Instant::now(), stream)
                })
                .collect();
            let mut times: Vec<Duration> = (0..500)
                .map(|_| {
                    let asked = Instant::now();
                    let mut stream = from(healthy);
                    stream.set_read_timeout(Some(crate::station::PATIENCE)).expect("a time-out");
                    assert_eq!(request(&mut stream, "HEAD", KERNEL, "", "").status, 200);
                    asked.elapsed()
                })
                .collect();
            times.sort();
            let (median, p99) = (times[250], times[495]);
            // Dropped in the order they came, so waiting for one delays the look at none.
            let lives = attackers.iter_mut().map(|(came, attacker)| {
                attacker.set_read_timeout(Some(crate::station::PATIENCE)).expect("a time-out");
                let end = attacker.read(&mut [0; 100]);
                assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
                came.elapsed()
            });
            let longest = lives.max().expect("attackers");
            println!(
                "among 5000 slow heads: median {median:?}, p99 {p99:?}; the last is dropped after {longest:?}"
            );
            assert!(p99 < Duration::from_millis(100), "{p99:?}");
            // Ten seconds for a head.
            assert!(longest < Duration::from_secs(15), "{longest:?}");
        });
    });
}

#[test]
fn replies_dissect_without_a_mark() {
    GROUP.dissect();
}
