//! Limits, patience, and the end.

use std::time::Duration;

use farrier::bootplane::limits::Limits;
use farrier::node::timeline::{FileOutcome, aborted};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::support::{OFF_SUBNET_IP, OTHER_IP, PATIENCE, Plane};

const SCRIPT: &str = "/boot/52-54-00-00-00-01/script.ipxe";

#[tokio::test]
async fn h_11_a_head_that_trickles_is_cut_while_a_patient_client_stays() {
    let limits = Limits { head: Duration::from_millis(300), ..Limits::default() };
    let plane = Plane::start_with(limits).await;
    let mut patient = plane.connect().await;
    assert_eq!(patient.request("HEAD", "/image/vm/vmlinuz", "").await.status, 200);
    let mut silent = plane.connect().await;
    let mut trickling = plane.connect().await;
    trickling.send("GET /image/vm/vmlinuz HTTP/1.1\r\n").await;
    let mut trickling_later = plane.connect().await;
    assert_eq!(trickling_later.request("GET", "/nothing", "").await.status, 404);
    trickling_later.send("G").await;
    for attacker in [&mut silent, &mut trickling, &mut trickling_later] {
        assert_eq!(attacker.read_to_close().await, b"");
    }
    assert_eq!(plane.counted("http", "head-timeout").await, 3);
    assert!(patient.request("GET", "/image/vm/vmlinuz", "").await.body == plane.kernel);
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_the_end() {
    let plane = Plane::start_with(Limits { idle: Duration::from_millis(200), ..Limits::default() }).await;
    let mut client = plane.connect().await;
    assert_eq!(client.request("GET", "/nothing", "").await.status, 404);
    assert_eq!(client.read_to_close().await, b"");
    assert_eq!(plane.counted("http", "idle-closed").await, 1);
}

#[tokio::test]
async fn slow_heads_by_the_hundred_delay_nobody() {
    let limits = Limits { connections_per_peer: 1000, ..Limits::default() };
    let plane = Plane::start_with(limits).await;
    let mut attackers = Vec::new();
    for _ in 0..300 {
        let mut attacker = plane.connect_from(OTHER_IP).await;
        attacker.send("GET / HTTP/1.1\r\nX-").await;
        attackers.push(attacker);
    }
    let began = Instant::now();
    assert_eq!(plane.get(SCRIPT).await.status, 200);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn downloads_that_stand_still_do_not_starve_a_script() {
    let limits = Limits { connections_per_peer: 1000, ..Limits::default() };
    let plane = Plane::start_with(limits).await;
    let mut downloads = Vec::new();
    for _ in 0..200 {
        let mut client = plane.connect_from(OTHER_IP).await;
        client.send("GET /image/vm/initrd.img HTTP/1.1\r\nHost: a\r\n\r\n").await;
        downloads.push(client);
    }
    let began = Instant::now();
    assert_eq!(plane.get(SCRIPT).await.status, 200);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_and_its_file_is_told_as_broken_off() {
    let limits = Limits { progress_window: Duration::from_millis(300), ..Limits::default() };
    let plane = Plane::start_with(limits).await;
    let mut client = plane.connect().await;
    client.send("GET /image/vm/initrd.img HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let (outcome, sent) = plane.file_event("image/vm/initrd.img").await;
    assert_eq!(outcome, FileOutcome::Aborted(aborted::TOO_SLOW.to_owned()));
    assert!(sent > 0 && sent < 20_000_000, "{sent}");
    assert_eq!(plane.counted("http", "too-slow").await, 1);
}

#[tokio::test]
async fn what_a_broken_off_download_was_sent_is_told_to_the_byte() {
    let limits = Limits { progress_window: Duration::from_millis(300), ..Limits::default() };
    let plane = Plane::start_with(limits).await;
    let mut client = plane.connect().await;
    client.send("GET /image/vm/initrd.img HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let (_, sent) = plane.file_event("image/vm/initrd.img").await;
    let received = client.read_to_close().await;
    let head = received.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert_eq!((received.len() - head) as u64, sent);
    assert!(plane.ramdisk.starts_with(&received[head..]));
}

#[tokio::test]
async fn a_client_that_pauses_is_waited_for() {
    let plane = Plane::start().await;
    let mut pausing = plane.connect().await;
    pausing.send("GET /image/vm/initrd.img HTTP/1.1\r\nHost: a\r\n\r\n").await;
    pausing.stream.readable().await.unwrap();
    // Time enough for the socket to fill up, and for the download to get stuck.
    for _ in 0..20 {
        assert!(plane.get_from(OTHER_IP, "/image/vm/vmlinuz").await.body == plane.kernel);
    }
    assert_eq!(plane.happenings().len(), 1, "registered, and nothing fetched to its end");
    assert!(pausing.answer().await.body == plane.ramdisk);
    assert_eq!(plane.file_event("image/vm/initrd.img").await, (FileOutcome::Complete, 20_000_000));
}

#[tokio::test]
async fn a_client_that_goes_away_is_told_as_broken_off() {
    let plane = Plane::start().await;
    let mut client = plane.connect().await;
    client.send("GET /image/vm/initrd.img HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.stream.readable().await.unwrap();
    drop(client);
    let (outcome, sent) = plane.file_event("image/vm/initrd.img").await;
    assert_eq!(outcome, FileOutcome::Aborted("connection closed".to_owned()));
    assert!(sent < 20_000_000, "{sent}");
}

#[tokio::test]
async fn a_half_closed_connection_is_answered() {
    let plane = Plane::start().await;
    let mut client = plane.connect().await;
    client.send("GET /image/vm/vmlinuz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.stream.shutdown().await.unwrap();
    assert!(client.answer().await.body == plane.kernel);
    assert_eq!(client.read_to_close().await, b"");
}

#[tokio::test]
async fn one_address_has_its_share_of_connections_and_no_more() {
    let limits = Limits { connections_per_peer: 3, ..Limits::default() };
    let plane = Plane::start_with(limits).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut client = plane.connect().await;
        assert_eq!(client.request("GET", "/nothing", "").await.status, 404);
        held.push(client);
    }
    let mut fourth = plane.connect().await;
    assert_eq!(fourth.request("GET", "/nothing", "").await.status, 404, "a machine that lost power is back");
    assert_eq!(plane.counted("http", "too-many-connections").await, 1);
    assert_eq!(held.remove(0).read_to_close().await, b"", "the oldest made room");
    for client in &mut held {
        assert_eq!(client.request("GET", "/nothing", "").await.status, 404, "the others stay");
    }
    assert_eq!(plane.get_from(OTHER_IP, "/nothing").await.status, 404, "others are not concerned");
}

#[tokio::test]
async fn when_all_connections_are_taken_the_next_one_waits() {
    let plane = Plane::start_with(Limits { connections: 1, ..Limits::default() }).await;
    let mut first = plane.connect().await;
    assert_eq!(first.request("GET", "/nothing", "").await.status, 404);
    let mut second = plane.connect_from(OTHER_IP).await;
    second.send("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n").await;
    for _ in 0..100 {
        assert_eq!(first.request("GET", "/nothing", "").await.status, 404);
    }
    let nothing_yet = second.stream.try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing_yet.kind(), std::io::ErrorKind::WouldBlock);
    drop(first);
    assert_eq!(second.answer().await.status, 404);
}

#[tokio::test]
async fn peers_from_elsewhere_are_not_spoken_to() {
    let plane = Plane::start().await;
    let mut client = plane.connect_from(OFF_SUBNET_IP).await;
    client.send("GET /image/vm/vmlinuz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.read_to_close().await, b"");
    assert_eq!(plane.counted("http", "off-subnet").await, 1);
}

#[tokio::test]
async fn h_15_ipxe_is_told_to_come_back_when_too_many_download_and_others_never_are() {
    let bulk_wait = Duration::from_millis(50);
    let limits = Limits { bulk_transfers: 1, bulk_reserve: 0, bulk_wait, ..Limits::default() };
    let plane = Plane::start_with(limits).await;
    let asks =
        |path: &str, agent: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\nUser-Agent: {agent}\r\n\r\n");
    let mut first = plane.connect().await;
    first.send(&asks("/image/vm/initrd.img", "curl/8")).await;
    first.stream.readable().await.unwrap();

    let mut ipxe = plane.connect().await;
    let agent = "User-Agent: iPXE/1.21.1\r\n";
    let busy = ipxe.request("GET", "/image/vm/vmlinuz", agent).await;
    assert_eq!((busy.status, busy.header("Retry-After")), (503, Some("5")));
    assert_eq!(ipxe.request("HEAD", "/image/vm/vmlinuz", agent).await.status, 200);
    assert_eq!(ipxe.request("GET", SCRIPT, agent).await.status, 200);

    let mut queued = Vec::new();
    for (number, agent) in [(2, "GRUB 2.06"), (3, "UefiHttpBoot/1.0"), (4, "who knows")] {
        let mut client = plane.connect().await;
        client.send(&asks("/image/vm/initrd.img", agent)).await;
        assert_eq!(plane.counted_up_to("http", "queued", number).await, number);
        queued.push(client);
    }
    assert_eq!(plane.tally.levels_of("http", "waiting-downloads"), Some((3, 8192)));
    assert_eq!(plane.tally.levels_of("http", "downloads"), Some((1, 1)));
    assert!(first.answer().await.body == plane.ramdisk);
    // The order of time-outs. Nobody's ramdisk is with the kernel before its client reads, so in any other order
    // this would wait for ever.
    queued.rotate_left(1);
    for mut client in queued {
        let answer = client.answer().await;
        assert!(answer.status == 200 && answer.body == plane.ramdisk);
    }
    assert_eq!(plane.tally.levels_of("http", "waiting-downloads"), Some((0, 8192)));
    assert_eq!(plane.counted("http", "busy").await, 1);
}

#[tokio::test]
async fn a_client_half_way_to_its_time_out_is_served_beyond_the_limit() {
    let plane = Plane::start_with(Limits { bulk_transfers: 0, ..Limits::default() }).await;
    let mut client = plane.connect().await;
    let began = Instant::now();
    let answer = client.request("GET", "/image/vm/vmlinuz", "User-Agent: UefiHttpBoot/1.0\r\n").await;
    assert!(answer.status == 200 && answer.body == plane.kernel);
    // edk2 gives up after five seconds.
    assert!((2500..4500).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn stopping_lets_answers_finish_and_cuts_those_that_do_not() {
    let plane = Plane::start_with(Limits { stop: Duration::from_millis(700), ..Limits::default() }).await;
    let mut idle = plane.connect().await;
    assert_eq!(idle.request("GET", "/nothing", "").await.status, 404);
    let request = "GET /image/vm/initrd.img HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut downloading = plane.connect().await;
    downloading.send(request).await;
    let mut standing_still = plane.connect().await;
    standing_still.send(request).await;
    for client in [&downloading, &standing_still] {
        client.stream.readable().await.unwrap();
    }
    let (began, address, ramdisk) = (Instant::now(), plane.address, plane.ramdisk.clone());
    let stopping = tokio::spawn(plane.handle.stop());
    assert_eq!(idle.read_to_close().await, b"");
    assert!(downloading.answer().await.body == ramdisk);
    tokio::time::timeout(PATIENCE, stopping).await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(standing_still.read_to_close().await.len() < ramdisk.len());
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
