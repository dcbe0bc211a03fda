use proptest::prelude::*;

use super::*;
use crate::tftp::wire::{Operation, RequestedOptions};

const LIMITS: Limits = Limits { blksize_max: 1468, windowsize_max: 64 };

fn request(mode: Mode, options: RequestedOptions) -> Request<'static> {
    Request { operation: Operation::Read, name: b"f", mode, options }
}

/// A transfer of bytes that tell where they belong, and its clock.
struct Bench {
    transfer: Transfer,
    now: Instant,
}

impl Bench {
    fn new(size: usize, options: RequestedOptions) -> Self {
        let bytes = (0..size).map(|index| (index / 251) as u8 ^ index as u8).collect::<Vec<_>>();
        Self::of(bytes.into(), Mode::Octet, options)
    }

    fn of(bytes: Bytes, mode: Mode, options: RequestedOptions) -> Self {
        let now = Instant::now();
        Self { transfer: Transfer::new(&request(mode, options), &LIMITS, bytes, now), now }
    }

    fn plain(size: usize) -> Self {
        Self::new(size, RequestedOptions::default())
    }

    fn windowed(size: usize, windowsize: u16) -> Self {
        let mut bench =
            Self::new(size, RequestedOptions { windowsize: Some(windowsize), ..Default::default() });
        assert_eq!(bench.sent(), ["oack"]);
        bench.wait(1);
        bench.ack(0);
        bench
    }

    /// What leaves now: `oack`, or the numbers of the blocks.
    fn sent(&mut self) -> Vec<String> {
        let mut sent = Vec::new();
        while let Some(transmit) = self.transfer.poll_transmit() {
            match transmit {
                Transmit::OptionAck(_) => sent.push("oack".to_owned()),
                Transmit::Blocks(burst) => sent.extend(
                    burst
                        .segments()
                        .map(|([_, _, high, low], _)| u16::from_be_bytes([high, low]).to_string()),
                ),
            }
        }
        sent
    }

