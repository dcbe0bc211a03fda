//! Which boot profile each node has: the rules and the one-shots, kept in the store; the profiles are the library's.
//!
//! Answers come from memory and at once, for DHCP and TFTP ask from threads that may not wait. A one-shot's script may leave
//! only once its start is on disk: who asks before that is told to ask again ([`Begun::NotYet`]), and HTTP, which can wait,
//! waits for [`ProfileDesk::settled`].

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::boot::decision::ScriptPlan;
use crate::boot::profile::argument::{self, ArgumentRefusal, Values};
use crate::boot::profile::fit::{self, Judgement, KnownFirmware, Reader, Unfit};
use crate::boot::profile::rules::{
    self, AssignError, Rule, RuleList, RuleNumber, Selector, Subject, Verdict,
};
use crate::boot::profile::runs::{self, Fence, LiveRun, Record, Run, RunState};
use crate::boot::profile::{AssignedProfile, BootProfile, ProfileFile, ProfileName, What};
use crate::boot::script::KernelArgument;
use crate::boot::script::profile::BootText;
use crate::clock::Timestamp;
use crate::image::library::{Library, RemoveError, ServedProfile};
use crate::net::MacAddr;
use crate::node::registry::Profiles;
use crate::node::timeline::{Happening, ProfileOutcome};
use crate::node::{Node, NodeId};
use crate::store::{Change, CommitError, Store};

/// Runs kept: a one-shot for each of the nodes an appliance can know, twice over.
pub const RUNS_MAX: usize = 65_536;

pub struct ProfileDesk {
    library: Arc<Library>,
    store: Arc<dyn Store>,
    rules: ArcSwap<RuleList>,
    runs: Arc<Mutex<Runs>>,
    /// Changes of the list and removals of profiles, one at a time.
    changing: Mutex<()>,
    /// Grows whenever a start reached the disk, or did not.
    settled: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct Runs {
    by_mac: BTreeMap<(RuleNumber, MacAddr), NodeRun>,
    by_node: BTreeMap<(RuleNumber, NodeId), MacAddr>,
}

#[derive(Clone, Debug)]
struct NodeRun {
    node: NodeId,
    profile: ProfileName,
    run: LiveRun,
}

/// What came of wanting to start a one-shot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// On disk: its script may leave.
    Running,
    /// On its way to the disk, or just overtaken: ask again.
    NotYet,
    /// There are more runs than may be.
    Full,
}

#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("there is no boot profile {0}")]
    NoProfile(ProfileName),
    #[error(transparent)]
    Rule(#[from] AssignError),
    #[error("boot profile {profile} is assigned by rule {rule}")]
    Assigned { profile: ProfileName, rule: RuleNumber },
    #[error(transparent)]
    Store(#[from] CommitError),
    #[error(transparent)]
    Remove(#[from] RemoveError),
}

/// A profile ready to be told to a loader.
#[derive(Clone, Debug)]
pub struct Ready {
    pub served: Arc<ServedProfile>,
    pub arguments: Result<Vec<KernelArgument>, ArgumentRefusal>,
}

/// One that a rule assigns.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub assigned: AssignedProfile,
    pub ready: Ready,
}

/// What the rules come to for one machine.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    pub prepared: Option<Prepared>,
    /// Rules that matched and were passed over for a reason worth telling.
    pub passed: Vec<Happening>,
}

/// Who asks for text.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    pub mac: MacAddr,
    pub address: Option<Ipv4Addr>,
    pub server: Ipv4Addr,
    pub reader: Reader,
}

impl Ready {
    fn of(node: &Node, served: Arc<ServedProfile>, asker: Asker) -> Ready {
        let Asker { mac, address, server, .. } = asker;
        let (name, uuid, labels) = (node.name.as_ref(), node.uuid, &node.labels);
        let arguments = match &served.profile.what {
            What::Kernel { arguments, .. } => {
                argument::fill(arguments, &Values { server, mac, address, name, uuid, labels })
            }
            What::EfiProgram { .. } | What::Iso { .. } => Ok(Vec::new()),
        };
        Ready { served, arguments }
    }

    /// `plan`, or that it is refused.
    pub fn plan(&self, plan: ScriptPlan) -> ScriptPlan {
        match self.arguments {
            Ok(_) => plan,
            Err(_) => ScriptPlan::ProfileRefused,
        }
    }

