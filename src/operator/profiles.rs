//! Boot profiles over the API: list, show, remove; rules: list, assign, unassign.
//!
//! Whether the machines a rule is for can boot the profile is said when the rule is made. A rule for one machine, or one
//! kind of firmware, that cannot boot it is refused; a rule for a group is made, and whoever cannot is named.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::OperatorParts;
use super::access::Principal;
use super::answer;
use super::api::{
    AssignRequest, Assigned, AssignedTo, AssignmentEntry, ProfileEntry, ProfileFileEntry, RunEntry,
    RunStateEntry, SignatureEntry,
};
use super::asked::{Asked, Document, NoQuery, Segment, reference};
use super::nodes::{found, waiting};
use super::problem::{Problem, ProblemKind};
use super::routes::Shared;
use super::views;
use crate::boot::namespace;
use crate::boot::profile::fit::{self, Judgement, KnownFirmware, Unfit};
use crate::boot::profile::rules::{AssignError, Rule, RuleNumber, Selector, Subject};
use crate::boot::profile::runs::RunState;
use crate::boot::profile::{BootProfile, ProfileKind, ProfileName, What};
use crate::bootplane::profiles::{ChangeError, ProfileDesk};
use crate::image::executable::Signature;
use crate::image::library::Damage;
use crate::node::Node;
use crate::node::registry::NodeRef;

/// Machines that a warning names one by one.
const NAMED_MAX: usize = 20;

pub(super) async fn list(State(parts): State<Shared>, mut asked: Asked) -> Result<Response, Problem> {
    let served: Option<bool> = asked.read("served", "true or false")?;
    let paging = asked.paging::<String>()?;
    asked.finish()?;
    let entries = entries(&*desk(&parts)?).into_iter().filter(|entry| {
        served.is_none_or(|served| entry.served == served)
            && paging.after.as_ref().is_none_or(|after| entry.name > *after)
    });
    Ok(answer::listed(&asked, views::page(entries, paging.limit, |entry| entry.name.clone())))
}

pub(super) async fn show(
    State(parts): State<Shared>,
    Segment(name): Segment,
    _: NoQuery,
) -> Result<Json<ProfileEntry>, Problem> {
    let name = profile_name(&name)?;
    let found = entries(&*desk(&parts)?).into_iter().find(|entry| entry.name == name.as_str());
    found.map(Json).ok_or_else(|| no_profile(&name))
}

pub(super) async fn remove(
    State(parts): State<Shared>,
    principal: Principal,
    Segment(name): Segment,
    _: NoQuery,
) -> Result<Json<ProfileEntry>, Problem> {
    let name = profile_name(&name)?;
    waiting(parts, move |parts| {
        let desk = desk(parts)?;
        if let Some(node) = parts.registry.who_installs_by(&name) {
            let detail = format!("{} is being installed by boot profile {name}", called(&node));
            return Err(Problem::new(ProblemKind::Conflict, detail)
                .way_out("wait for its end, or `farrier node abort` it"));
        }
        let before = entries(&desk).into_iter().find(|entry| entry.name == name.as_str());
        desk.remove(&name).map_err(problem_of)?;
        let before = before.ok_or_else(|| no_profile(&name))?;
        parts.audit.record(&principal, "profile.remove", name.to_string(), Some(json!(before)), None);
        Ok(Json(before))
    })
    .await
}

pub(super) async fn assignments(State(parts): State<Shared>, mut asked: Asked) -> Result<Response, Problem> {
    let profile = asked.text("profile")?.map(|text| profile_name(&text)).transpose()?;
    let paging = asked.paging::<u32>()?;
    asked.finish()?;
    let desk = desk(&parts)?;
    let list = desk.rules();
    // In the order in which they are asked, which is not that of their numbers.
    let after = paging.after.and_then(|after| list.rules().iter().position(|rule| rule.number.0 == after));
    let rules = list.rules().iter().skip(after.map_or(0, |place| place + 1));
    let rules = rules.filter(|rule| profile.as_ref().is_none_or(|profile| rule.profile == *profile));
    let entries = rules.map(|rule| assignment(&parts, &desk, rule));
    Ok(answer::listed(&asked, views::page(entries, paging.limit, |entry| entry.rule.0.to_string())))
}

