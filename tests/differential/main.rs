//! farrier beside Kea and dnsmasq: the same sequences of client messages, thousands of them, played to all three. Where the
//! answers differ, the difference is on a list with its reason (`DIFFERENCES.md`), or the test fails.
//!
//! ```text
//!   seed ─ sequence ─┬─ player ─ farrier ─┐
//!                    ├─ player ─ Kea ─────┼─ compare ─ differences ─ list
//!                    └─ player ─ dnsmasq ─┘
//! ```
//!
//! A sequence is words (`sequence`): "requests its offer", "declines another's address". Each server has its own answer to
//! which address that is (`player`); its answers are turned back into words (`message`), and words are compared. After the
//! first answer that differs in kind or address the two servers are in different states: the rest of that sequence is not
//! compared.
//!
//! `DIFFERENTIAL_SEQUENCES=n` plays that many, from `DIFFERENTIAL_FROM=n` on; `DIFFERENTIAL_SEED=n` one of them, and tells it.

mod client;
mod compare;
mod ground;
mod list;
mod message;
mod player;
mod sequence;
#[path = "../conformance/station.rs"]
#[expect(dead_code, reason = "shared with the acceptance checks, which look at more of a frame")]
mod station;
#[path = "../it/support.rs"]
#[expect(dead_code, reason = "shared with the other black-box tests, which use more of it")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Instant;

use compare::Difference;
use ground::{Ground, Who};
use list::Entry;
use player::{Player, Story};
use sequence::Sequence;
use support::in_namespace;

