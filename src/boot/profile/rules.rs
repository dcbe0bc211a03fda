//! Who boots which profile: a list of rules, asked from the first to the last; the first that matches wins.
//!
//! A rule whose profile is gone, cannot be carried by the machine, or was a one-shot that the node has had, is passed over,
//! and the next is asked.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::boot::client::Firmware;
use crate::boot::profile::fit::{self, Judgement, KnownFirmware, Reader, Unfit};
use crate::boot::profile::runs::Fence;
use crate::boot::profile::{BootProfile, ProfileName};
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::labels::{LabelSelector, Labels};
use crate::node::{Node, NodeId, Port};

/// Rules are asked one after another for each message of a boot client; a site has a handful.
pub const RULES_MAX: usize = 256;

/// What operators name a rule by; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuleNumber(pub u32);

impl fmt::Display for RuleNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The first bytes of MAC addresses: a vendor's, or a hypervisor's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacPrefix(Vec<u8>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not the beginning of a MAC address: one to six bytes in hexadecimal are wanted, as in 52:54:00"
)]
pub struct ParseMacPrefixError {
    pub text: String,
}

impl MacPrefix {
    pub fn begins(&self, mac: MacAddr) -> bool {
        mac.0.starts_with(&self.0)
    }
}

impl FromStr for MacPrefix {
    type Err = ParseMacPrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseMacPrefixError { text: text.escape_default().take(64).collect() };
        let byte = |digits: &str| match digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => u8::from_str_radix(digits, 16).map_err(|_| refused()),
            false => Err(refused()),
        };
        let bytes = text.split([':', '-']).map(byte).collect::<Result<Vec<u8>, _>>()?;
        if (1..=6).contains(&bytes.len()) { Ok(MacPrefix(bytes)) } else { Err(refused()) }
    }
}

impl fmt::Display for MacPrefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        formatter.write_str(&bytes.join(":"))
    }
}

impl TryFrom<String> for MacPrefix {
    type Error = ParseMacPrefixError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacPrefix> for String {
    fn from(prefix: MacPrefix) -> String {
        prefix.to_string()
    }
}

/// Which machines a rule is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selector {
    Node(NodeId),
    Label(LabelSelector),
    /// The machine's SMBIOS UUID.
    Uuid(Uuid),
    MacPrefix(MacPrefix),
    /// One that names a way of booting (`uefi-x64-http`) is for that way; one that does not, for either.
    Firmware(Firmware),
}

impl fmt::Display for Selector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Node(id) => write!(formatter, "node {id}"),
            Selector::Label(selector) => write!(formatter, "label {selector}"),
            Selector::Uuid(uuid) => write!(formatter, "UUID {uuid}"),
            Selector::MacPrefix(prefix) => write!(formatter, "MAC prefix {prefix}"),
            Selector::Firmware(firmware) => write!(formatter, "firmware {firmware}"),
        }
    }
}

/// A machine, as far as rules ask.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Absent for a machine that is no node yet.
    pub id: Option<NodeId>,
    pub uuid: Option<Uuid>,
    pub ports: &'a [Port],
    pub labels: &'a Labels,
    pub known: KnownFirmware,
}

impl<'a> Subject<'a> {
    pub fn of(node: &'a Node) -> Subject<'a> {
        Subject {
            id: Some(node.id),
            uuid: node.uuid,
            ports: &node.ports,
            labels: &node.labels,
            known: KnownFirmware::of(node),
        }
    }
}

impl Selector {
    pub fn selects(&self, subject: &Subject<'_>) -> bool {
        match self {
            Selector::Node(id) => subject.id == Some(*id),
            Selector::Label(selector) => selector.selects(subject.labels),
            Selector::Uuid(uuid) => subject.uuid == Some(*uuid),
            Selector::MacPrefix(prefix) => subject.ports.iter().any(|port| prefix.begins(port.mac)),
            Selector::Firmware(wanted) => {
                subject.known.firmware.is_some_and(|its| its == *wanted || its.platform() == *wanted)
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub number: RuleNumber,
    pub profile: ProfileName,
    pub who: Selector,
    pub assigned_at: Timestamp,
}

/// The rules, in the order in which they are asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleList {
    next: RuleNumber,
    rules: Vec<Rule>,
}

impl Default for RuleList {
    fn default() -> RuleList {
        RuleList { next: RuleNumber(1), rules: Vec::new() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    #[error("there is no rule {0}")]
    NoSuchRule(RuleNumber),
    #[error("rule {0} says so already")]
    Already(RuleNumber),
    #[error("there are {RULES_MAX} rules already")]
    Full,
}

impl RuleList {
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub fn rule(&self, number: RuleNumber) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.number == number)
    }

    pub fn of_profile(&self, profile: &ProfileName) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| rule.profile == *profile)
    }

