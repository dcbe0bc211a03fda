//! Whether the packets of a boot get past the firewall: rules as data, and a packet's way through them.
//!
//! [`nft`] and [`iptables`] turn what the two tools print into [`Chain`]s; [`Chain`]s are walked here, hook by hook,
//! as the kernel does: a drop anywhere is final, an accept ends one base chain only. What we do not understand of a
//! rule may match or may not; where that decides, the answer is "perhaps".

pub mod iptables;
pub mod nft;
#[cfg(test)]
mod tests;
mod traffic;

pub use traffic::{Traffic, of_a_boot};

/// Jumps nest at most so deep; the kernel's own limit is 16.
const DEPTH_MAX: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tool {
    Nft,
    Iptables,
}

/// Who looks at what: IPv4 packets of the host, frames of bridges, frames of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Ip,
    Inet,
    Bridge,
    Netdev,
}

impl Family {
    pub fn as_str(self) -> &'static str {
        match self {
            Family::Ip => "ip",
            Family::Inet => "inet",
            Family::Bridge => "bridge",
            Family::Netdev => "netdev",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    Ingress,
    Prerouting,
    Input,
    Output,
    Postrouting,
    Egress,
}

/// What makes a chain one the kernel enters by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    pub hook: Hook,
    pub drops_by_default: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub tool: Tool,
    pub family: Family,
    pub table: String,
    pub name: String,
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub verdict: Verdict,
    /// For people.
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Continue,
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    Field {
        field: Field,
        values: Vec<Value>,
        negated: bool,
    },
    /// Nothing we know how to judge.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    InDevice,
    OutDevice,
    InBridge,
    OutBridge,
    Protocol,
    NetworkProtocol,
    SourcePort,
    DestinationPort,
    Source,
    Destination,
    State,
    PacketType,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A name; with `*` at its end, all that begin so.
    Word(String),
    /// Ports, and addresses as numbers; both ends included.
    Range(u32, u32),
    /// The elements of a set that was not printed, or something else we cannot read.
    Unknown,
}

/// What the walk through one base chain can end in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Passes,
    /// Dropped by this rule or policy, whatever the doubts.
    Dropped(String),
    Perhaps(String),
}

/// A base chain in a packet's way, and what it does to the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle<'a> {
    pub chain: &'a Chain,
    pub fate: Fate,
}

/// Every base chain that drops the packet or may do so.
pub fn obstacles<'a>(chains: &'a [Chain], packet: &Traffic) -> Vec<Obstacle<'a>> {
    let in_the_way = chains.iter().filter(|chain| {
        chain.base.is_some_and(|base| match base.hook {
            Hook::Ingress | Hook::Prerouting | Hook::Input => packet.incoming,
            Hook::Output | Hook::Postrouting | Hook::Egress => !packet.incoming,
        })
    });
    let judged = in_the_way.map(|chain| Obstacle { chain, fate: fate(chains, chain, packet) });
    judged.filter(|obstacle| obstacle.fate != Fate::Passes).collect()
}

/// Everything a walk may end in, as far as we can tell.
#[derive(Clone, Debug, Default)]
struct Possible {
    accepted: bool,
    dropped: Option<String>,
    /// It may come out at the chain's end.
    falls_through: bool,
}

fn fate(chains: &[Chain], base: &Chain, packet: &Traffic) -> Fate {
    let mut possible = walk(chains, base, packet, 0);
    if possible.falls_through {
        match base.base {
            Some(Base { drops_by_default: true, .. }) => {
                let policy = || format!("policy drop of chain {} {}", base.table, base.name);
                possible.dropped = possible.dropped.or_else(|| Some(policy()));
            }
            Some(_) | None => possible.accepted = true,
        }
    }
    match (possible.dropped, possible.accepted) {
        (None, _) => Fate::Passes,
        (Some(rule), false) => Fate::Dropped(rule),
        (Some(rule), true) => Fate::Perhaps(rule),
    }
}

fn walk(chains: &[Chain], chain: &Chain, packet: &Traffic, depth: usize) -> Possible {
    let mut possible = Possible::default();
    if depth > DEPTH_MAX {
        // The kernel refuses such rules; we must end as well.
        return Possible { falls_through: true, ..possible };
    }
    for rule in &chain.rules {
        let matched = all(rule.matches.iter().map(|part| matches(part, chain.family, packet)));
        if matched == Answer::No {
            continue;
        }
        let certain = matched == Answer::Yes;
        match &rule.verdict {
            Verdict::Continue => continue,
            Verdict::Accept => possible.accepted = true,
            Verdict::Drop => possible.dropped = possible.dropped.or_else(|| Some(rule.text.clone())),
            Verdict::Return => possible.falls_through = true,
            Verdict::Jump(target) | Verdict::Goto(target) => {
                let returns = matches!(rule.verdict, Verdict::Jump(_));
                let inner = match find(chains, chain, target) {
                    Some(inner) => walk(chains, inner, packet, depth + 1),
                    None => Possible { falls_through: true, ..Possible::default() },
                };
                possible.accepted |= inner.accepted;
                possible.dropped = possible.dropped.or(inner.dropped);
                if inner.falls_through && returns {
                    continue;
                }
                possible.falls_through |= inner.falls_through;
            }
        }
        if certain {
            return possible;
        }
    }
    Possible { falls_through: true, ..possible }
}

