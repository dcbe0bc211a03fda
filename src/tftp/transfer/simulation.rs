//! The transfer against a model client over a link that loses, repeats and reorders, in virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::tftp::wire::parse_request;

/// Half of the round trip of 1 ms.
const DELAY: Duration = Duration::from_micros(500);
/// What a patient client waits before it asks or acknowledges again.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(1);
/// A simulated hour: whatever has not ended by then never does.
const END: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug)]
struct Link {
    loss: f64,
    repetition: f64,
    reordering: f64,
}

/// SplitMix64: the same seed is the same run.
struct Random(u64);

impl Random {
    fn chance(&mut self, probability: f64) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64 <= probability && probability > 0.0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    Server,
    Client,
}

/// Receives as RFC 7440 §4 says: acknowledges a full window, a gap once, and on its own time-out.
struct Client {
    request: Vec<u8>,
    blksize: usize,
    windowsize: u64,
    /// Last block received in order; `None` before the first answer.
    last: Option<u64>,
    acknowledged: u64,
    gap_told: bool,
    received: Vec<u8>,
    complete: bool,
    deadline: Instant,
}

impl Client {
    fn handle(&mut self, datagram: &[u8], now: Instant) -> Option<Vec<u8>> {
        let ack = |block: u64| Some(vec![0, 4, (block >> 8) as u8, block as u8]);
        match datagram {
            [0, 6, ..] => {
                if self.last.is_none() {
                    self.last = Some(0);
                    self.deadline = now + CLIENT_TIMEOUT;
                }
                (self.last == Some(0)).then(|| ack(0)).flatten()
            }
            [0, 3, high, low, data @ ..] => {
                let last = *self.last.get_or_insert(0);
                if u16::from_be_bytes([*high, *low]) != (last + 1) as u16 {
                    let tell = self.windowsize == 1 || !std::mem::replace(&mut self.gap_told, true);
                    if tell {
                        self.acknowledged = last;
                    }
                    return tell.then(|| ack(last)).flatten();
                }
                if self.complete {
                    return None;
                }
                self.gap_told = false;
                self.last = Some(last + 1);
                self.received.extend_from_slice(data);
                self.complete = data.len() < self.blksize;
                self.deadline = now + CLIENT_TIMEOUT;
                if self.complete || last + 1 - self.acknowledged >= self.windowsize {
                    self.acknowledged = last + 1;
                    return ack(last + 1);
                }
                None
            }
            _ => None,
        }
    }

    fn handle_timeout(&mut self, now: Instant) -> Vec<u8> {
        self.deadline = now + CLIENT_TIMEOUT;
        match self.last {
            None => self.request.clone(),
            Some(last) => {
                self.acknowledged = last;
                vec![0, 4, (last >> 8) as u8, last as u8]
            }
        }
    }
}

/// When it arrives, in which order among equals, where, and what.
type Flight = (Instant, u64, To, Vec<u8>);

struct World {
    link: Link,
    random: Random,
    file: Bytes,
    now: Instant,
    client: Client,
    transfer: Option<Transfer>,
    in_flight: BinaryHeap<Reverse<Flight>>,
    sequence: u64,
    server_sent: u64,
}

/// What a run came to.
#[derive(Debug)]
struct Run {
    took: Duration,
    server_sent: u64,
    blocks: u64,
    outcome: Option<FileOutcome>,
}

impl World {
    fn new(seed: u64, link: Link, size: usize, blksize: usize, windowsize: u64) -> Self {
        let now = Instant::now();
        let request = format!("\0\x01f\0octet\0blksize\0{blksize}\0windowsize\0{windowsize}\0").into_bytes();
        let client = Client {
            request,
            blksize,
            windowsize,
            last: None,
            acknowledged: 0,
            gap_told: false,
            received: Vec::new(),
            complete: false,
            deadline: now,
        };
        let file =
            (0..size).map(|index| (index.wrapping_mul(2_654_435_761) >> 7) as u8).collect::<Vec<_>>().into();
        Self {
            link,
            random: Random(seed),
            file,
            now,
            client,
            transfer: None,
            in_flight: BinaryHeap::new(),
            sequence: 0,
            server_sent: 0,
        }
    }

    fn carry(&mut self, to: To, datagram: Vec<u8>) {
        let copies = 1 + u32::from(self.random.chance(self.link.repetition));
        for _ in 0..copies {
            if self.random.chance(self.link.loss) {
                continue;
            }
            let late = if self.random.chance(self.link.reordering) { DELAY * 5 } else { Duration::ZERO };
            self.sequence += 1;
            self.in_flight.push(Reverse((self.now + DELAY + late, self.sequence, to, datagram.clone())));
        }
    }

    fn drain_server(&mut self) {
        let mut sent = Vec::new();
        while let Some(transmit) = self.transfer.as_mut().and_then(Transfer::poll_transmit) {
            match transmit {
                Transmit::OptionAck(oack) => sent.push(oack.to_vec()),
                Transmit::Blocks(burst) => {
                    sent.extend(burst.segments().map(|(header, data)| [header.as_slice(), data].concat()));
                }
            }
        }
        self.server_sent += sent.len() as u64;
        sent.into_iter().for_each(|datagram| self.carry(To::Client, datagram));
    }

