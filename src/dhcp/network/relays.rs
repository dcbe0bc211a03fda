//! Which relay agents several replies may go to as one packet.
//!
//! The kernel takes replies of one length to one address as one large packet, carries that through its layers once, and
//! cuts it at the end (`UDP_SEGMENT`): less work than sending each. On a wire they are packets like any others.
//! A relay agent in a container of this machine is given the large one, uncut; its kernel cuts it for a UDP socket, but
//! an agent that reads raw frames sees one datagram longer than any DHCP message, and drops it. Nobody tells us that. So
//! a few clients offered an address in this way are remembered: if hardly any of them is heard of again, this agent
//! gets each reply by itself from then on.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::net::MacAddr;

/// Agents remembered; what others get is sent one by one.
const AGENTS_MAX: usize = 256;
/// Clients of one agent that are waited for.
const SAMPLE_MAX: usize = 64;
/// Fewer than this prove nothing.
const SAMPLE_MIN: usize = 8;
/// Firmware gathers offers for up to 4 s before it requests one (PXE 2.1 §2.4.4).
const PATIENCE: Duration = Duration::from_secs(6);
/// An agent that gets nothing whole hears of nobody; one that loses much of it for other reasons hears of some.
const HEARD_AT_LEAST: usize = 16;
/// How long an agent is spared before it is tried again: it may have been replaced.
const SPARED_FOR: Duration = Duration::from_secs(3600);

/// What is known of the agents that replies went to in one packet.
#[derive(Debug, Default)]
pub struct Relays {
    agents: HashMap<Ipv4Addr, Agent>,
}

#[derive(Debug)]
struct Agent {
    sample: HashSet<MacAddr>,
    heard: HashSet<MacAddr>,
    began: Instant,
    spared_until: Option<Instant>,
}

/// What was found out about an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Together, as far as is known.
    Together,
    OneByOne,
    /// As of now: worth a line in the log.
    OneByOneFromNow,
}

impl Relays {
    /// How replies are sent to this agent.
    pub fn verdict(&mut self, relay: Ipv4Addr, now: Instant) -> Verdict {
        if self.agents.len() >= AGENTS_MAX && !self.agents.contains_key(&relay) {
            return Verdict::OneByOne;
        }
        let agent = self.agents.entry(relay).or_insert_with(|| Agent::new(now));
        if agent.spared_until.is_some_and(|until| now < until) {
            return Verdict::OneByOne;
        }
        if agent.spared_until.is_some() || now - agent.began >= PATIENCE {
            let lost = agent.spared_until.is_none() && agent.lost_them();
            *agent = Agent::new(now);
            if lost {
                agent.spared_until = Some(now + SPARED_FOR);
                return Verdict::OneByOneFromNow;
            }
        }
        Verdict::Together
    }

    /// This client was offered an address in a packet of several.
    pub fn offered_together(&mut self, relay: Ipv4Addr, client: MacAddr) {
        if let Some(agent) = self.agents.get_mut(&relay)
            && agent.sample.len() < SAMPLE_MAX
        {
            agent.sample.insert(client);
        }
    }

    /// It asked for more, so its offer has arrived.
    pub fn heard_of(&mut self, relay: Ipv4Addr, client: MacAddr) {
        if let Some(agent) = self.agents.get_mut(&relay)
            && agent.sample.contains(&client)
        {
            agent.heard.insert(client);
        }
    }
}

impl Agent {
    fn new(now: Instant) -> Agent {
        Agent { sample: HashSet::new(), heard: HashSet::new(), began: now, spared_until: None }
    }

    fn lost_them(&self) -> bool {
        self.sample.len() >= SAMPLE_MIN && self.heard.len() * HEARD_AT_LEAST < self.sample.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn client(number: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, number])
    }

    #[test]
    fn an_agent_whose_clients_vanish_is_spared_for_an_hour() {
        let (mut relays, start) = (Relays::default(), Instant::now());
        assert_eq!(relays.verdict(RELAY, start), Verdict::Together);
        (0..20).for_each(|number| relays.offered_together(RELAY, client(number)));
        // Others of its clients got theirs one by one.
        relays.heard_of(RELAY, client(99));
        assert_eq!(relays.verdict(RELAY, start + PATIENCE / 2), Verdict::Together);
        let judged = start + PATIENCE;
        assert_eq!(relays.verdict(RELAY, judged), Verdict::OneByOneFromNow);
        assert_eq!(relays.verdict(RELAY, judged + SPARED_FOR / 2), Verdict::OneByOne);
        assert_eq!(relays.verdict(Ipv4Addr::new(10, 0, 0, 2), judged), Verdict::Together);
        assert_eq!(relays.verdict(RELAY, judged + SPARED_FOR), Verdict::Together);
    }

    #[test]
    fn a_few_that_come_back_are_enough_and_a_few_that_do_not_prove_nothing() {
        let (mut relays, start) = (Relays::default(), Instant::now());
        for round in 0..3 {
            let now = start + PATIENCE * round;
            assert_eq!(relays.verdict(RELAY, now), Verdict::Together, "{round}");
            (0..48).for_each(|number| relays.offered_together(RELAY, client(number)));
            (0..3).for_each(|number| relays.heard_of(RELAY, client(number)));
        }
        let now = start + PATIENCE * 3;
        assert_eq!(relays.verdict(RELAY, now), Verdict::Together);
        (0..SAMPLE_MIN as u8 - 1).for_each(|number| relays.offered_together(RELAY, client(number)));
        assert_eq!(relays.verdict(RELAY, now + PATIENCE), Verdict::Together);
    }

    #[test]
    fn no_number_of_agents_takes_more_than_its_room() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        for number in 0..AGENTS_MAX as u32 {
            assert_eq!(relays.verdict(Ipv4Addr::from(number), now), Verdict::Together);
        }
        assert_eq!(relays.verdict(RELAY, now), Verdict::OneByOne);
        assert_eq!(relays.agents.len(), AGENTS_MAX);
    }
}