/// Sequences of a plain `cargo test`.
const SEQUENCES: u64 = 1000;
/// From so many on, whatever is on the list must have been met.
const COMPLETE: u64 = 10_000;
/// After each batch the kernels forget their neighbours.
const BATCH: usize = 200;
/// At most one in so many sequences may differ once only, by a peer.
const ONCE: u64 = 500;
/// Kinds of unlisted differences worth printing.
const SHOWN: usize = 40;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// The three servers' stories of these sequences, side by side.
fn play(players: &mut [(Who, Player)], first: u32, sequences: &[Sequence]) -> BTreeMap<Who, Vec<Story>> {
    thread::scope(|scope| {
        let playing: Vec<_> = players
            .iter_mut()
            .map(|(who, player)| (*who, scope.spawn(move || player.play(first, sequences))))
            .collect();
        playing
            .into_iter()
            .map(|(who, thread)| {
                (who, thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            })
            .collect()
    })
}

fn players(ground: &Ground) -> Vec<(Who, Player)> {
    let stations = [Who::Farrier, Who::Kea, Who::Dnsmasq].map(|who| (who, ground.station(who)));
    stations.map(|(who, station)| (who, Player::new(who, station))).into()
}

#[test]
fn d_38_every_difference_from_kea_and_dnsmasq_is_on_the_list() {
    in_namespace("d_38_every_difference_from_kea_and_dnsmasq_is_on_the_list", || {
        let ground = Ground::start();
        let mut players = players(&ground);
        match number("DIFFERENTIAL_SEED") {
            Some(seed) => tell(seed, &mut players),
            None => compare_many(&ground, &mut players),
        }
    });
}

/// One sequence, told step by step.
fn tell(seed: u64, players: &mut [(Who, Player)]) {
    let sequence = Sequence::of(seed);
    let stories = play(players, 0, std::slice::from_ref(&sequence));
    println!("seed {seed}: {:?}", sequence.machines);
    for (step, ours) in stories[&Who::Farrier][0].iter().enumerate() {
        println!("{step}. machine {}: {}", ours.asked.step.who, compare::line(ours));
        for (who, stories) in &stories {
            println!("   {:8} {}", who.name(), compare::told(stories[0][step].told.as_ref()));
        }
    }
    let list = list::read();
    for difference in differences(&stories, &[sequence]) {
        let Difference { peer, step, what, farrier, theirs, .. } = &difference;
        println!("step {step}, {what}: farrier {farrier}, {} {theirs}", peer.name());
        match list::place_of(&list, &difference) {
            Some(at) => println!("   DIFFERENCES.md:{}: {}", list[at].line, list[at].reason),
            None => println!("   not on the list"),
        }
    }
}

fn differences(stories: &BTreeMap<Who, Vec<Story>>, sequences: &[Sequence]) -> Vec<Difference> {
    let mut found = Vec::new();
    for (at, sequence) in sequences.iter().enumerate() {
        for peer in Who::PEERS {
            let (ours, theirs) = (&stories[&Who::Farrier][at], &stories[&peer][at]);
            found.extend(compare::compare(peer, sequence.seed, ours, theirs));
        }
    }
    found
}

fn compare_many(ground: &Ground, players: &mut [(Who, Player)]) {
    let list = list::read();
    let (first, count) =
        (number("DIFFERENTIAL_FROM").unwrap_or(0), number("DIFFERENTIAL_SEQUENCES").unwrap_or(SEQUENCES));
    let began = Instant::now();
    let mut met: Vec<u64> = vec![0; list.len()];
    let mut unlisted: Vec<Difference> = Vec::new();
    let mut answers: BTreeMap<Who, u64> = BTreeMap::new();
    let seeds: Vec<u64> = (first..first + count).collect();
    for batch in seeds.chunks(BATCH) {
        let sequences: Vec<Sequence> = batch.iter().map(|seed| Sequence::of(*seed)).collect();
        let number = u32::try_from(batch[0] - first).expect("fewer sequences than addresses");
        let stories = play(players, number, &sequences);
        for (who, stories) in &stories {
            let answered = stories.iter().flatten().filter(|played| played.told.is_some()).count();
            *answers.entry(*who).or_default() += answered as u64;
        }
        for difference in differences(&stories, &sequences) {
            match list::place_of(&list, &difference) {
                Some(at) => met[at] += 1,
                None => unlisted.push(difference),
            }
        }
        ground.forget_neighbours();
    }
    println!("{count} sequences in {:.0} s; answers: {answers:?}", began.elapsed().as_secs_f64());
    for (entry, met) in list.iter().zip(&met) {
        println!("{met:7} {}", entry.text);
    }
    for (who, _) in players.iter() {
        // A run in which nobody answers compares nothing.
        assert!(answers[who] >= count, "{} answered hardly anything:\n{}", who.name(), ground.log(*who));
    }
    let (unlisted, once) = again(players, u32::try_from(count).expect("checked"), unlisted);
    println!("{} differences were a peer's, and were gone when the same was played again", once.len());
    assert!(once.len() as u64 <= 2 + count / ONCE, "{}", told_of(&once));
    assert!(unlisted.is_empty(), "{}", told_of(&unlisted));
    let unmet: Vec<&Entry> =
        list.iter().zip(&met).filter(|(_, met)| **met == 0).map(|(entry, _)| entry).collect();
    if !unmet.is_empty() {
        let lines: Vec<String> =
            unmet.iter().map(|entry| format!("DIFFERENCES.md:{}: {}", entry.line, entry.text)).collect();
        println!("on the list and not met:\n{}", lines.join("\n"));
        assert!(count < COMPLETE, "{} entries of the list are not true any more", unmet.len());
    }
}

/// Plays unlisted differences once more: a peer may have lost a packet, or met another sequence's machine. What farrier says
/// otherwise the second time stays a difference. The second part are those that were the peer's and are gone.
fn again(
    players: &mut [(Who, Player)],
    first: u32,
    unlisted: Vec<Difference>,
) -> (Vec<Difference>, Vec<Difference>) {
    let seeds: BTreeSet<u64> = unlisted.iter().map(|difference| difference.seed).collect();
    let sequences: Vec<Sequence> = seeds.iter().take(BATCH).map(|seed| Sequence::of(*seed)).collect();
    let stories = play(players, first, &sequences);
    let found = differences(&stories, &sequences);
    unlisted.into_iter().partition(|before| {
        let Some(at) = sequences.iter().position(|sequence| sequence.seed == before.seed) else {
            return true;
        };
        let same = |now: &Difference| {
            (now.peer, now.seed, now.step, &now.what) == (before.peer, before.seed, before.step, &before.what)
        };
        let ours = compare::word_of(&stories[&Who::Farrier][at][before.step], &before.what);
        ours != before.farrier || found.iter().any(same)
    })
}

/// Unlisted differences, alike ones together, with the circumstances that all of them share.
fn told_of(unlisted: &[Difference]) -> String {
    let mut kinds: BTreeMap<(Who, &str, &str, &str), Vec<&Difference>> = BTreeMap::new();
    for difference in unlisted {
        let Difference { peer, what, farrier, theirs, .. } = difference;
        kinds.entry((*peer, what, farrier, theirs)).or_default().push(difference);
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, those)| std::cmp::Reverse(those.len()));
    let mut text =
        format!("{} differences that are not on the list, of {} kinds:\n", unlisted.len(), kinds.len());
    for ((peer, what, farrier, theirs), those) in kinds.iter().take(SHOWN) {
        let shared =
            those.iter().map(|one| one.tags.clone()).reduce(|left, right| &left & &right).unwrap_or_default();
        let shared: Vec<&str> = shared.iter().map(String::as_str).collect();
        let Difference { seed, step, .. } = those[0];
        text += &format!(
            "{:5} {}: {what}: farrier {farrier}, {} {theirs}\n      always: {}\n      \
             step {step} of: make differential SEED={seed}\n",
            those.len(),
            peer.name(),
            peer.name(),
            shared.join(", ")
        );
    }
    text
}

#[test]
fn every_entry_of_the_list_has_its_reason() {
    let mut above = String::new();
    for Entry { line, reason, .. } in list::read() {
        // "The same" is the reason of the row above.
        let told = if reason.starts_with("the same") { &above } else { &reason };
        assert!(told.len() > 30, "DIFFERENCES.md:{line} gives no reason: {told:?}");
        above = told.clone();
    }
}

#[test]
fn a_seed_is_a_sequence_and_many_have_all_there_is() {
    let told = |seed| format!("{:?}", Sequence::of(seed));
    assert_eq!(told(7), told(7));
    let messages: BTreeSet<String> =
        (0..2000).flat_map(|seed| Sequence::of(seed).steps).map(|step| format!("{:?}", step.kind)).collect();
    let oddities: BTreeSet<String> = (0..2000)
        .flat_map(|seed| Sequence::of(seed).steps)
        .map(|step| step.oddity.tag().to_owned())
        .collect();
    assert!(messages.len() >= 10 && oddities.len() >= 25, "{messages:?} {oddities:?}");
}