    fn wait(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    fn ack(&mut self, block: u16) {
        let [high, low] = block.to_be_bytes();
        self.transfer.handle_datagram(&[0, 4, high, low], self.now);
    }

    fn error(&mut self, code: u8, text: &str) {
        let datagram = [&[0, 5, 0, code], text.as_bytes(), &[0]].concat();
        self.transfer.handle_datagram(&datagram, self.now);
    }

    /// Lets the next deadline pass; how long that took.
    fn time_out(&mut self) -> u128 {
        let deadline = self.transfer.next_deadline().expect("still running");
        let waited = deadline.saturating_duration_since(self.now).as_millis();
        self.now = self.now.max(deadline);
        self.transfer.handle_timeout(self.now);
        waited
    }

    fn outcome(&self) -> Option<FileOutcome> {
        self.transfer.outcome().cloned()
    }
}

fn oack_text(options: RequestedOptions, size: usize) -> String {
    match Bench::new(size, options).transfer.poll_transmit() {
        Some(Transmit::OptionAck(oack)) => oack[2..].escape_ascii().to_string().replace("\\x00", " "),
        Some(Transmit::Blocks(_)) => "data".to_owned(),
        None => "nothing".to_owned(),
    }
}

#[test]
fn the_oack_grants_only_what_was_asked_for_and_clamps() {
    let none = RequestedOptions::default();
    for (asked, granted) in [
        (none, "data"),
        (RequestedOptions { blksize: Some(8), ..none }, "blksize 8 "),
        (RequestedOptions { blksize: Some(65464), ..none }, "blksize 1468 "),
        (RequestedOptions { tsize: true, ..none }, "tsize 5000 "),
        (RequestedOptions { timeout: Some(255.into()), ..none }, "timeout 255 "),
        (RequestedOptions { windowsize: Some(4), ..none }, "windowsize 4 "),
        (RequestedOptions { windowsize: Some(65535), ..none }, "windowsize 64 "),
        (
            RequestedOptions {
                blksize: Some(1024),
                tsize: true,
                timeout: Some(2.into()),
                windowsize: Some(1),
            },
            "blksize 1024 tsize 5000 timeout 2 windowsize 1 ",
        ),
    ] {
        assert_eq!(oack_text(asked, 5000), granted, "{asked:?}");
    }
}

#[test]
fn a_file_ends_with_a_short_block() {
    for (size, blocks) in [(0, 1), (1, 1), (511, 1), (512, 2), (513, 2), (1024, 3)] {
        let mut bench = Bench::plain(size);
        for block in 1..=blocks {
            assert_eq!(bench.sent(), [block.to_string()], "size {size}");
            assert_eq!(bench.outcome(), None);
            bench.ack(block);
        }
        assert_eq!(bench.outcome(), Some(FileOutcome::Complete), "size {size}");
        assert_eq!(bench.transfer.acknowledged(), size as u64);
        assert_eq!((bench.sent().len(), bench.transfer.retransmissions()), (0, 0));
    }
}

#[test]
fn the_counter_rolls_over_from_65535_to_0() {
    let mut bench = Bench::new(8 * 200_000, RequestedOptions { blksize: Some(8), ..Default::default() });
    bench.sent();
    bench.ack(0);
    for block in 1..=200_001_u64 {
        assert_eq!(bench.sent(), [(block as u16).to_string()]);
        bench.ack(block as u16);
    }
    assert_eq!(bench.outcome(), Some(FileOutcome::Complete));
}

#[test]
fn a_repeated_ack_never_sends_a_block_twice() {
    let mut bench = Bench::plain(5000);
    bench.sent();
    bench.ack(1);
    assert_eq!(bench.sent(), ["2"]);
    for _ in 0..100 {
        bench.wait(1);
        bench.ack(1);
        bench.ack(0);
        assert!(bench.sent().is_empty());
    }
    bench.time_out();
    assert_eq!(bench.sent(), ["2"]);
}

#[test]
fn acks_of_what_was_not_sent_are_ignored() {
    let mut bench = Bench::plain(5000);
    bench.sent();
    for block in [2, 3, 100, 65535] {
        bench.ack(block);
        assert!(bench.sent().is_empty(), "{block}");
    }
    bench.ack(1);
    assert_eq!(bench.sent(), ["2"]);
}

#[test]
fn a_lost_oack_or_its_lost_ack_brings_the_oack_again() {
    let mut bench = Bench::new(5000, RequestedOptions { tsize: true, ..Default::default() });
    assert_eq!(bench.sent(), ["oack"]);
    assert_eq!(bench.time_out(), 500);
    assert_eq!(bench.sent(), ["oack"]);
    bench.ack(1);
    assert!(bench.sent().is_empty(), "only block 0 acknowledges options");
    bench.ack(0);
    assert_eq!(bench.sent(), ["1"]);
}

#[test]
fn uefi_probing_the_size_is_a_probe() {
    let options = RequestedOptions { tsize: true, blksize: Some(1468), windowsize: Some(4), timeout: None };
    let mut bench = Bench::new(5000, options);
    bench.sent();
    bench.error(8, "User aborted the transfer");
    assert_eq!(bench.outcome(), Some(FileOutcome::Probe));
    assert_eq!((bench.transfer.next_deadline(), bench.transfer.acknowledged()), (None, 0));
}

#[test]
fn any_other_error_of_the_client_aborts_with_its_text() {
    let mut bench = Bench::plain(5000);
    bench.sent();
    bench.ack(1);
    bench.sent();
    bench.error(3, "disk \x1bfull");
    assert_eq!(bench.outcome(), Some(FileOutcome::Aborted("client error 3: disk \\x1bfull".to_owned())));
    assert_eq!(bench.transfer.acknowledged(), 512);
}

#[test]
fn a_client_that_never_answers_costs_four_packets() {
    for options in
        [RequestedOptions::default(), RequestedOptions { windowsize: Some(64), ..Default::default() }]
    {
        let mut bench = Bench::new(100_000, options);
        let mut packets = bench.sent().len();
        let mut waits = Vec::new();
        while bench.outcome().is_none() {
            waits.push(bench.time_out());
            packets += bench.sent().len();
        }
        assert_eq!((packets, waits), (4, vec![500, 1000, 2000, 4000]));
        assert!(matches!(bench.outcome(), Some(FileOutcome::Aborted(_))));
    }
}

#[test]
fn a_repeated_request_repeats_the_first_packet_until_the_client_has_answered() {
    let mut bench = Bench::plain(5000);
    bench.sent();
    bench.transfer.handle_repeated_request(bench.now);
    assert_eq!(bench.sent(), ["1"]);
    bench.ack(1);
    bench.sent();
    bench.transfer.handle_repeated_request(bench.now);
    assert!(bench.sent().is_empty());
}

#[test]
fn the_timer_follows_the_round_trip_and_ignores_what_was_sent_twice() {
    let mut bench = Bench::plain(512 * 20);
    bench.sent();
    for block in 1..8 {
        bench.wait(2);
        bench.ack(block);
        bench.sent();
    }
    assert_eq!(bench.time_out(), 50);
    assert_eq!(bench.time_out(), 100, "backing off");
    bench.sent();
    bench.ack(8);
    bench.sent();
    assert_eq!(bench.time_out(), 50, "it was lost, the estimate holds");
}

#[test]
fn a_block_answered_twice_was_late_and_the_timer_waits_longer() {
    let mut bench = Bench::plain(512 * 20);
    bench.sent();
    bench.wait(2);
    bench.ack(1);
    bench.sent();
    bench.time_out();
    bench.time_out();
    bench.sent();
    bench.ack(2);
    assert_eq!(bench.sent(), ["3"]);
    bench.ack(2);
    assert!(bench.sent().is_empty());
    assert_eq!(bench.time_out(), 200);
    bench.sent();
    bench.ack(3);
    bench.sent();
    assert_eq!(bench.time_out(), 400, "kept until an answer can be timed");
    bench.sent();
    bench.ack(4);
    bench.sent();
    bench.wait(60);
    bench.ack(5);
    bench.sent();
    assert!((60..400).contains(&bench.time_out()));
}

#[test]
fn a_silent_client_is_given_up() {
    let mut bench = Bench::plain(512 * 20);
    bench.sent();
    bench.wait(1);
    bench.ack(1);
    let (mut packets, began) = (bench.sent().len(), bench.now);
    while bench.outcome().is_none() {
        bench.time_out();
        packets += bench.sent().len();
    }
    assert!(matches!(bench.outcome(), Some(FileOutcome::Aborted(_))));
    assert!(packets <= 20 && bench.now - began <= PROGRESS_TIMEOUT, "{packets} packets");
}

#[test]
fn a_last_ack_that_never_comes_is_a_complete_transfer() {
    let mut bench = Bench::plain(700);
    bench.sent();
    bench.wait(1);
    bench.ack(1);
    let mut packets = bench.sent().len();
    while bench.outcome().is_none() {
        bench.time_out();
        packets += bench.sent().len();
    }
    assert_eq!((bench.outcome(), packets), (Some(FileOutcome::Complete), 6));
    assert_eq!(bench.transfer.outcome_if_abandoned(), FileOutcome::Complete);
}

#[test]
fn a_client_that_turns_away_has_either_all_or_not() {
    let mut bench = Bench::plain(700);
    bench.sent();
    assert!(matches!(bench.transfer.outcome_if_abandoned(), FileOutcome::Aborted(_)));
    bench.ack(1);
    assert!(
        matches!(bench.transfer.outcome_if_abandoned(), FileOutcome::Aborted(_)),
        "block 2 has not left yet"
    );
    bench.sent();
    assert_eq!(bench.transfer.outcome_if_abandoned(), FileOutcome::Complete);
}

#[test]
fn a_window_is_sent_whole_and_moves_when_it_is_acknowledged() {
    let mut bench = Bench::windowed(512 * 10, 4);
    assert_eq!(bench.sent(), ["1", "2", "3", "4"]);
    bench.wait(1);
    bench.ack(4);
    assert_eq!(bench.sent(), ["5", "6", "7", "8"]);
    bench.wait(1);
    bench.ack(8);
    assert_eq!(bench.sent(), ["9", "10", "11"]);
    bench.ack(11);
    assert_eq!((bench.outcome(), bench.transfer.retransmissions()), (Some(FileOutcome::Complete), 0));
}

#[test]
fn an_ack_inside_the_window_goes_back_to_the_lost_block() {
    let mut bench = Bench::windowed(512 * 20, 4);
    bench.sent();
    bench.wait(1);
    bench.ack(2);
    assert_eq!(bench.sent(), ["3", "4", "5", "6"]);
    assert_eq!(bench.transfer.retransmissions(), 2);
    bench.wait(1);
    bench.ack(6);
    assert_eq!(bench.sent(), ["7", "8", "9", "10"]);
}

#[test]
fn a_repeated_ack_brings_the_window_back_once_per_round_trip() {
    let mut bench = Bench::windowed(512 * 100, 4);
    bench.sent();
    bench.wait(1);
    bench.ack(4);
    bench.sent();
    for _ in 0..50 {
        bench.ack(4);
        assert!(bench.sent().is_empty());
    }
    let waited = bench.time_out();
    assert!((1..=5).contains(&waited), "{waited}: long before the timer");
    assert_eq!(bench.sent(), ["5", "6", "7", "8"]);
    bench.wait(1);
    bench.ack(8);
    assert_eq!(bench.sent(), ["9", "10", "11", "12"]);
    assert!(bench.time_out() >= 50, "the hint is forgotten with the window");
}

#[test]
fn a_client_that_acknowledges_every_block_of_a_window_does_not_multiply_it() {
    let mut bench = Bench::windowed(512 * 1000, 16);
    let mut packets = bench.sent().len();
    for block in 1..=1001 {
        bench.ack(block);
        packets += bench.sent().len();
    }
    assert_eq!(bench.outcome(), Some(FileOutcome::Complete));
    assert!(packets < 3 * 1001, "{packets}");
}

#[test]
fn a_burst_is_no_more_than_the_kernel_cuts() {
    for (blksize, bursts) in [(1468, vec![44, 20]), (8, vec![64])] {
        let options = RequestedOptions { blksize: Some(blksize), windowsize: Some(64), ..Default::default() };
        let mut bench = Bench::new(200_000, options);
        bench.sent();
        bench.ack(0);
        let mut lengths = Vec::new();
        while let Some(Transmit::Blocks(burst)) = bench.transfer.poll_transmit() {
            assert!(burst.payload.len() + 4 * burst.count <= BURST_BYTES_MAX);
            lengths.push(burst.count);
        }
        assert_eq!(lengths, bursts, "blksize {blksize}");
    }
}

#[test]
fn netascii_is_converted_without_size_and_window() {
    let options = RequestedOptions { blksize: Some(8), tsize: true, windowsize: Some(16), timeout: None };
    let mut bench = Bench::of(Bytes::from_static(b"one\ntwo\r\nthree\n"), Mode::Netascii, options);
    let Some(Transmit::OptionAck(oack)) = bench.transfer.poll_transmit() else { panic!("an OACK") };
    assert_eq!(&oack[..], b"\0\x06blksize\x008\0");
    bench.ack(0);
    let mut text = Vec::new();
    for block in 1..=3 {
        for again in [false, true] {
            if again {
                bench.time_out();
            }
            let Some(Transmit::Blocks(burst)) = bench.transfer.poll_transmit() else {
                panic!("block {block}")
            };
            let (header, data) = burst.segments().next().unwrap();
            assert_eq!((header[3], burst.count), (block, 1));
            if again {
                text.extend_from_slice(data);
            }
            assert!(bench.transfer.poll_transmit().is_none());
        }
        bench.ack(block.into());
    }
    assert_eq!(text, b"one\r\ntwo\r\0\r\nthree\r\n");
    assert_eq!((bench.outcome(), bench.transfer.acknowledged()), (Some(FileOutcome::Complete), 15));
}

#[test]
fn an_empty_text_is_one_empty_block() {
    let mut bench = Bench::of(Bytes::new(), Mode::Netascii, RequestedOptions::default());
    assert_eq!(bench.sent(), ["1"]);
    bench.ack(1);
    assert_eq!(bench.outcome(), Some(FileOutcome::Complete));
}

proptest! {
    /// Whatever arrives, and whenever: no panic, never more than a window in one go, blocks only within the file.
    #[test]
    fn arbitrary_datagrams_and_timeouts_are_survived(
        size in 0..40_000_usize,
        blksize in prop::option::of(8..2000_u16),
        windowsize in prop::option::of(1..100_u16),
        text: bool,
        steps in prop::collection::vec((0..6_u8, any::<u16>(), prop::collection::vec(any::<u8>(), 0..20), 0..3000_u64), 0..200),
    ) {
        let options = RequestedOptions { blksize, windowsize, tsize: true, timeout: None };
        let mode = if text { Mode::Netascii } else { Mode::Octet };
        let mut bench = Bench::of(vec![b'\n'; size].into(), mode, options);
        for (kind, number, noise, millis) in steps {
            let now = bench.now;
            match kind {
                0 => bench.transfer.handle_datagram(&noise, now),
                1 => bench.ack(number),
                2 => bench.ack(number % 128),
                3 => bench.wait(millis),
                4 => bench.transfer.handle_repeated_request(now),
                _ => bench.transfer.handle_timeout(now),
            }
            prop_assert!(bench.sent().len() <= 64);
            prop_assert!(bench.transfer.acknowledged() <= size as u64);
            prop_assert_eq!(bench.transfer.next_deadline().is_none(), bench.transfer.outcome().is_some());
        }
    }
}

#[test]
fn a_peer_that_gets_less_is_granted_less_and_a_window_of_one_not_at_all() {
    let asked = RequestedOptions { blksize: Some(1468), windowsize: Some(16), ..Default::default() };
    for (blksize_max, windowsize_max, granted) in [
        (Some(1024), None, "blksize 1024 windowsize 16 "),
        (None, Some(4), "blksize 1468 windowsize 4 "),
        (Some(9000), Some(64), "blksize 1468 windowsize 16 "),
        (Some(512), Some(1), "blksize 512 "),
    ] {
        let limits = LIMITS.within(&Restraint { blksize_max, windowsize_max, pace: None });
        let now = Instant::now();
        let mut transfer = Transfer::new(&request(Mode::Octet, asked), &limits, vec![7; 5000].into(), now);
        let Some(Transmit::OptionAck(oack)) = transfer.poll_transmit() else { panic!("no OACK") };
        assert_eq!(oack[2..].escape_ascii().to_string().replace("\\x00", " "), granted);
    }
}

#[test]
fn a_paced_transfer_takes_its_time_and_repeats_nothing() {
    for (windowsize, mode) in [(1, Mode::Octet), (16, Mode::Octet), (1, Mode::Netascii)] {
        let options = RequestedOptions {
            windowsize: Some(windowsize).filter(|window| *window > 1),
            ..RequestedOptions::default()
        };
        let size = 100_000;
        let mut bench = Bench::of(vec![b'x'; size].into(), mode, options);
        // 125 kB a second.
        bench.transfer = bench.transfer.paced(Some(Arc::new(Pace::new(1))));
        let start = bench.now;
        while bench.outcome().is_none() {
            let (mut last, sent) = (None, bench.sent());
            if sent == ["oack"] {
                bench.ack(0);
                continue;
            }
            last = sent.last().and_then(|block| block.parse::<u16>().ok()).or(last);
            bench.wait(1);
            match last {
                Some(block) if block % windowsize == 0 || usize::from(block) == size / 512 + 1 => {
                    bench.ack(block)
                }
                Some(_) | None => {
                    bench.time_out();
                }
            }
        }
        assert_eq!(bench.outcome(), Some(FileOutcome::Complete));
        assert_eq!(bench.transfer.retransmissions(), 0);
        let took = (bench.now - start).as_secs_f64();
        assert!((0.79..1.0).contains(&took), "{windowsize}, {mode:?}: {took} s");
    }
}
