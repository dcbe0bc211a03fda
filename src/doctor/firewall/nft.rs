//! `nft -j list ruleset` → chains.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde_json::Value as Json;

use super::{Base, Chain, Family, Field, Hook, Match, Rule, Tool, Value, Verdict};

/// What was printed, as far as it concerns IPv4.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub chains: Vec<Chain>,
    /// Rules of iptables' own kind are among them, which nft does not print in full.
    pub opaque: bool,
}

/// A set is known by its family, table and name.
type Sets = BTreeMap<(String, String, String), Vec<Value>>;

pub fn parse(text: &str) -> Result<Ruleset, String> {
    let document: Json = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let entries = document["nftables"].as_array().ok_or("`nft -j` printed no ruleset")?;
    let sets: Sets = entries.iter().filter_map(read_set).collect();
    let mut ruleset = Ruleset::default();
    for entry in entries {
        if let Some(chain) = read_chain(&entry["chain"]) {
            ruleset.chains.push(chain);
        }
    }
    for entry in entries {
        let rule = &entry["rule"];
        let place = ruleset.chains.iter_mut().find(|chain| {
            rule["family"] == chain.family.as_str()
                && rule["table"] == chain.table
                && rule["chain"] == chain.name
        });
        let (Some(chain), Some(parts)) = (place, rule["expr"].as_array()) else { continue };
        ruleset.opaque |= parts.iter().any(|part| part.get("xt").is_some());
        let describe = format!("nft rule {} of chain {} {}", rule["handle"], chain.table, chain.name);
        chain.rules.extend(read_rule(parts, &sets, rule, &describe));
    }
    Ok(ruleset)
}

fn text(json: &Json) -> Option<String> {
    json.as_str().map(str::to_owned)
}

fn read_set(entry: &Json) -> Option<((String, String, String), Vec<Value>)> {
    let set = entry.get("set").or_else(|| entry.get("map"))?;
    let key = (text(&set["family"])?, text(&set["table"])?, text(&set["name"])?);
    let elements = set["elem"].as_array().map(Vec::as_slice).unwrap_or_default();
    Some((key, elements.iter().map(read_value).collect()))
}

fn read_chain(chain: &Json) -> Option<Chain> {
    let family = match chain["family"].as_str()? {
        "ip" => Family::Ip,
        "inet" => Family::Inet,
        "bridge" => Family::Bridge,
        "netdev" => Family::Netdev,
        _ => return None, // ip6, arp
    };
    let hook = match chain["hook"].as_str() {
        Some("ingress") => Some(Hook::Ingress),
        Some("prerouting") => Some(Hook::Prerouting),
        Some("input") => Some(Hook::Input),
        Some("output") => Some(Hook::Output),
        Some("postrouting") => Some(Hook::Postrouting),
        Some("egress") => Some(Hook::Egress),
        Some(_) | None => None, // forwarded packets are none of ours
    };
    let base = hook.map(|hook| Base { hook, drops_by_default: chain["policy"] == "drop" });
    let (table, name) = (text(&chain["table"])?, text(&chain["name"])?);
    Some(Chain { tool: Tool::Nft, family, table, name, base, rules: Vec::new() })
}

/// One rule; a verdict map is one for each of its elements.
fn read_rule(parts: &[Json], sets: &Sets, rule: &Json, describe: &str) -> Vec<Rule> {
    let mut matches = Vec::new();
    let mut rules = Vec::new();
    for part in parts {
        let Some((kind, body)) = part.as_object().and_then(|object| object.iter().next()) else { continue };
        let verdict = match kind.as_str() {
            "match" => {
                matches.extend(read_match(body, sets, rule));
                continue;
            }
            "vmap" => {
                let field = read_field(&body["key"]);
                for pair in body["data"]["set"].as_array().map(Vec::as_slice).unwrap_or_default() {
                    let part = match field {
                        Some(field) => {
                            Match::Field { field, values: vec![read_value(&pair[0])], negated: false }
                        }
                        None => Match::Unknown,
                    };
                    let matches = [matches.as_slice(), &protocol_of(&body["key"]), &[part]].concat();
                    rules.push(Rule { matches, verdict: read_verdict(&pair[1]), text: describe.to_owned() });
                }
                continue;
            }
            // What neither decides nor stops.
            "counter" | "log" | "comment" | "mangle" | "notrack" | "last" | "set" | "flow" | "ct helper" => {
                continue;
            }
            "accept" | "drop" | "reject" | "return" | "jump" | "goto" | "queue" | "masquerade" | "snat"
            | "dnat" | "redirect" | "tproxy" => read_verdict(part),
            // "limit", "quota", "xt" and whatever is to come.
            _ => {
                matches.push(Match::Unknown);
                continue;
            }
        };
        rules.push(Rule { matches: matches.clone(), verdict, text: describe.to_owned() });
    }
    rules
}