    /// The list with one more rule, last or before another.
    pub fn assigned(
        &self,
        profile: ProfileName,
        who: Selector,
        before: Option<RuleNumber>,
        assigned_at: Timestamp,
    ) -> Result<(RuleList, Rule), AssignError> {
        if let Some(same) = self.rules.iter().find(|rule| rule.profile == profile && rule.who == who) {
            return Err(AssignError::Already(same.number));
        }
        if self.rules.len() >= RULES_MAX {
            return Err(AssignError::Full);
        }
        let place = match before {
            None => self.rules.len(),
            Some(number) => {
                let found = self.rules.iter().position(|rule| rule.number == number);
                found.ok_or(AssignError::NoSuchRule(number))?
            }
        };
        let rule = Rule { number: self.next, profile, who, assigned_at };
        let mut list = self.clone();
        list.next = RuleNumber(self.next.0.saturating_add(1));
        list.rules.insert(place, rule.clone());
        Ok((list, rule))
    }

    /// The list without a rule.
    pub fn unassigned(&self, number: RuleNumber) -> Result<(RuleList, Rule), AssignError> {
        let place = self.rules.iter().position(|rule| rule.number == number);
        let mut list = self.clone();
        let rule = list.rules.remove(place.ok_or(AssignError::NoSuchRule(number))?);
        Ok((list, rule))
    }
}

/// What came of asking one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Chosen,
    /// It is for other machines.
    Others,
    /// Its profile was taken away, or is damaged.
    Missing,
    Unfit(Unfit),
    /// The one-shot was started before.
    Spent,
}

/// Asks one rule. `reader` is the loader that asks, if one does; `fence` where the node is with a one-shot.
pub fn ask(
    rule: &Rule,
    subject: &Subject<'_>,
    profile: Option<&BootProfile>,
    reader: Option<Reader>,
    fence: Fence,
) -> Verdict {
    if !rule.who.selects(subject) {
        return Verdict::Others;
    }
    let Some(profile) = profile else { return Verdict::Missing };
    if profile.one_shot && fence == Fence::Spent {
        return Verdict::Spent;
    }
    if let Judgement::Unfit(unfit) = fit::judge(profile, subject.known) {
        return Verdict::Unfit(unfit);
    }
    match reader.map(|reader| fit::carries(&profile.what, reader)) {
        Some(Err(unfit)) => Verdict::Unfit(unfit),
        Some(Ok(())) | None => Verdict::Chosen,
    }
}

impl Verdict {
    /// Why a rule was passed over, where that is worth an event.
    pub fn passed_over(&self) -> Option<String> {
        match self {
            Verdict::Chosen | Verdict::Others | Verdict::Spent => None,
            Verdict::Missing => Some("the profile is not there, or damaged".to_owned()),
            Verdict::Unfit(unfit) => Some(unfit.to_string()),
        }
    }