pub(super) async fn assign(
    State(parts): State<Shared>,
    principal: Principal,
    _: NoQuery,
    Document(request): Document<AssignRequest>,
) -> Result<Response, Problem> {
    waiting(parts, move |parts| {
        let desk = desk(parts)?;
        let AssignRequest { profile, to, before } = request;
        let served = desk.library().boot_profile(&profile).ok_or_else(|| no_profile(&profile))?;
        let who = selector(parts, to)?;
        let warnings = judged(parts, &served.profile, &who)?;
        let rule = desk.assign(profile, who, before, parts.clock.now()).map_err(problem_of)?;
        let assignment = assignment(parts, &desk, &rule);
        let subject = format!("{} {}", rule.profile, rule.who);
        parts.audit.record(&principal, "profile.assign", subject, None, Some(json!(assignment)));
        let answer = (axum::http::StatusCode::CREATED, Json(Assigned { assignment, warnings }));
        Ok(answer.into_response())
    })
    .await
}

pub(super) async fn unassign(
    State(parts): State<Shared>,
    principal: Principal,
    Segment(number): Segment,
    _: NoQuery,
) -> Result<Json<AssignmentEntry>, Problem> {
    let number: u32 = number.parse().map_err(|_| {
        Problem::new(ProblemKind::Invalid, "a rule is named by its number")
            .field("rule")
            .way_out("/api/v1/assignments lists those there are")
    })?;
    waiting(parts, move |parts| {
        let desk = desk(parts)?;
        let number = RuleNumber(number);
        let before = desk.rules().rule(number).map(|rule| assignment(parts, &desk, rule));
        let rule = desk.unassign(number).map_err(problem_of)?;
        let before = before.unwrap_or_else(|| assignment(parts, &desk, &rule));
        let subject = format!("{} {}", rule.profile, rule.who);
        parts.audit.record(&principal, "profile.unassign", subject, Some(json!(before)), None);
        Ok(Json(before))
    })
    .await
}

pub(super) fn desk(parts: &OperatorParts) -> Result<std::sync::Arc<ProfileDesk>, Problem> {
    parts
        .appliance
        .boot_profiles()
        .ok_or_else(|| Problem::new(ProblemKind::Unavailable, "this appliance serves no boot profiles"))
}

pub(super) fn profile_name(text: &str) -> Result<ProfileName, Problem> {
    text.parse().map_err(|error| Problem::new(ProblemKind::Invalid, format!("{error}")).field("profile"))
}

pub(super) fn no_profile(name: &ProfileName) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("there is no boot profile {name}"))
        .way_out("`farrier profile list` shows those there are, `farrier profile add` makes one")
}

fn problem_of(error: ChangeError) -> Problem {
    let told = error.to_string();
    match error {
        ChangeError::NoProfile(name) => no_profile(&name),
        ChangeError::Rule(AssignError::NoSuchRule(_)) => Problem::new(ProblemKind::NotFound, told)
            .way_out("`farrier profile list` shows the rules there are"),
        ChangeError::Rule(AssignError::Already(_)) => {
            Problem::new(ProblemKind::Conflict, told).way_out("take that rule away to give it another place")
        }
        ChangeError::Rule(AssignError::Full) => {
            Problem::new(ProblemKind::Conflict, told).way_out("one rule for a label does for many nodes")
        }
        ChangeError::Assigned { rule, .. } => Problem::new(ProblemKind::Conflict, told)
            .way_out(format!("`farrier profile unassign {rule}` first")),
        ChangeError::Store(error) => Problem::new(ProblemKind::Unavailable, error.to_string())
            .way_out("try again; nothing was changed"),
        ChangeError::Remove(crate::image::library::RemoveError::NotFound(name)) => no_profile(&name),
        ChangeError::Remove(crate::image::library::RemoveError::Write { source, .. }) => {
            Problem::new(ProblemKind::Unavailable, format!("{told}: {source}"))
        }
    }
}

