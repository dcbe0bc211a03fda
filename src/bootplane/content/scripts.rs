//! Scripts and GRUB configurations, rendered for the node that asks, at the moment it asks.

use std::net::Ipv4Addr;
use std::time::Instant;

use crate::boot::decision::{ScriptPlan, Standing};
use crate::boot::profile::fit::Reader;
use crate::boot::script::profile::BootText;
use crate::boot::script::{KernelArgument, ScriptContext, render_grub, render_ipxe, render_pxelinux};
use crate::bootplane::content::{BootContent, Served, Ticket, Unserved};
use crate::bootplane::profiles::{Asker, Ready};
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::telemetry::stages::Timed;
use crate::tftp::Restraint;

impl BootContent {
    pub(super) fn serve_script(
        &self,
        peer: Ipv4Addr,
        named: Option<MacAddr>,
        reader: Reader,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<Served, Unserved> {
        let started = Instant::now();
        let mac = ticket.mac;
        if named.is_some_and(|named| named != mac) {
            return Err(Unserved::ForeignMac);
        }
        let _whose = self.registry.asks_for_script(mac, now);
        let settings = self.settings.load();
        let (plan, ready, profile) = match self.registry.standing(mac, now) {
            // Removed while it booted, or one too many to keep: it waits, and boots once somebody registers it.
            Standing::Stranger => (ScriptPlan::AwaitApproval, None, Vec::new()),
            Standing::Known(node) => {
                let asker = Asker { mac, address: Some(peer), server: settings.server, reader };
                self.plan_for(node, asker, &ticket.name, now)?
            }
        };
        let token = match plan {
            ScriptPlan::Ramdisk => Some(self.registry.issue_token(mac, peer, now).ok_or(Unserved::NoToken)?),
            ScriptPlan::AwaitApproval
            | ScriptPlan::LocalDisk
            | ScriptPlan::Profile
            | ScriptPlan::Installer
            | ScriptPlan::ProfileRefused => None,
        };
        let token_issued_at = token.as_ref().map(|token| token.issued_at);
        let node = self.registry.name_of(mac);
        // The image's words first: the kernel takes the last of a repeated key, and that is the operator's.
        let image = self.library.profile(&settings.profile);
        let arguments: Vec<KernelArgument> =
            image.iter().flat_map(|image| &image.arguments).chain(&settings.arguments).cloned().collect();
        let grubs = match plan {
            ScriptPlan::LocalDisk => self.loaders.load().table.grubs(),
            ScriptPlan::Ramdisk
            | ScriptPlan::AwaitApproval
            | ScriptPlan::Profile
            | ScriptPlan::Installer
            | ScriptPlan::ProfileRefused => Vec::new(),
        };
        let render = match reader {
            Reader::Ipxe => render_ipxe,
            Reader::Grub => render_grub,
            Reader::Pxelinux => render_pxelinux,
        };
        let text = render(
            plan,
            &ScriptContext {
                server: settings.server,
                mac,
                node: node.as_ref(),
                profile: &settings.profile,
                token: token.as_ref().map_or("", |token| &token.text),
                arguments: &arguments,
                grubs: &grubs,
                boot: ready.as_ref().map_or(BootText::Ramdisk, Ready::text),
            },
        );
        self.tally.took(Timed::ScriptRender, started.elapsed());
        Ok(Served {
            digest: None,
            modified: None,
            media_type: "text/plain",
            ticket: Ticket { size: text.len() as u64, plan: Some(plan), token_issued_at, profile, ..ticket },
            bytes: text.into(),
            file: None,
            restraint: Restraint::default(),
        })
    }
}