    pub fn text(&self) -> BootText<'_> {
        let BootProfile { name, what, .. } = &self.served.profile;
        match &self.arguments {
            Ok(arguments) => BootText::Profile { name, what, arguments },
            Err(reason) => BootText::Refused { name, reason },
        }
    }
}

impl Prepared {
    pub fn happening(&self, outcome: ProfileOutcome) -> Happening {
        Happening::Profile { profile: self.assigned.name.clone(), rule: self.assigned.rule, outcome }
    }
}

/// A one-shot's run, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunTold {
    pub mac: MacAddr,
    pub node: NodeId,
    pub state: RunState,
}

impl ProfileDesk {
    /// `records` as the store held them.
    pub fn new(records: Vec<Record>, library: Arc<Library>, store: Arc<dyn Store>) -> ProfileDesk {
        let (mut rules, mut runs, mut stale) = (RuleList::default(), Runs::default(), Vec::new());
        for record in &records {
            if let Record::Rules(list) = record {
                rules = list.clone();
            }
        }
        for record in records {
            let Record::Run(run) = record else { continue };
            if rules.rule(run.rule).is_none() {
                stale.push(Change::ProfileRecord { key: run.key(), record: None });
                continue;
            }
            let Run { rule, mac, node, profile, state } = run;
            runs.insert(rule, mac, NodeRun { node, profile, run: LiveRun::Over { state } });
        }
        if !stale.is_empty() {
            // If it fails the next start does it.
            store.submit(stale, Box::new(|_| {}));
        }
        ProfileDesk {
            library,
            store,
            rules: ArcSwap::from_pointee(rules),
            runs: Arc::new(Mutex::new(runs)),
            changing: Mutex::default(),
            settled: Arc::new(watch::channel(0).0),
        }
    }

    pub fn library(&self) -> &Library {
        &self.library
    }

    pub fn rules(&self) -> Arc<RuleList> {
        self.rules.load_full()
    }

    /// Changes when what was [`Begun::NotYet`] may be asked again.
    pub fn settled(&self) -> watch::Receiver<u64> {
        self.settled.subscribe()
    }