    /// For `explain`.
    pub fn words(&self, rule: &Rule) -> String {
        match self {
            Verdict::Chosen => format!("it matches first: profile {} is booted", rule.profile),
            Verdict::Others => "it is for other machines".to_owned(),
            Verdict::Missing => format!("passed over: profile {} is not there, or damaged", rule.profile),
            Verdict::Unfit(unfit) => format!("passed over: {unfit}"),
            Verdict::Spent => format!("passed over: profile {} is a one-shot, and was started", rule.profile),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::profile::testing::{efi, iso, kernel};

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_millis(secs * 1000)
    }

    fn list(whos: &[Selector]) -> RuleList {
        whos.iter().fold(RuleList::default(), |list, who| {
            list.assigned("live".parse().unwrap(), who.clone(), None, at(1)).unwrap().0
        })
    }

    fn prefix(text: &str) -> Selector {
        Selector::MacPrefix(text.parse().unwrap())
    }

    #[test]
    fn rules_are_put_in_order_and_their_numbers_never_come_again() {
        let list = list(&[prefix("02"), prefix("52:54")]);
        let numbers = |list: &RuleList| list.rules().iter().map(|rule| rule.number.0).collect::<Vec<_>>();
        let name: ProfileName = "live".parse().unwrap();
        let (list, third) = list.assigned(name.clone(), prefix("aa"), Some(RuleNumber(2)), at(2)).unwrap();
        assert_eq!((numbers(&list), third.number), (vec![1, 3, 2], RuleNumber(3)));
        let (list, gone) = list.unassigned(RuleNumber(3)).unwrap();
        assert_eq!((numbers(&list), gone.who), (vec![1, 2], prefix("aa")));
        let (list, fourth) = list.assigned(name.clone(), prefix("aa"), None, at(3)).unwrap();
        assert_eq!((numbers(&list), fourth.number), (vec![1, 2, 4], RuleNumber(4)));
        let again = list.assigned(name.clone(), prefix("02"), None, at(4));
        assert_eq!(again.unwrap_err(), AssignError::Already(RuleNumber(1)));
        let nowhere = list.assigned(name, prefix("bb"), Some(RuleNumber(3)), at(4));
        assert_eq!(nowhere.unwrap_err(), AssignError::NoSuchRule(RuleNumber(3)));
        assert_eq!(list.unassigned(RuleNumber(9)).unwrap_err(), AssignError::NoSuchRule(RuleNumber(9)));
        let text = serde_json::to_string(&list).unwrap();
        assert_eq!(serde_json::from_str::<RuleList>(&text).unwrap(), list);
    }

    #[test]
    fn a_list_is_bounded() {
        let full = (0..RULES_MAX).fold(RuleList::default(), |list, number| {
            let who = Selector::Uuid(Uuid::from_u128(number as u128));
            list.assigned("live".parse().unwrap(), who, None, at(1)).unwrap().0
        });
        let more = full.assigned("live".parse().unwrap(), prefix("02"), None, at(1));
        assert_eq!(more.unwrap_err(), AssignError::Full);
    }

    #[test]
    fn each_way_of_naming_machines_names_those_it_should() {
        let labels: Labels = [crate::node::labels::parse_label("rack=r1").unwrap()].into_iter().collect();
        let ports = ["52:54:00:00:00:01", "02:00:00:00:00:07"]
            .map(|mac| Port { mac: mac.parse().unwrap(), reserved: None });
        let (id, uuid) = (NodeId(Uuid::from_u128(7)), Uuid::from_u128(9));
        let known = KnownFirmware { firmware: Some(Firmware::UefiX64Http), secure_boot: None };
        let subject = Subject { id: Some(id), uuid: Some(uuid), ports: &ports, labels: &labels, known };
        for (who, expected) in [
            (Selector::Node(id), true),
            (Selector::Node(NodeId(uuid)), false),
            (Selector::Label("rack=r1".parse().unwrap()), true),
            (Selector::Label("rack=r2".parse().unwrap()), false),
            (Selector::Uuid(uuid), true),
            (Selector::Uuid(id.0), false),
            (prefix("52:54:00"), true),
            (prefix("02-00-00-00-00-07"), true),
            (prefix("52:55"), false),
            (Selector::Firmware(Firmware::UefiX64), true),
            (Selector::Firmware(Firmware::UefiX64Http), true),
            (Selector::Firmware(Firmware::Bios), false),
        ] {
            assert_eq!(who.selects(&subject), expected, "{who}");
        }
        for text in ["", "5", "52:", "52:5g", "00:11:22:33:44:55:66", "525400"] {
            assert!(text.parse::<MacPrefix>().is_err(), "{text}");
        }
    }

    /// What passes a rule over, in the order in which it is asked.
    #[test]
    fn a_rule_is_passed_over_for_one_named_reason() {
        let list = list(&[prefix("02")]);
        let rule = &list.rules()[0];
        let labels = Labels::default();
        let ports = [Port { mac: MacAddr([2, 0, 0, 0, 0, 1]), reserved: None }];
        let known = KnownFirmware { firmware: Some(Firmware::UefiX64), secure_boot: Some(true) };
        let subject = Subject { id: None, uuid: None, ports: &ports, labels: &labels, known };
        let bios = Subject {
            known: KnownFirmware { firmware: Some(Firmware::Bios), secure_boot: Some(false) },
            ..subject
        };
        let none = Subject { ports: &[], ..subject };
        let (live, disc, mut once) = (kernel("live", 2, &[]), iso("live"), efi("live"));
        once.one_shot = true;
        let iso_in_grub = Unfit::IsoNeedsIpxe { reader: Reader::Grub };
        for (subject, profile, reader, fence, expected) in [
            (&none, Some(&live), None, Fence::Armed, Verdict::Others),
            (&subject, None, None, Fence::Armed, Verdict::Missing),
            (&subject, Some(&live), None, Fence::Spent, Verdict::Chosen),
            (&subject, Some(&once), None, Fence::Spent, Verdict::Spent),
            (&bios, Some(&once), None, Fence::Armed, Verdict::Unfit(Unfit::NeedsUefi)),
            (
                &subject,
                Some(&disc),
                Some(Reader::Ipxe),
                Fence::Armed,
                Verdict::Unfit(Unfit::IsoUnderSecureBoot),
            ),
            (&bios, Some(&disc), Some(Reader::Ipxe), Fence::Armed, Verdict::Chosen),
            (&bios, Some(&disc), Some(Reader::Grub), Fence::Armed, Verdict::Unfit(iso_in_grub)),
            (&subject, Some(&live), Some(Reader::Grub), Fence::Armed, Verdict::Chosen),
        ] {
            assert_eq!(ask(rule, subject, profile, reader, fence), expected);
            assert!(!expected.words(rule).is_empty());
        }
    }
}