fn find<'a>(chains: &'a [Chain], from: &Chain, name: &str) -> Option<&'a Chain> {
    chains.iter().find(|chain| {
        chain.name == name
            && chain.table == from.table
            && chain.family == from.family
            && chain.tool == from.tool
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
    Perhaps,
}

impl Answer {
    fn not(self) -> Answer {
        match self {
            Answer::Yes => Answer::No,
            Answer::No => Answer::Yes,
            Answer::Perhaps => Answer::Perhaps,
        }
    }
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Answer {
        if yes { Answer::Yes } else { Answer::No }
    }
}

fn all(answers: impl IntoIterator<Item = Answer>) -> Answer {
    answers.into_iter().fold(Answer::Yes, |whole, part| match (whole, part) {
        (Answer::No, _) | (_, Answer::No) => Answer::No,
        (Answer::Perhaps, _) | (_, Answer::Perhaps) => Answer::Perhaps,
        (Answer::Yes, Answer::Yes) => Answer::Yes,
    })
}

fn any(answers: impl IntoIterator<Item = Answer>) -> Answer {
    all(answers.into_iter().map(Answer::not)).not()
}

fn matches(part: &Match, family: Family, packet: &Traffic) -> Answer {
    match part {
        Match::Unknown => Answer::Perhaps,
        Match::Field { field, values, negated } => {
            let answer = any(values.iter().map(|value| is(*field, value, family, packet)));
            if *negated { answer.not() } else { answer }
        }
    }
}

fn is(field: Field, value: &Value, family: Family, packet: &Traffic) -> Answer {
    if *value == Value::Unknown {
        return Answer::Perhaps;
    }
    match field {
        Field::InDevice if packet.incoming => among(&packet.devices(family), value),
        Field::OutDevice if !packet.incoming => among(&packet.devices(family), value),
        Field::InBridge if packet.incoming => word(&packet.bridge, value),
        Field::OutBridge if !packet.incoming => word(&packet.bridge, value),
        Field::InDevice | Field::OutDevice | Field::InBridge | Field::OutBridge => Answer::No,
        Field::Protocol => word(packet.protocol, value),
        Field::NetworkProtocol => word("ipv4", value),
        Field::SourcePort => port(packet.source_port, value),
        Field::DestinationPort => port(packet.destination_port, value),
        Field::Source => number(packet.source.into(), value),
        Field::Destination => number(packet.destination.into(), value),
        Field::State => word(if packet.established { "established" } else { "new" }, value),
        Field::PacketType => {
            word(if packet.destination.is_broadcast() { "broadcast" } else { "host" }, value)
        }
    }
}

/// A port the kernel chooses may be any of the upper ones.
fn port(port: Option<u16>, value: &Value) -> Answer {
    /// Linux's own choice, unless somebody changed `net.ipv4.ip_local_port_range`.
    const CHOSEN: (u32, u32) = (32_768, 60_999);
    match (port, value) {
        (Some(port), value) => number(port.into(), value),
        (None, Value::Range(first, last)) if *first <= CHOSEN.0 && *last >= CHOSEN.1 => Answer::Yes,
        (None, Value::Range(first, last)) if *first > CHOSEN.1 || *last < CHOSEN.0 => Answer::No,
        (None, _) => Answer::Perhaps,
    }
}

fn number(number: u32, value: &Value) -> Answer {
    match value {
        Value::Range(first, last) => (*first..=*last).contains(&number).into(),
        Value::Word(_) | Value::Unknown => Answer::Perhaps,
    }
}

fn word(text: &str, value: &Value) -> Answer {
    match value {
        Value::Word(wanted) => match wanted.strip_suffix('*') {
            Some(beginning) => text.starts_with(beginning).into(),
            None => (text == wanted).into(),
        },
        Value::Range(..) | Value::Unknown => Answer::Perhaps,
    }
}

/// One of several it may be: certain only if it holds for all.
fn among(candidates: &[&str], value: &Value) -> Answer {
    let answers: Vec<Answer> = candidates.iter().map(|name| word(name, value)).collect();
    match answers.as_slice() {
        [] => Answer::No,
        [first, rest @ ..] if rest.iter().all(|answer| answer == first) => *first,
        _ => Answer::Perhaps,
    }
}
