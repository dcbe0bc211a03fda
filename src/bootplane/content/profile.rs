//! What of boot profiles a node may fetch, and what its script says of them.

use std::net::Ipv4Addr;

use super::{BootContent, Served, Ticket, Unserved, serve_blob};
use crate::boot::decision::{KnownNode, ScriptPlan, Standing, decide_script};
use crate::boot::namespace::{self, Content};
use crate::boot::profile::{ProfileFile, ProfileName};
use crate::bootplane::profiles::{Asker, Begun, Choice, Ready};
use crate::clock::Timestamp;
use crate::node::registry::InstallerStart;
use crate::node::timeline::{Happening, ProfileOutcome, Stage};

/// What a script does, the profile it names, and what is to be told of profiles.
pub(super) type Told = (ScriptPlan, Option<Ready>, Vec<Happening>);

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
        name: &str,
        now: Timestamp,
    ) -> Result<Told, Unserved> {
        if known.approved && known.installer.is_some() {
            if let Some(told) = self.plan_installer(asker, name, now)? {
                return Ok(told);
            }
            // It was lost with that: the machine boots what it would boot without one.
            if let Standing::Known(after) = self.registry.standing(asker.mac, now) {
                known = after;
            }
        }
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
        let outcome = match (&prepared.ready.arguments, prepared.assigned.one_shot) {
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
        let ready = prepared.ready;
        Ok((ready.plan(ScriptPlan::Profile), Some(ready), told))
    }

    /// What a machine is told whose task an installer does; nothing if that has failed. Its start is on disk.
    fn plan_installer(&self, asker: Asker, name: &str, now: Timestamp) -> Result<Option<Told>, Unserved> {
        let Asker { mac, address, .. } = asker;
        let address = address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let ready = match self.registry.look_at(mac, |node, _| self.profiles.installer(node, asker)) {
            Some(Ok(ready)) => ready,
            Some(Err(unfit)) => {
                let reason = format!("the machine cannot start its installer: {unfit}");
                self.registry.installer_unfit(mac, &reason, now);
                None
            }
            None => None,
        };
        // One that is not there, or that wants a value the node has not got, may be so when the machine asks again.
        if let Some(waits) = ready.as_ref().filter(|ready| ready.arguments.is_err()) {
            return Ok(Some((ScriptPlan::ProfileRefused, Some(waits.clone()), Vec::new())));
        }
        let (there, settle) = (ready.is_some(), self.profiles.settle());
        match self.registry.start_installer(mac, address, name, there, settle, now) {
            InstallerStart::Ready => Ok(Some((ScriptPlan::Installer, ready, Vec::new()))),
            InstallerStart::NotYet => Err(Unserved::NotYet),
            InstallerStart::Elsewhere => Err(Unserved::NoToken),
            InstallerStart::Waits => Ok(Some((ScriptPlan::ProfileRefused, None, Vec::new()))),
            InstallerStart::No => Ok(None),
        }
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
        let may = may.map(|may| may || self.registry.installs_by(ticket.mac, profile));
        match may {
            Some(true) => Ok(serve_blob(blob, "application/octet-stream", ticket)),
            Some(false) | None => Err(Unserved::NotAssigned),
        }
    }
}