fn read_verdict(part: &Json) -> Verdict {
    let Some((kind, body)) = part.as_object().and_then(|object| object.iter().next()) else {
        return Verdict::Continue;
    };
    let target = || body["target"].as_str().unwrap_or_default().to_owned();
    match kind.as_str() {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Drop,
        "return" => Verdict::Return,
        "jump" => Verdict::Jump(target()),
        "goto" => Verdict::Goto(target()),
        _ => Verdict::Continue,
    }
}

/// The match itself, and the protocol it implies: `udp dport 67` matches no TCP packet.
fn read_match(body: &Json, sets: &Sets, rule: &Json) -> Vec<Match> {
    let negated = match body["op"].as_str() {
        Some("==" | "in") => false,
        Some("!=") => true,
        Some(_) | None => return vec![Match::Unknown],
    };
    let mut matches = protocol_of(&body["left"]);
    let Some(field) = read_field(&body["left"]) else {
        matches.push(Match::Unknown);
        return matches;
    };
    let values = match &body["right"] {
        Json::String(name) if name.starts_with('@') => {
            let part = |key: &str| rule[key].as_str().unwrap_or_default().to_owned();
            let key = (part("family"), part("table"), name[1..].to_owned());
            sets.get(&key).cloned().unwrap_or_else(|| vec![Value::Unknown])
        }
        Json::Array(values) => values.iter().map(read_value).collect(),
        right => match right["set"].as_array() {
            Some(values) => values.iter().map(read_value).collect(),
            None => vec![read_value(right)],
        },
    };
    matches.push(Match::Field { field, values, negated });
    matches
}

fn protocol_of(left: &Json) -> Vec<Match> {
    let protocol = left["payload"]["protocol"].as_str().unwrap_or_default();
    let is = |field, word: &str| {
        vec![Match::Field { field, values: vec![Value::Word(word.to_owned())], negated: false }]
    };
    match protocol {
        "udp" | "tcp" => is(Field::Protocol, protocol),
        "ip" => is(Field::NetworkProtocol, "ipv4"),
        "ip6" => is(Field::NetworkProtocol, "ipv6"),
        _ => Vec::new(),
    }
}

fn read_field(left: &Json) -> Option<Field> {
    if let Some(key) = left["meta"]["key"].as_str() {
        return Some(match key {
            "iifname" | "iif" => Field::InDevice,
            "oifname" | "oif" => Field::OutDevice,
            "ibrname" => Field::InBridge,
            "obrname" => Field::OutBridge,
            "l4proto" => Field::Protocol,
            "nfproto" => Field::NetworkProtocol,
            "pkttype" => Field::PacketType,
            _ => return None,
        });
    }
    if left["ct"]["key"] == "state" {
        return Some(Field::State);
    }
    let payload = &left["payload"];
    Some(match (payload["protocol"].as_str()?, payload["field"].as_str()?) {
        ("udp" | "tcp" | "th", "dport") => Field::DestinationPort,
        ("udp" | "tcp" | "th", "sport") => Field::SourcePort,
        ("ip", "saddr") => Field::Source,
        ("ip", "daddr") => Field::Destination,
        ("ip", "protocol") => Field::Protocol,
        _ => return None,
    })
}

fn read_value(json: &Json) -> Value {
    let number = |json: &Json| match json {
        Json::Number(number) => number.as_u64().and_then(|number| u32::try_from(number).ok()),
        Json::String(text) => text.parse::<Ipv4Addr>().ok().map(u32::from),
        _ => None,
    };
    if let Some(number) = number(json) {
        return Value::Range(number, number);
    }
    if let Some(word) = json.as_str() {
        return Value::Word(word.to_owned());
    }
    let range = &json["range"];
    if let (Some(first), Some(last)) = (number(&range[0]), number(&range[1])) {
        return Value::Range(first, last);
    }
    let prefix = &json["prefix"];
    let network = prefix["addr"].as_str().and_then(|text| text.parse().ok());
    let length = prefix["len"].as_u64().and_then(|length| u8::try_from(length).ok());
    let network = network.zip(length).and_then(|(address, length)| Ipv4Network::new(address, length).ok());
    match network {
        Some(network) => Value::Range(network.network().into(), network.broadcast().into()),
        // An element with a counter or a time-out of its own.
        None if json["elem"]["val"] != Json::Null => read_value(&json["elem"]["val"]),
        None => Value::Unknown,
    }
}
