//! Who else answers on the bridge, as a function of what was heard, what was asked, and time.
//!
//! A rival that answers our own DISCOVERs is gone when it has left [`UNANSWERED_MAX`] of them unanswered: with one a
//! rival is known, we ask every few seconds, so that is within half a minute of its end. One that was only overheard (it
//! serves some machines and not others) is gone when it has not been heard for [`QUIET`]; a router, for
//! [`QUIET_ROUTER`], or at once when it says itself that it is none any more.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::config::BridgeName;
use crate::guard::process::LocalServer;
use crate::net::MacAddr;

/// Rivals told apart. More than a few are one that lies about its address; the alarm is on either way.
pub const RIVALS_MAX: usize = 16;
/// DISCOVERs of ours that go unanswered before who answered them before counts as gone.
pub const UNANSWERED_MAX: u32 = 3;
/// How long a server that never answers us has to be quiet.
pub const QUIET: Duration = Duration::from_secs(300);
/// Routers advertise at least this often (RFC 4861 §6.2.1, `MaxRtrAdvInterval`).
pub const QUIET_ROUTER: Duration = Duration::from_secs(1800);

/// What it offers that it should not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = RivalKind)]
pub enum Kind {
    /// Addresses, by DHCPv4.
    Dhcp,
    /// A way out, addresses or DHCPv6, by IPv6 router advertisements.
    RouterAdvertisement,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Dhcp => "dhcp",
            Kind::RouterAdvertisement => "router-advertisement",
        }
    }

    /// For people, with its article.
    pub fn described(self) -> &'static str {
        match self {
            Kind::Dhcp => "a second DHCP server",
            Kind::RouterAdvertisement => "a foreign IPv6 router",
        }
    }
}

/// How it was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = RivalEvidence)]
pub enum Evidence {
    /// Its offer, acknowledgement or refusal to a machine passed by.
    Offer,
    Ack,
    Nak,
    /// It offered an address to us, who asked under a made-up MAC.
    ProbeAnswer,
    /// A machine requested the address that it had offered.
    Chosen,
    /// A router advertisement.
    Advertisement,
}

impl Evidence {
    /// The word of counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Evidence::Offer => "foreign-offer",
            Evidence::Ack => "foreign-ack",
            Evidence::Nak => "foreign-nak",
            Evidence::ProbeAnswer => "probe-answered",
            Evidence::Chosen => "other-server-chosen",
            Evidence::Advertisement => "foreign-router-advertisement",
        }
    }
}

/// One thing heard of somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub kind: Kind,
    pub address: IpAddr,
    /// Where the frame came from; unknown if only a client told of it.
    pub mac: Option<MacAddr>,
    pub evidence: Evidence,
    /// Whom it dealt with.
    pub client: Option<MacAddr>,
    /// A router that says it is none, and offers nothing: nothing new, but the end of what was.
    pub harmless: bool,
}

/// Somebody else who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    pub kind: Kind,
    pub address: IpAddr,
    pub mac: Option<MacAddr>,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
    /// How it was noticed first.
    pub evidence: Evidence,
    /// How often it was heard.
    pub heard: u64,
    /// The last machine it dealt with.
    pub client: Option<MacAddr>,
    /// The port of the bridge it is behind.
    pub port: Option<String>,
    /// The process, if it runs on this host.
    pub process: Option<LocalServer>,
    /// It was itself heard to answer; not only a client told of it.
    answers: bool,
    /// DISCOVERs of ours since its last answer to one; `None` if it never gave one.
    unanswered: Option<u32>,
}

impl Rival {
    /// What an operator has to do about it.
    pub fn way_out(&self, bridge: &BridgeName) -> String {
        let at = match (&self.port, self.mac) {
            (Some(port), _) => format!("behind port {port}"),
            (None, Some(mac)) => format!("`bridge fdb show br {bridge} | grep {mac}` tells its port"),
            (None, None) => format!("`ip neigh show dev {bridge}` may tell its MAC"),
        };
        match (&self.process, self.kind) {
            (Some(process), _) => process.way_out.clone(),
            (None, Kind::Dhcp) => {
                format!("find it ({at}) and stop it, or take it off {bridge}: only one may answer there")
            }
            (None, Kind::RouterAdvertisement) => {
                format!("find it ({at}) and stop its advertisements, or take it off {bridge}")
            }
        }
    }

