//! Two stories of one sequence, side by side: where they part, and in which circumstances.

use std::collections::BTreeSet;

use crate::ground::Who;
use crate::player::{Played, Story, Told};
use crate::sequence::{Identifier, Kind, List, Named, Oddity, Place};

/// A step that a peer answers otherwise than farrier does.
#[derive(Clone, Debug)]
pub struct Difference {
    pub peer: Who,
    pub seed: u64,
    /// From 0.
    pub step: usize,
    /// The circumstances.
    pub tags: BTreeSet<String>,
    /// `answer`, or a part of it.
    pub what: String,
    pub farrier: String,
    pub theirs: String,
}

/// Differences up to the first step after which the two are no longer in the same state.
pub fn compare(peer: Who, seed: u64, ours: &Story, theirs: &Story) -> Vec<Difference> {
    let mut found = Vec::new();
    for (step, (our, their)) in ours.iter().zip(theirs).enumerate() {
        let mut differ = |what: &str, farrier: &str, theirs: &str, tags: BTreeSet<String>| {
            let (what, farrier, theirs) = (what.to_owned(), farrier.to_owned(), theirs.to_owned());
            found.push(Difference { peer, seed, step, tags, what, farrier, theirs });
        };
        let (said, answered) = (told(our.told.as_ref()), told(their.told.as_ref()));
        if said != answered {
            differ("answer", &said, &answered, tags(our));
            break;
        }
        let (Some(our_told), Some(their_told)) = (&our.told, &their.told) else { continue };
        let (mine, other) = (&our_told.answer.fields, &their_told.answer.fields);
        for field in mine.keys().chain(other.keys()).collect::<BTreeSet<_>>() {
            let word = |fields: &std::collections::BTreeMap<String, String>| {
                fields.get(field).cloned().unwrap_or_else(|| "absent".to_owned())
            };
            let (mine, other) = (word(mine), word(other));
            if mine != other {
                let mut tags = tags(our);
                tags.insert(format!("in {}", our_told.answer.kind));
                differ(field, &mine, &other, tags);
            }
        }
    }
    found
}

/// What this part of the answer was; nothing, if there was none.
pub fn word_of(played: &Played, what: &str) -> String {
    match (what, &played.told) {
        ("answer", answer) => told(answer.as_ref()),
        (field, Some(Told { answer, .. })) => {
            answer.fields.get(field).cloned().unwrap_or_else(|| "absent".to_owned())
        }
        (_, None) => String::new(),
    }
}

/// The answer in short: what it is, and which address it gives.
pub fn told(told: Option<&Told>) -> String {
    match told {
        None => "silence".to_owned(),
        Some(Told { answer, address }) if *address == "no address" => answer.kind.to_owned(),
        Some(Told { answer, address }) => format!("{} {address}", answer.kind),
    }
}

/// What the message is, as far as its fields say (RFC 2131 table 4).
pub fn message(played: &Played) -> String {
    let step = &played.asked.step;
    let name = match (step.kind, step.server, played.wish, played.current) {
        (Kind::Discover, ..) => "discover",
        (Kind::Request, Named::Nobody, Place::Nothing, Place::Nothing) => "bare request",
        (Kind::Request, Named::Ours | Named::Other, Place::Nothing, Place::Nothing) => {
            "request without address"
        }
        (Kind::Request, _, Place::Nothing, _) if step.unicast => "renew",
        (Kind::Request, _, Place::Nothing, _) => "rebind",
        (Kind::Request, Named::Nobody, ..) => "init-reboot",
        (Kind::Request, Named::Ours | Named::Other, ..) => "select",
        (Kind::Decline, ..) => "decline",
        (Kind::Release, ..) => "release",
        (Kind::Inform, ..) => "inform",
        (Kind::Bootp, ..) => "bootp",
        (Kind::Type(number), ..) => return format!("type {number}"),
    };
    name.to_owned()
}

pub fn tags(played: &Played) -> BTreeSet<String> {
    let Played { asked, standing, current, wish, told: _ } = played;
    let (machine, step) = (&asked.machine, &asked.step);
    let mut tags: BTreeSet<String> = BTreeSet::from([
        message(played),
        standing.tag().to_owned(),
        machine.path.tag().to_owned(),
        machine.class.tag().to_owned(),
        step.oddity.tag().to_owned(),
    ]);
    let mut tag = |text: &str| {
        tags.insert(text.to_owned());
    };
    tag(match step.server {
        Named::Nobody => "names nobody",
        Named::Ours => "names us",
        Named::Other => "names another",
    });
    tag(match machine.identifier {
        Identifier::None => "no identifier",
        Identifier::OfMac => "identifier of the MAC",
        Identifier::Duid => "DUID",
        Identifier::Short => "short identifier",
        Identifier::Long => "long identifier",
    });
    tag(match (machine.list, step.oddity) {
        (List::None, _) => "no list",
        (List::Usual, _) | (_, Oddity::ZeroInList) => "usual list",
        (List::Little, _) => "little list",
    });
    tag(if machine.broadcast { "broadcast flag" } else { "no broadcast flag" });
    if machine.lease.is_some() {
        tag("wants a lease time");
    }
    if machine.host_name {
        tag("host name");
    }
    if step.unicast {
        tag("to the server alone");
    }
    if machine.size.is_some_and(|size| size < 576) {
        tag("under 576 bytes");
    }
    if *wish != Place::Nothing {
        tag(&format!("wants {}", wish.tag()));
    }
    if *current != Place::Nothing {
        tag(&format!("at {}", current.tag()));
    }
    tags
}

/// One line of a replay.
pub fn line(played: &Played) -> String {
    let mut circumstances: Vec<String> = tags(played).into_iter().collect();
    circumstances.retain(|tag| *tag != message(played));
    format!("{} ({})", message(played), circumstances.join(", "))
}
