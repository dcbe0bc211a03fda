//! What of boot profiles a node may fetch, and what its script says of them.

use super::{BootContent, Served, Ticket, Unserved, serve_blob};
use crate::boot::decision::{KnownNode, ScriptPlan, decide_script};
use crate::boot::namespace::{self, Content};
use crate::boot::profile::{ProfileFile, ProfileName};
use crate::bootplane::profiles::{Asker, Begun, Choice, Prepared};
use crate::clock::Timestamp;
use crate::node::timeline::{Happening, ProfileOutcome, Stage};

impl BootContent {
    /// A one-shot whose kernel or program went out whole is spent.
    pub(super) fn handed_out(&self, ticket: &Ticket, now: Timestamp) {
        if ticket.stage != Stage::Kernel {
            return;
        }
        let Some(Content::ProfileFile { profile, file: ProfileFile::Kernel | ProfileFile::EfiProgram }) =
            namespace::resolve(&ticket.name, &self.loaders.load().table)
        else {
            return;
        };
        for rule in self.profiles.handed_out(&profile, ticket.mac, now) {
            let (profile, outcome) = (profile.clone(), ProfileOutcome::Spent);
            self.registry.record(ticket.mac, Happening::Profile { profile, rule, outcome }, now);
        }
    }

    /// What a known node's script is to do, with the profile it names and what is to be told of profiles.
    pub(super) fn plan_for(
        &self,
        mut known: KnownNode,
        asker: Asker,
        now: Timestamp,
    ) -> Result<(ScriptPlan, Option<Prepared>, Vec<Happening>), Unserved> {
        if self.profiles.rules().is_empty() {
            return Ok((decide_script(&known), None, Vec::new()));
        }
        let chosen =
            self.registry.look_at(asker.mac, |node, boot| (self.profiles.choose(node, boot, asker), boot));
        let (Choice { prepared, passed: mut told }, boot) = chosen.unwrap_or_default();
        known.profile = prepared.as_ref().map(|prepared| prepared.assigned.clone());
        let plan = decide_script(&known);
        let Some(prepared) = prepared.filter(|_| plan == ScriptPlan::Profile) else {
            // Who waits for approval boots nothing that could be passed over.
            told.retain(|_| plan != ScriptPlan::AwaitApproval);
            return Ok((plan, None, told));
        };
        let outcome = match (&prepared.arguments, prepared.assigned.one_shot) {
            (Err(reason), _) => ProfileOutcome::Refused(format!("{}: {reason}", reason.as_str())),
            (Ok(_), false) => ProfileOutcome::Boots,
            (Ok(_), true) => match self.profiles.begin(&prepared, known.id, asker.mac, boot, now) {
                Begun::Running => ProfileOutcome::Started,
                Begun::NotYet => return Err(Unserved::NotYet),
                Begun::Full => ProfileOutcome::PassedOver("there are too many runs of one-shots".to_owned()),
            },
        };
        told.push(prepared.happening(outcome.clone()));
        if let ProfileOutcome::PassedOver(_) = outcome {
            known.profile = None;
            return Ok((decide_script(&known), None, told));
        }
        Ok((prepared.plan(), Some(prepared), told))
    }

    pub(super) fn serve_profile_file(
        &self,
        profile: &ProfileName,
        file: ProfileFile,
        ticket: Ticket,
    ) -> Result<Served, Unserved> {
        let served = self.library.boot_profile(profile).ok_or(Unserved::NotInstalled)?;
        let blob = served.blob(file).ok_or(Unserved::NoSuchName)?;
        let may = self
            .registry
            .look_at(ticket.mac, |node, boot| self.profiles.may_fetch(node, boot, &served.profile, file));
        match may {
            Some(true) => Ok(serve_blob(blob, "application/octet-stream", ticket)),
            Some(false) | None => Err(Unserved::NotAssigned),
        }
    }
}