    fn is_gone(&self, now: Timestamp) -> bool {
        let quiet = now.since(self.last_at);
        match (self.kind, self.unanswered) {
            (Kind::RouterAdvertisement, _) => quiet > QUIET_ROUTER,
            (Kind::Dhcp, Some(unanswered)) => unanswered > UNANSWERED_MAX,
            (Kind::Dhcp, None) => quiet > QUIET,
        }
    }
}

/// A change that is worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Appeared(Kind, IpAddr),
    Gone(Rival),
}

#[derive(Debug, Default)]
pub struct Rivals {
    list: Vec<Rival>,
    news: VecDeque<News>,
}

impl Rivals {
    pub fn hear(&mut self, heard: &Heard, now: Timestamp) {
        let known = self.list.iter().position(|it| it.kind == heard.kind && it.address == heard.address);
        if heard.harmless {
            if let Some(index) = known {
                let gone = self.list.remove(index);
                self.news.push_back(News::Gone(gone));
            }
            return;
        }
        let index = match known {
            Some(index) => index,
            None if self.list.len() >= RIVALS_MAX => return,
            None => {
                self.list.push(Rival {
                    kind: heard.kind,
                    address: heard.address,
                    mac: None,
                    first_at: now,
                    last_at: now,
                    evidence: heard.evidence,
                    heard: 0,
                    client: None,
                    port: None,
                    process: None,
                    answers: false,
                    unanswered: None,
                });
                self.news.push_back(News::Appeared(heard.kind, heard.address));
                self.list.len() - 1
            }
        };
        let Some(rival) = self.list.get_mut(index) else { return };
        rival.last_at = now;
        rival.heard = rival.heard.saturating_add(1);
        rival.mac = heard.mac.or(rival.mac);
        rival.client = heard.client.or(rival.client);
        match heard.evidence {
            Evidence::ProbeAnswer => {
                rival.answers = true;
                rival.unanswered = Some(0);
            }
            Evidence::Offer | Evidence::Ack | Evidence::Nak => {
                rival.answers = true;
                // It is alive; whether it answers us is another matter.
                rival.unanswered = rival.unanswered.map(|_| 0);
            }
            Evidence::Chosen | Evidence::Advertisement => {}
        }
    }

    /// A DISCOVER of ours is about to leave. Who did not answer the last few is gone.
    pub fn probed(&mut self, now: Timestamp) {
        for rival in &mut self.list {
            rival.unanswered = rival.unanswered.map(|count| count.saturating_add(1));
        }
        self.expire(now);
    }

    pub fn expire(&mut self, now: Timestamp) {
        let gone: Vec<Rival> = self.list.extract_if(.., |rival| rival.is_gone(now)).collect();
        self.news.extend(gone.into_iter().map(News::Gone));
    }

    /// Where it is, and which process, as far as could be found out.
    pub fn identify(
        &mut self,
        (kind, address): (Kind, IpAddr),
        port: Option<String>,
        process: Option<LocalServer>,
    ) -> Option<Rival> {
        let rival = self.list.iter_mut().find(|it| it.kind == kind && it.address == address)?;
        rival.port = port;
        rival.process = process;
        Some(rival.clone())
    }

    pub fn find(&self, kind: Kind, address: IpAddr) -> Option<&Rival> {
        self.list.iter().find(|it| it.kind == kind && it.address == address)
    }

    /// Whether another DHCP server was itself heard to answer.
    pub fn answered(&self) -> bool {
        self.list.iter().any(|rival| rival.kind == Kind::Dhcp && rival.answers)
    }

