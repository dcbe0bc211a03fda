//! Which boot profile a machine would have, and why not another.
//!
//! Asked of the rules as they are for a machine with the firmware that is asked about, whatever the node booted with last.

use std::net::Ipv4Addr;

use uuid::Uuid;

use crate::boot::decision::{ScriptPlan, Standing};
use crate::boot::namespace;
use crate::boot::profile::argument::{self, ArgumentRefusal, Values};
use crate::boot::profile::fit::{KnownFirmware, Reader};
use crate::boot::profile::rules::{self, Rule, Subject, Verdict};
use crate::boot::profile::runs::Fence;
use crate::boot::profile::{AssignedProfile, BootProfile, ProfileName, What};
use crate::boot::script::KernelArgument;
use crate::boot::script::profile::BootText;
use crate::clock::Timestamp;
use crate::dhcp::server::Directory;
use crate::explain::{Machine, Party, Play};
use crate::net::MacAddr;
use crate::node::labels::Labels;
use crate::node::timeline::Stage;
use crate::node::{NodeId, NodeName, Port};

/// What the rules ask of, as it is now.
#[derive(Clone, Debug, Default)]
pub struct ProfileKnowledge {
    pub id: Option<NodeId>,
    pub name: Option<NodeName>,
    pub uuid: Option<Uuid>,
    pub ports: Vec<Port>,
    pub labels: Labels,
    /// Each rule with where the node is with its one-shot, in order.
    pub rules: Vec<(Rule, Fence)>,
    pub profiles: Vec<BootProfile>,
    /// The installer of its open task: it outranks every rule.
    pub installer: Option<ProfileName>,
}

/// The registry's directory, with the profile that a machine of this firmware has.
pub(super) struct Assigned<'a> {
    pub(super) registry: &'a dyn Directory,
    pub(super) profile: Option<AssignedProfile>,
}

impl Directory for Assigned<'_> {
    fn standing(&self, mac: MacAddr, now: Timestamp) -> Standing {
        match self.registry.standing(mac, now) {
            Standing::Stranger => Standing::Stranger,
            Standing::Known(node) => {
                Standing::Known(crate::boot::decision::KnownNode { profile: self.profile.clone(), ..node })
            }
        }
    }

    fn reserved_for(&self, address: Ipv4Addr) -> Option<MacAddr> {
        self.registry.reserved_for(address)
    }
}

/// What a script says of the profile.
pub(super) enum ProfileTold {
    None,
    Profile { profile: BootProfile, arguments: Result<Vec<KernelArgument>, ArgumentRefusal> },
}

impl ProfileTold {
    pub(super) fn plan(&self) -> ScriptPlan {
        match self {
            ProfileTold::None => ScriptPlan::Ramdisk,
            ProfileTold::Profile { arguments: Ok(_), .. } => ScriptPlan::Profile,
            ProfileTold::Profile { arguments: Err(_), .. } => ScriptPlan::ProfileRefused,
        }
    }

    pub(super) fn text(&self) -> BootText<'_> {
        match self {
            ProfileTold::None => BootText::Ramdisk,
            ProfileTold::Profile { profile, arguments } => match arguments {
                Ok(arguments) => BootText::Profile { name: &profile.name, what: &profile.what, arguments },
                Err(reason) => BootText::Refused { name: &profile.name, reason },
            },
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            ProfileTold::None => String::new(),
            ProfileTold::Profile { profile, .. } => profile.name.to_string(),
        }
    }

    /// What the script makes the loader fetch.
    pub(super) fn files(&self) -> Vec<(String, u64)> {
        match self {
            ProfileTold::None => Vec::new(),
            ProfileTold::Profile { profile, .. } => {
                let files = profile.what.files().into_iter();
                files
                    .map(|(file, blob)| (namespace::profile_file_name(&profile.name, file), blob.bytes))
                    .collect()
            }
        }
    }
}

impl ProfileKnowledge {
    fn ask(&self, mac: MacAddr, machine: Machine, reader: Option<Reader>) -> Vec<(&Rule, Verdict)> {
        let own = [Port { mac, reserved: None }];
        let known =
            KnownFirmware { firmware: Some(machine.firmware()), secure_boot: Some(machine.secure_boot()) };
        let ports = if self.ports.is_empty() { &own[..] } else { &self.ports };
        let subject = Subject { id: self.id, uuid: self.uuid, ports, labels: &self.labels, known };
        let mut asked = Vec::new();
        for (rule, fence) in &self.rules {
            let profile = self.profiles.iter().find(|profile| profile.name == rule.profile);
            let verdict = rules::ask(rule, &subject, profile, reader, *fence);
            asked.push((rule, verdict));
            if verdict == Verdict::Chosen {
                break;
            }
        }
        asked
    }

    pub(super) fn choose(
        &self,
        mac: MacAddr,
        machine: Machine,
        reader: Option<Reader>,
    ) -> Option<AssignedProfile> {
        let (rule, _) = self.ask(mac, machine, reader).into_iter().find(|(_, it)| *it == Verdict::Chosen)?;
        let profile = self.profiles.iter().find(|profile| profile.name == rule.profile)?;
        Some(profile.assigned_by(rule.number))
    }

    /// Each rule that was asked, with what came of it, and those that were not.
    pub(super) fn asked(&self, mac: MacAddr, machine: Machine, reader: Reader) -> Vec<(String, String)> {
        let asked = self.ask(mac, machine, Some(reader));
        let named = |rule: &Rule| format!("profile rule {} ({})", rule.number, rule.who);
        let mut told: Vec<(String, String)> =
            asked.iter().map(|(rule, verdict)| (named(rule), verdict.words(rule))).collect();
        let later = self.rules.iter().skip(asked.len());
        told.extend(later.map(|(rule, _)| (named(rule), "not asked: an earlier one matches".to_owned())));
        told
    }

    pub(super) fn told(
        &self,
        mac: MacAddr,
        machine: Machine,
        reader: Reader,
        server: Ipv4Addr,
        address: Ipv4Addr,
    ) -> ProfileTold {
        let chosen = self.choose(mac, machine, Some(reader));
        let name = self.installer.clone().or(chosen.map(|chosen| chosen.name));
        let profile = name.and_then(|name| self.profiles.iter().find(|it| it.name == name));
        let Some(profile) = profile.cloned() else { return ProfileTold::None };
        let arguments = match &profile.what {
            What::Kernel { arguments, .. } => {
                let (name, uuid, labels) = (self.name.as_ref(), self.uuid, &self.labels);
                let values = Values { server, mac, address: Some(address), name, uuid, labels };
                argument::fill(arguments, &values)
            }
            What::EfiProgram { .. } | What::Iso { .. } => Ok(Vec::new()),
        };
        ProfileTold::Profile { profile, arguments }
    }
}

impl Play<'_> {
    /// A file of the profile, by what the loader came by.
    pub(super) fn profile_file(&mut self, name: &str, bytes: u64, grub: bool) {
        let by_tftp = grub && !self.machine.firmware().is_http();
        let asked = match by_tftp {
            true => format!("TFTP read {name} (octet, blksize, tsize)"),
            false => format!("HTTP GET http://{}/{name}", self.host()),
        };
        self.say(Stage::Kernel, Party::Machine, asked, None);
        self.say(Stage::Kernel, Party::Appliance, format!("{name}, {bytes} bytes"), None);
    }
}