    /// Adds a rule; durable before it returns.
    pub fn assign(
        &self,
        profile: ProfileName,
        who: Selector,
        before: Option<RuleNumber>,
        now: Timestamp,
    ) -> Result<Rule, ChangeError> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.library.boot_profile(&profile).is_none() {
            return Err(ChangeError::NoProfile(profile));
        }
        let (list, rule) = self.rules.load().assigned(profile, who, before, now)?;
        self.keep(list, Vec::new())?;
        Ok(rule)
    }

    /// Takes a rule away with its runs; durable before it returns.
    pub fn unassign(&self, number: RuleNumber) -> Result<Rule, ChangeError> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (list, rule) = self.rules.load().unassigned(number)?;
        let key = |(mac, _)| Change::ProfileRecord { key: runs::key(number, mac), record: None };
        let drops = lock(&self.runs).of_rule(number).map(key).collect();
        self.keep(list, drops)?;
        lock(&self.runs).forget(number);
        Ok(rule)
    }

    fn keep(&self, list: RuleList, mut changes: Vec<Change>) -> Result<(), CommitError> {
        let record = Box::new(Record::Rules(list.clone()));
        changes.push(Change::ProfileRecord { key: record.key(), record: Some(record) });
        self.store.commit(changes)?;
        self.rules.store(Arc::new(list));
        Ok(())
    }

    /// Takes a profile out of the library that no rule names.
    pub fn remove(&self, profile: &ProfileName) -> Result<(), ChangeError> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rule) = self.rules.load().of_profile(profile).next() {
            return Err(ChangeError::Assigned { profile: profile.clone(), rule: rule.number });
        }
        Ok(self.library.remove_boot_profile(profile)?)
    }

    /// Runs of a one-shot's rule, by MAC.
    pub fn runs(&self, rule: RuleNumber) -> Vec<RunTold> {
        let runs = lock(&self.runs);
        let told = |(mac, run): (MacAddr, &NodeRun)| RunTold { mac, node: run.node, state: run.run.state() };
        runs.of_rule(rule).map(told).collect()
    }

    /// Where a machine is with a rule's one-shot.
    pub fn fence(&self, rule: RuleNumber, subject: &Subject<'_>, boot: u32) -> Fence {
        lock(&self.runs).fence(rule, subject, boot)
    }

    /// The first rule that matches and that the machine can boot, and those before it that it cannot.
    fn first(
        &self,
        subject: &Subject<'_>,
        boot: u32,
        reader: Option<Reader>,
        mut passed: impl FnMut(&Rule, Verdict),
    ) -> Option<(AssignedProfile, Arc<ServedProfile>)> {
        for rule in self.rules.load().rules().iter().filter(|rule| rule.who.selects(subject)) {
            let served = self.library.boot_profile(&rule.profile);
            let fence = match &served {
                Some(served) if served.profile.one_shot => self.fence(rule.number, subject, boot),
                Some(_) | None => Fence::Armed,
            };
            let profile = served.as_ref().map(|served| &served.profile);
            match (rules::ask(rule, subject, profile, reader, fence), served) {
                (Verdict::Chosen, Some(served)) => {
                    return Some((served.profile.assigned_by(rule.number), served));
                }
                (verdict, _) => passed(rule, verdict),
            }
        }
        None
    }

    /// What the rules come to for a node whose loader asks.
    pub fn choose(&self, node: &Node, boot: u32, asker: Asker) -> Choice {
        let mut choice = Choice::default();
        if node.has_open_task() {
            return choice;
        }
        let note = |rule: &Rule, verdict: Verdict| {
            if let Some(reason) = verdict.passed_over() {
                let (profile, rule) = (rule.profile.clone(), rule.number);
                let outcome = ProfileOutcome::PassedOver(reason);
                choice.passed.push(Happening::Profile { profile, rule, outcome });
            }
        };
        let found = self.first(&Subject::of(node), boot, Some(asker.reader), note);
        choice.prepared =
            found.map(|(assigned, served)| Prepared { assigned, ready: Ready::of(node, served, asker) });
        choice
    }

    /// The installer of the node's task; or why this machine cannot start it, or nothing if it is not there.
    pub fn installer(&self, node: &Node, asker: Asker) -> Result<Option<Ready>, Unfit> {
        let Some(served) = node.installer().and_then(|name| self.library.boot_profile(name)) else {
            return Ok(None);
        };
        if let Judgement::Unfit(unfit) = fit::judge(&served.profile, KnownFirmware::of(node)) {
            return Err(unfit);
        }
        fit::carries(&served.profile.what, asker.reader)?;
        Ok(Some(Ready::of(node, served, asker)))
    }

    /// What was not durable yet may be asked again.
    pub fn settle(&self) -> impl Fn() + Send + 'static {
        let settled = Arc::clone(&self.settled);
        move || settled.send_modify(|count| *count = count.wrapping_add(1))
    }

    /// Starts a one-shot, or goes on with this boot's.
    pub fn begin(&self, prepared: &Prepared, node: NodeId, mac: MacAddr, boot: u32, at: Timestamp) -> Begun {
        let AssignedProfile { name, rule, .. } = &prepared.assigned;
        let rule = *rule;
        {
            let mut runs = lock(&self.runs);
            match runs.by_mac.get(&(rule, mac)).map(|run| run.run.fence(boot)) {
                Some(Fence::Running) => return Begun::Running,
                Some(Fence::Pending | Fence::Armed | Fence::Spent) => return Begun::NotYet,
                None if runs.by_mac.len() >= RUNS_MAX => return Begun::Full,
                // By another of its ports.
                None if runs.by_node.contains_key(&(rule, node)) => return Begun::NotYet,
                None => {
                    let run = NodeRun { node, profile: name.clone(), run: LiveRun::Pending { boot, at } };
                    runs.insert(rule, mac, run);
                }
            }
        }
        let run = Run { rule, mac, node, profile: name.clone(), state: RunState::Started { boot, at } };
        let change = Change::ProfileRecord { key: run.key(), record: Some(Box::new(Record::Run(run))) };
        let (kept, settle) = (Arc::clone(&self.runs), self.settle());
        let when_durable = move |result: Result<(), CommitError>| {
            let mut runs = lock(&kept);
            match result {
                Ok(()) => {
                    if let Some(run) = runs.by_mac.get_mut(&(rule, mac)) {
                        run.run = run.run.durable();
                    }
                }
                Err(error) => {
                    tracing::warn!(%mac, %rule, reason = %error, "the start of a one-shot profile is not on disk, so it is not started");
                    runs.remove(rule, mac);
                }
            }
            drop(runs);
            settle();
        };
        self.store.submit(vec![change], Box::new(when_durable));
        match lock(&self.runs).by_mac.get(&(rule, mac)).map(|run| run.run.fence(boot)) {
            Some(Fence::Running) => Begun::Running,
            Some(Fence::Pending | Fence::Armed | Fence::Spent) | None => Begun::NotYet,
        }
    }

    /// A profile's main file went out to its last byte; tells which rules' one-shots are spent by that.
    pub fn handed_out(&self, profile: &ProfileName, mac: MacAddr, at: Timestamp) -> Vec<RuleNumber> {
        let mut spent = Vec::new();
        let mut changes = Vec::new();
        let rules = self.rules.load();
        let mut runs = lock(&self.runs);
        for rule in rules.of_profile(profile) {
            let Some(kept) = runs.by_mac.get_mut(&(rule.number, mac)) else { continue };
            let LiveRun::Running { .. } = kept.run else { continue };
            kept.run = kept.run.handed_out();
            let run = Run {
                rule: rule.number,
                mac,
                node: kept.node,
                profile: kept.profile.clone(),
                state: RunState::Spent { at },
            };
            changes.push(Change::ProfileRecord { key: run.key(), record: Some(Box::new(Record::Run(run))) });
            spent.push(rule.number);
        }
        drop(runs);
        if !changes.is_empty() {
            // What is on disk says "started", which is as good to the next program; so a failure changes nothing.
            self.store.submit(changes, Box::new(|_| {}));
        }
        spent
    }

    /// Whether this node may fetch a file of a profile now.
    pub fn may_fetch(&self, node: &Node, boot: u32, profile: &BootProfile, file: ProfileFile) -> bool {
        let subject = Subject::of(node);
        let rules = self.rules.load();
        let mut assigned = rules.of_profile(&profile.name).filter(|rule| rule.who.selects(&subject));
        if !profile.one_shot {
            return assigned.next().is_some();
        }
        let runs = lock(&self.runs);
        assigned.any(|rule| {
            let mac = runs.by_node.get(&(rule.number, node.id));
            let run = mac.and_then(|mac| runs.by_mac.get(&(rule.number, *mac)));
            run.is_some_and(|run| run.run.may_fetch(boot, file))
        })
    }
}