    /// Whether another DHCP server is known: then we ask more often.
    pub fn any_dhcp(&self) -> bool {
        self.list.iter().any(|rival| rival.kind == Kind::Dhcp)
    }

    pub fn list(&self) -> &[Rival] {
        &self.list
    }

    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    pub fn take_news(&mut self) -> Vec<News> {
        self.news.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + secs * 1000)
    }

    fn heard(last: u8, evidence: Evidence) -> Heard {
        Heard {
            kind: Kind::Dhcp,
            address: IpAddr::from([192, 168, 2, last]),
            mac: Some(MacAddr([2, 0, 0, 0, 0, last])),
            evidence,
            client: None,
            harmless: false,
        }
    }

    #[test]
    fn a_rival_is_news_once_and_gone_when_it_answers_no_more() {
        let mut rivals = Rivals::default();
        rivals.hear(&heard(9, Evidence::ProbeAnswer), at(0));
        rivals.hear(&heard(9, Evidence::Offer), at(1));
        assert_eq!(rivals.take_news(), [News::Appeared(Kind::Dhcp, IpAddr::from([192, 168, 2, 9]))]);
        assert_eq!((rivals.list()[0].heard, rivals.answered()), (2, true));
        for unanswered in 1..=UNANSWERED_MAX {
            rivals.probed(at(u64::from(unanswered) * 5));
            assert!(rivals.answered() && !rivals.has_news(), "{unanswered}");
        }
        // Time alone says nothing: nobody asked it.
        rivals.expire(at(200));
        assert!(rivals.answered());
        rivals.probed(at(201));
        assert!(!rivals.answered() && rivals.list().is_empty());
        assert!(matches!(rivals.take_news()[..], [News::Gone(_)]));
    }

    #[test]
    fn an_answer_in_between_starts_the_count_anew() {
        let mut rivals = Rivals::default();
        rivals.hear(&heard(9, Evidence::ProbeAnswer), at(0));
        for round in 0..10 {
            rivals.probed(at(round));
            rivals.probed(at(round));
            rivals.hear(&heard(9, Evidence::Ack), at(round));
        }
        assert!(rivals.answered());
    }

    #[test]
    fn who_was_only_overheard_is_gone_after_a_while_of_silence() {
        let mut rivals = Rivals::default();
        rivals.hear(&heard(9, Evidence::Nak), at(0));
        for _ in 0..10 {
            rivals.probed(at(100));
        }
        assert!(rivals.answered());
        rivals.expire(at(QUIET.as_secs() + 1));
        assert!(rivals.list().is_empty());
    }

    #[test]
    fn what_a_client_says_is_told_and_holds_nothing() {
        let mut rivals = Rivals::default();
        rivals.hear(&Heard { mac: None, ..heard(9, Evidence::Chosen) }, at(0));
        assert!(rivals.any_dhcp() && !rivals.answered() && rivals.has_news());
    }

    #[test]
    fn a_router_takes_its_leave_itself() {
        let mut rivals = Rivals::default();
        let router = |harmless| Heard {
            kind: Kind::RouterAdvertisement,
            harmless,
            ..heard(9, Evidence::Advertisement)
        };
        rivals.hear(&router(true), at(0));
        assert!(rivals.list().is_empty() && !rivals.has_news(), "one that offers nothing is no rival");
        rivals.hear(&router(false), at(1));
        assert!(!rivals.answered() && !rivals.any_dhcp() && rivals.list().len() == 1);
        rivals.hear(&router(true), at(2));
        assert!(rivals.list().is_empty());
        assert_eq!(rivals.take_news().len(), 2);
    }

    #[test]
    fn made_up_rivals_are_bounded() {
        let mut rivals = Rivals::default();
        for last in 0..=255 {
            rivals.hear(&heard(last, Evidence::Offer), at(0));
        }
        assert_eq!((rivals.list().len(), rivals.take_news().len()), (RIVALS_MAX, RIVALS_MAX));
    }
}
