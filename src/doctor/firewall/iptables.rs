//! `iptables-save` → chains.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::{Base, Chain, Family, Field, Hook, Match, Rule, Tool, Value, Verdict};

/// Lines that are not understood are left out, but for rules: what is not understood of one is a doubt.
pub fn parse(text: &str) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::new();
    let mut table = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            table = name.to_owned();
        } else if let Some(declared) = line.strip_prefix(':') {
            chains.extend(read_chain(declared, &table));
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let words = words(rule);
            let Some((name, rest)) = words.split_first() else { continue };
            let chain = chains.iter_mut().find(|chain| chain.table == table && chain.name == *name);
            if let Some(chain) = chain {
                chain.rules.push(read_rule(rest, format!("iptables rule `-t {table} {line}`")));
            }
        }
    }
    chains
}

fn read_chain(declared: &str, table: &str) -> Option<Chain> {
    let mut parts = declared.split_whitespace();
    let (name, policy) = (parts.next()?, parts.next()?);
    let hook = match name {
        "PREROUTING" => Some(Hook::Prerouting),
        "INPUT" => Some(Hook::Input),
        "OUTPUT" => Some(Hook::Output),
        "POSTROUTING" => Some(Hook::Postrouting),
        _ => None,
    };
    Some(Chain {
        tool: Tool::Iptables,
        family: Family::Ip,
        table: table.to_owned(),
        name: name.to_owned(),
        base: hook.map(|hook| Base { hook, drops_by_default: policy == "DROP" }),
        rules: Vec::new(),
    })
}

/// Words of a line; quotes keep one together.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for character in line.chars() {
        match character {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            other => words.last_mut().into_iter().for_each(|word| word.push(other)),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn read_rule(words: &[String], text: String) -> Rule {
    let mut rule = Rule { matches: Vec::new(), verdict: Verdict::Continue, text };
    let mut rest = words.iter().map(String::as_str);
    let mut negated = false;
    while let Some(word) = rest.next() {
        let part = match word {
            "!" => {
                negated = true;
                continue;
            }
            // Which module the next words belong to; the words themselves say enough.
            "-m" => {
                rest.next();
                continue;
            }
            "--comment" | "--reject-with" | "--log-prefix" | "--log-level" => {
                rest.next();
                continue;
            }
            "-j" | "-g" => {
                rule.verdict = read_target(word, rest.next().unwrap_or_default());
                continue;
            }
            "-i" => device(Field::InDevice, rest.next()),
            "-o" => device(Field::OutDevice, rest.next()),
            "-p" => Some((Field::Protocol, vec![Value::Word(rest.next().unwrap_or_default().to_owned())])),
            "--dport" | "--dports" => Some((Field::DestinationPort, ports(rest.next()))),
            "--sport" | "--sports" => Some((Field::SourcePort, ports(rest.next()))),
            "-s" => Some((Field::Source, network(rest.next()))),
            "-d" => Some((Field::Destination, network(rest.next()))),
            "--state" | "--ctstate" => Some((Field::State, states(rest.next()))),
            "--pkt-type" => {
                Some((Field::PacketType, vec![Value::Word(rest.next().unwrap_or_default().to_owned())]))
            }
            _ => None,
        };
        rule.matches.push(match part {
            Some((field, values)) => Match::Field { field, values, negated },
            None => Match::Unknown,
        });
        negated = false;
    }
    rule
}

fn read_target(how: &str, target: &str) -> Verdict {
    match (how, target) {
        (_, "ACCEPT") => Verdict::Accept,
        (_, "DROP" | "REJECT") => Verdict::Drop,
        (_, "RETURN") => Verdict::Return,
        // Targets that let the packet go on, and chains of that name, which there are none of, come to the same.
        ("-g", chain) => Verdict::Goto(chain.to_owned()),
        (_, chain) => Verdict::Jump(chain.to_owned()),
    }
}

fn device(field: Field, name: Option<&str>) -> Option<(Field, Vec<Value>)> {
    // iptables writes "all that begin so" as `+`.
    let name = name?;
    let word = match name.strip_suffix('+') {
        Some(beginning) => format!("{beginning}*"),
        None => name.to_owned(),
    };
    Some((field, vec![Value::Word(word)]))
}

fn ports(list: Option<&str>) -> Vec<Value> {
    let one = |text: &str| {
        let (first, last) = text.split_once(':').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) => Value::Range(first, last),
            _ => Value::Unknown,
        }
    };
    list.unwrap_or_default().split(',').map(one).collect()
}

fn network(text: Option<&str>) -> Vec<Value> {
    let text = text.unwrap_or_default();
    let network = text.parse::<Ipv4Network>().ok();
    let network = network.or_else(|| text.parse::<Ipv4Addr>().ok().map(Ipv4Network::from));
    let range = network.map(|net| Value::Range(net.network().into(), net.broadcast().into()));
    vec![range.unwrap_or(Value::Unknown)]
}

fn states(list: Option<&str>) -> Vec<Value> {
    list.unwrap_or_default().split(',').map(|state| Value::Word(state.to_ascii_lowercase())).collect()
}