impl Profiles for Arc<ProfileDesk> {
    fn assigned(&self, node: &Node, boot: u32) -> Option<AssignedProfile> {
        if self.rules.load().is_empty() || node.has_open_task() {
            return None;
        }
        self.first(&Subject::of(node), boot, None, |_, _| {}).map(|(assigned, _)| assigned)
    }
}

impl Runs {
    fn insert(&mut self, rule: RuleNumber, mac: MacAddr, run: NodeRun) {
        self.by_node.insert((rule, run.node), mac);
        self.by_mac.insert((rule, mac), run);
    }

    fn remove(&mut self, rule: RuleNumber, mac: MacAddr) {
        if let Some(run) = self.by_mac.remove(&(rule, mac)) {
            self.by_node.remove(&(rule, run.node));
        }
    }

    fn of_rule(&self, rule: RuleNumber) -> impl Iterator<Item = (MacAddr, &NodeRun)> {
        let range = (rule, MacAddr([0; 6]))..=(rule, MacAddr::BROADCAST);
        self.by_mac.range(range).map(|((_, mac), run)| (*mac, run))
    }

    fn forget(&mut self, rule: RuleNumber) {
        self.by_mac.retain(|(of, _), _| *of != rule);
        self.by_node.retain(|(of, _), _| *of != rule);
    }

    /// By every port of it, and by itself; what ran as another node is over.
    fn fence(&self, rule: RuleNumber, subject: &Subject<'_>, boot: u32) -> Fence {
        let by_node = subject.id.and_then(|id| self.by_node.get(&(rule, id)).copied());
        let macs = subject.ports.iter().map(|port| port.mac).chain(by_node);
        let fences = macs
            .filter_map(|mac| self.by_mac.get(&(rule, mac)))
            .map(|run| if subject.id == Some(run.node) { run.run.fence(boot) } else { Fence::Spent });
        let rank = |fence: &Fence| match fence {
            Fence::Armed => 0,
            Fence::Running => 1,
            Fence::Pending => 2,
            Fence::Spent => 3,
        };
        fences.max_by_key(rank).unwrap_or(Fence::Armed)
    }
}

fn lock(runs: &Mutex<Runs>) -> MutexGuard<'_, Runs> {
    runs.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
