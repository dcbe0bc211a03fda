//! What the seed decides before the storm begins: who the machines are, when each is switched on, and each one's luck.

use std::time::Duration;

use crate::net::MacAddr;
use crate::storm::firmware::Kind;
use crate::storm::machine::Goal;
use crate::storm::message::Identity;
use crate::storm::random::Stream;

/// Streams of the seed beside the machines' own: when they are switched on, what strangers are called, and (one per
/// machine, counted down) which datagrams are lost.
const POWER_STREAM: u64 = u64::MAX;
const STRANGER_STREAM: u64 = u64::MAX - 1;
const LOSS_STREAMS: u64 = u64::MAX - 2;
/// Datagrams of each machine whose fate goes into the fingerprint.
const FATES: usize = 64;

/// A storm, as ordered.
#[derive(Clone, Debug)]
pub struct Order {
    /// Firmware of each machine.
    pub machines: Vec<Kind>,
    pub goal: Goal,
    pub seed: u64,
    /// Share of datagrams lost, each way.
    pub loss: f64,
    /// All machines are switched on within this time.
    pub over: Duration,
    /// Who has not come home by then is lost.
    pub patience: Duration,
    pub flood: Option<Flood>,
}

/// DISCOVERs from MACs that never come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    pub per_second: u32,
    pub lasts: Duration,
}

/// One machine's part.
#[derive(Clone, Debug)]
pub struct Part {
    pub kind: Kind,
    pub identity: Identity,
    /// After the storm's beginning.
    pub power_on: Duration,
    /// Its transaction numbers and the spread of its timers.
    pub random: Stream,
    /// Decides which of its datagrams are lost, so that a machine's luck does not hang on the others' pace.
    pub luck: Stream,
}

#[derive(Clone, Debug)]
pub struct Schedule {
    pub parts: Vec<Part>,
    /// What strangers are called.
    pub strangers: Stream,
}

/// Locally administered, so that no real machine has it; two bytes of the seed, so that two storms differ.
pub fn identity(seed: u64, number: usize) -> Identity {
    let seed = Stream::new(seed, 0).next_u64().to_be_bytes();
    let [_, a, b, c] = (number as u32).to_be_bytes();
    let mac = MacAddr([0x02, seed[0], seed[1], a, b, c]);
    let mut uuid = *b"farrier-storm\0\0\0";
    uuid[10..].copy_from_slice(&mac.0);
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    Identity { mac, uuid }
}

impl Schedule {
    pub fn of(order: &Order) -> Schedule {
        let mut power = Stream::new(order.seed, POWER_STREAM);
        let part = |(number, kind): (usize, &Kind)| Part {
            power_on: order.over.mul_f64(power.unit()),
            ..Schedule::part(order.seed, number, *kind)
        };
        let parts = order.machines.iter().enumerate().map(part).collect();
        Schedule { parts, strangers: Stream::new(order.seed, STRANGER_STREAM) }
    }

    /// Machine `number`, switched on at once.
    pub fn part(seed: u64, number: usize, kind: Kind) -> Part {
        Part {
            kind,
            identity: identity(seed, number),
            power_on: Duration::ZERO,
            random: Stream::new(seed, number as u64),
            luck: Stream::new(seed, LOSS_STREAMS - number as u64),
        }
    }

    /// Two storms with the same fingerprint have the same machines, switched on at the same moments, with the same
    /// transaction numbers and the same losses.
    pub fn fingerprint(&self, loss: f64) -> String {
        // FNV-1a, 64 bits: to tell storms apart, not to withstand anybody.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut take = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        for part in &self.parts {
            take(&part.identity.mac.0);
            take(part.kind.as_str().as_bytes());
            take(&part.power_on.as_nanos().to_be_bytes());
            take(&part.random.clone().next_u32().to_be_bytes());
            let mut luck = part.luck.clone();
            let fates = (0..FATES).fold(0_u64, |fates, _| fates << 1 | u64::from(luck.chance(loss)));
            take(&fates.to_be_bytes());
        }
        format!("{hash:016x}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn order(seed: u64, loss: f64, nodes: usize) -> Order {
        Order {
            machines: (0..nodes).map(|number| Kind::MIX[number % 3]).collect(),
            goal: Goal::Enroll,
            seed,
            loss,
            over: Duration::from_secs(1),
            patience: Duration::from_secs(60),
            flood: None,
        }
    }

    #[test]
    fn one_seed_is_one_storm() {
        let print = |order: Order| Schedule::of(&order).fingerprint(order.loss);
        let whole = print(order(7, 0.1, 300));
        assert_eq!(print(order(7, 0.1, 300)), whole);
        assert_ne!(print(order(8, 0.1, 300)), whole, "another seed");
        assert_ne!(print(order(7, 0.2, 300)), whole, "another loss");
        assert_ne!(print(order(7, 0.1, 299)), whole, "another machine less");
    }

    #[test]
    fn a_machine_is_the_same_in_a_small_storm_and_in_a_large_one() {
        let (small, large) = (Schedule::of(&order(7, 0.1, 10)), Schedule::of(&order(7, 0.1, 1000)));
        for (one, other) in small.parts.iter().zip(&large.parts) {
            assert_eq!((one.identity, one.power_on), (other.identity, other.power_on));
            assert_eq!(one.random.clone().next_u64(), other.random.clone().next_u64());
            assert_eq!(one.luck.clone().next_u64(), other.luck.clone().next_u64());
        }
        let macs: HashSet<_> = large.parts.iter().map(|part| part.identity.mac).collect();
        assert_eq!(macs.len(), 1000);
        assert!(large.parts.iter().all(|part| part.power_on < Duration::from_secs(1)));
    }
}