    fn deliver(&mut self, to: To, datagram: &[u8]) {
        match to {
            To::Client => {
                if let Some(answer) = self.client.handle(datagram, self.now) {
                    self.carry(To::Server, answer);
                }
            }
            To::Server => match parse_request(datagram) {
                Ok(request) => match &mut self.transfer {
                    Some(transfer) if transfer.outcome().is_none() => {
                        transfer.handle_repeated_request(self.now)
                    }
                    _ => {
                        let limits = Limits { blksize_max: 1468, windowsize_max: 64 };
                        self.transfer = Some(Transfer::new(&request, &limits, self.file.clone(), self.now));
                    }
                },
                Err(_) => {
                    if let Some(transfer) = &mut self.transfer {
                        transfer.handle_datagram(datagram, self.now);
                    }
                }
            },
        }
    }

    fn run(mut self) -> Run {
        let began = self.now;
        let mut took = None;
        while self.now - began < END {
            let server = self.transfer.as_ref().and_then(Transfer::next_deadline);
            if self.client.complete {
                took.get_or_insert(self.now - began);
                if server.is_none() {
                    break;
                }
            }
            let client = (!self.client.complete).then_some(self.client.deadline);
            let packet = self.in_flight.peek().map(|Reverse((at, ..))| *at);
            let Some(next) = [server, client, packet].into_iter().flatten().min() else { break };
            self.now = self.now.max(next);
            if packet == Some(next) {
                let Some(Reverse((_, _, to, datagram))) = self.in_flight.pop() else { break };
                self.deliver(to, &datagram);
            } else if client == Some(next) {
                let datagram = self.client.handle_timeout(self.now);
                self.carry(To::Server, datagram);
            } else if let Some(transfer) = &mut self.transfer {
                transfer.handle_timeout(self.now);
            }
            self.drain_server();
        }
        assert!(self.client.received == self.file, "not bit-exact, or not complete");
        Run {
            took: took.unwrap_or(END),
            server_sent: self.server_sent,
            blocks: (self.file.len() / self.client.blksize) as u64 + 1,
            outcome: self.transfer.and_then(|transfer| transfer.outcome().cloned()),
        }
    }
}

const PERFECT: Link = Link { loss: 0.0, repetition: 0.0, reordering: 0.0 };
const MEBIBYTE: usize = 1 << 20;

#[test]
fn on_a_perfect_link_every_block_leaves_once() {
    for (size, blksize, windowsize) in
        [(0, 8, 1), (MEBIBYTE, 512, 1), (MEBIBYTE, 1468, 16), (MEBIBYTE, 1468, 64)]
    {
        let run = World::new(1, PERFECT, size, blksize, windowsize).run();
        assert_eq!(run.outcome, Some(FileOutcome::Complete));
        assert_eq!(run.server_sent, run.blocks + 1, "OACK and each block");
    }
}

#[test]
fn a_mebibyte_survives_loss_within_the_time_a_boot_has() {
    for (loss, limit) in [(0.01, 2), (0.05, 10), (0.20, 120)] {
        for windowsize in [1, 4, 16] {
            let mut total = Duration::ZERO;
            for seed in 0..20 {
                let run = World::new(seed, Link { loss, ..PERFECT }, MEBIBYTE, 1468, windowsize).run();
                assert_eq!(
                    run.outcome,
                    Some(FileOutcome::Complete),
                    "loss {loss}, window {windowsize}, seed {seed}"
                );
                total += run.took;
            }
            let mean = total / 20;
            println!("loss {loss}, window {windowsize}: {mean:?}");
            assert!(mean <= Duration::from_secs(limit), "loss {loss}, window {windowsize}: {mean:?}");
        }
    }
}

#[test]
fn repetition_and_reordering_cost_little() {
    let link = Link { loss: 0.0, repetition: 0.1, reordering: 0.1 };
    for (windowsize, factor) in [(1, 1.01), (4, 2.0), (16, 4.0)] {
        let run = World::new(7, link, MEBIBYTE, 1468, windowsize).run();
        assert_eq!(run.outcome, Some(FileOutcome::Complete));
        assert!(run.server_sent as f64 <= run.blocks as f64 * factor + 2.0, "window {windowsize}: {run:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, rng_seed: RngSeed::Fixed(7440), ..Default::default() })]

    #[test]
    fn any_link_any_size_is_bit_exact_with_bounded_traffic(
        seed: u64,
        size in 0..60_000_usize,
        blksize in prop::sample::select(vec![8_usize, 512, 1024, 1468]),
        windowsize in 1..=64_u64,
        loss in 0.0..0.2_f64,
        repetition in 0.0..0.2_f64,
        reordering in 0.0..0.2_f64,
    ) {
        let size = size.min(blksize * 2000);
        let run = World::new(seed, Link { loss, repetition, reordering }, size, blksize, windowsize).run();
        prop_assert!(run.outcome.is_some());
        // A window is sent again for each loss in it, and losses come at this rate.
        let per_block = 4.0 + windowsize as f64 * (loss + reordering + repetition) * 4.0;
        prop_assert!(run.server_sent as f64 <= 400.0 + run.blocks as f64 * per_block, "{:?}", run);
    }
}