fn entries(desk: &ProfileDesk) -> Vec<ProfileEntry> {
    let rules = desk.rules();
    let mut entries: Vec<ProfileEntry> = Vec::new();
    for served in desk.library().boot_profiles() {
        let BootProfile { name, what, one_shot, description, program } = &served.profile;
        let files = what.files().into_iter().map(|(file, blob)| ProfileFileEntry {
            name: namespace::profile_file_name(name, file),
            digest: blob.digest.to_string(),
            bytes: blob.bytes,
        });
        let arguments = match what {
            What::Kernel { arguments, .. } => arguments.iter().map(ToString::to_string).collect(),
            What::EfiProgram { .. } | What::Iso { .. } => Vec::new(),
        };
        let signature = match program.signature {
            Signature::Absent => SignatureEntry::Absent,
            Signature::Whole => SignatureEntry::Whole,
            Signature::Broken => SignatureEntry::Broken,
        };
        entries.push(ProfileEntry {
            name: name.to_string(),
            kind: Some(what.kind()),
            description: description.clone(),
            one_shot: *one_shot,
            served: true,
            damage: None,
            files: files.collect(),
            arguments,
            signature: (what.kind() != ProfileKind::Iso).then_some(signature),
            platform: program.platform,
            rules: rules.of_profile(name).map(|rule| rule.number.0).collect(),
        });
    }
    entries.extend(desk.library().boot_damage().into_iter().map(|damage| damaged(desk, damage)));
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

fn damaged(desk: &ProfileDesk, Damage { path, reason }: Damage) -> ProfileEntry {
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let list = desk.rules();
    let rules = list.rules().iter().filter(|rule| rule.profile.as_str() == name);
    ProfileEntry {
        kind: None,
        description: None,
        one_shot: false,
        served: false,
        damage: Some(reason),
        files: Vec::new(),
        arguments: Vec::new(),
        signature: None,
        platform: None,
        rules: rules.map(|rule| rule.number.0).collect(),
        name,
    }
}

fn assignment(parts: &OperatorParts, desk: &ProfileDesk, rule: &Rule) -> AssignmentEntry {
    let (to, node) = match &rule.who {
        Selector::Node(id) => (AssignedTo::Node(id.to_string()), parts.registry.find(&NodeRef::Id(*id))),
        Selector::Label(selector) => (AssignedTo::Label(selector.to_string()), None),
        Selector::Uuid(uuid) => (AssignedTo::Uuid(*uuid), None),
        Selector::MacPrefix(prefix) => (AssignedTo::MacPrefix(prefix.to_string()), None),
        Selector::Firmware(firmware) => (AssignedTo::Firmware(*firmware), None),
    };
    let runs = desk.runs(rule.number).into_iter().map(|run| {
        let (state, at) = match run.state {
            RunState::Started { at, .. } => (RunStateEntry::Started, at),
            RunState::Spent { at } => (RunStateEntry::Spent, at),
        };
        RunEntry { mac: run.mac, node: run.node, state, at }
    });
    AssignmentEntry {
        rule: rule.number,
        profile: rule.profile.clone(),
        to,
        node_name: node.and_then(|node| node.name),
        assigned_at: rule.assigned_at,
        runs: runs.collect(),
    }
}

fn selector(parts: &OperatorParts, to: AssignedTo) -> Result<Selector, Problem> {
    let invalid = |error: &dyn std::fmt::Display| {
        Problem::new(ProblemKind::Invalid, error.to_string()).field("body.to")
    };
    Ok(match to {
        AssignedTo::Node(text) => Selector::Node(found(parts, &reference(&text)?)?.id),
        AssignedTo::Label(text) => Selector::Label(text.parse().map_err(|error| invalid(&error))?),
        AssignedTo::Uuid(uuid) => Selector::Uuid(uuid),
        AssignedTo::MacPrefix(text) => Selector::MacPrefix(text.parse().map_err(|error| invalid(&error))?),
        AssignedTo::Firmware(firmware) => Selector::Firmware(firmware),
    })
}

/// What is known now of the machines a rule is for.
fn judged(parts: &OperatorParts, profile: &BootProfile, who: &Selector) -> Result<Vec<String>, Problem> {
    let refused = |machine: &str, unfit| cannot_boot(machine, &profile.name, unfit).field("body.to");
    if let Selector::Firmware(firmware) = who {
        let known = KnownFirmware { firmware: Some(*firmware), secure_boot: None };
        return match fit::judge(profile, known) {
            Judgement::Unfit(unfit) => Err(refused(&format!("a machine with {firmware} firmware"), unfit)),
            Judgement::Unsure(unfit) => {
                Ok(vec![format!("machines with Secure Boot turned on are passed over: {unfit}")])
            }
            Judgement::Fits | Judgement::Unknown => Ok(Vec::new()),
        };
    }
    let one = matches!(who, Selector::Node(_) | Selector::Uuid(_));
    let (mut unfit_machines, mut unsure, mut unknown, mut fitting) =
        (Vec::new(), Vec::new(), 0_usize, 0_usize);
    for node in parts.registry.nodes().iter().filter(|node| who.selects(&Subject::of(node))) {
        match fit::judge(profile, KnownFirmware::of(node)) {
            Judgement::Unfit(unfit) if one => return Err(refused(&called(node), unfit)),
            Judgement::Unfit(unfit) => unfit_machines.push(format!("{}: {unfit}", called(node))),
            Judgement::Unsure(unfit) => unsure.push((called(node), unfit)),
            Judgement::Unknown => unknown += 1,
            Judgement::Fits => fitting += 1,
        }
    }
    let mut warnings = Vec::new();
    let left_out = unfit_machines.len().saturating_sub(NAMED_MAX);
    if !unfit_machines.is_empty() && fitting + unsure.len() + unknown == 0 {
        warnings.push("no machine that is known and meant can boot it".to_owned());
    }
    warnings.extend(unfit_machines.into_iter().take(NAMED_MAX).map(|line| format!("passed over: {line}")));
    if left_out > 0 {
        warnings.push(format!("and {left_out} more are passed over"));
    }
    match unsure.as_slice() {
        [] => {}
        [(name, unfit)] => warnings.push(format!(
            "nobody knows yet whether Secure Boot is on in {name}; if it is, it is passed over: {unfit}"
        )),
        [(_, unfit), ..] => warnings.push(format!(
            "of {} machines nobody knows yet whether Secure Boot is on; where it is, they are passed over: {unfit}",
            unsure.len()
        )),
    }
    match unknown {
        0 => {}
        1 => warnings.push("the firmware of one machine is not known yet".to_owned()),
        count => warnings.push(format!("the firmware of {count} machines is not known yet")),
    }
    Ok(warnings)
}

fn cannot_boot(machine: &str, profile: &ProfileName, unfit: Unfit) -> Problem {
    Problem::new(ProblemKind::Conflict, format!("{machine} cannot boot profile {profile}: {unfit}"))
        .way_out(way_out(unfit))
}

/// This node cannot boot it.
pub(super) fn unfit(node: &Node, profile: &ProfileName, unfit: Unfit) -> Problem {
    cannot_boot(&called(node), profile, unfit)
}

fn called(node: &Node) -> String {
    let port = node.ports.first().map(|port| port.mac.to_string());
    let name = node.name.as_ref().map(ToString::to_string);
    name.or(port).unwrap_or_else(|| node.id.to_string())
}

fn way_out(unfit: Unfit) -> String {
    match unfit {
        Unfit::NotSigned { .. } | Unfit::Altered { .. } => {
            "take a kernel or program that is signed by a key the machine trusts (a distribution's own), or turn Secure Boot off and let the machine boot once"
        }
        Unfit::IsoUnderSecureBoot => {
            "add kernel and initrd out of the image as a profile, or turn Secure Boot off and let the machine boot once"
        }
        Unfit::NeedsUefi | Unfit::KernelNeedsUefi => "set the machine's firmware to UEFI and let it boot once",
        Unfit::KernelNeedsBios => "take a kernel with an EFI stub, or set the machine's firmware to BIOS",
        Unfit::OtherPlatform { .. } => "add a profile that is made for its processor",
        Unfit::IsoNeedsIpxe { .. } | Unfit::KernelsOnly | Unfit::OneInitrdOnly { .. } => {
            "give the machine another loader: [boot.loaders]"
        }
    }
    .to_owned()
}
