//! A loader was fetched whole and nothing came of it: what can be said about that.
//!
//! Firmware does not tell a server why it does not start a file. Two things can be known: whether the file is made for
//! what the machine said it is, and whether it is signed and still what was signed, which is what Secure Boot goes by. A loader that runs is
//! known by what it does next: iPXE asks for an address, shim and GRUB look for files.

use crate::boot::client::{ClientClass, Firmware};
use crate::boot::loader::{LoaderFile, LoaderName};
use crate::node::timeline::{Happening, Stage, TimelineEvent};
use crate::node::verdict::chain::Chain;
use crate::node::verdict::{Cause, Finding, Outcome, Surroundings, cite};

/// What it means that no script was asked for after the loader in `fetched`.
pub(super) fn silent(chain: &Chain<'_>, fetched: &TimelineEvent, around: &Surroundings) -> Finding {
    // A ROM that is no iPXE does not become one by itself, whichever of the two threads noted its event first.
    let has_other_rom = chain.last_dhcp(|class| matches!(class, ClientClass::Firmware { .. })).is_some();
    let is_sign = |event: &&&TimelineEvent| {
        let by_ipxe = matches!(event.happening, Happening::Dhcp { class: ClientClass::Ipxe { .. }, .. });
        (has_other_rom && by_ipxe) || (event.sequence > fetched.sequence && is_sign_of_life(&event.happening))
    };
    if let Some(sign) = chain.events.iter().find(is_sign) {
        let headline = "the loader runs, but asked for no script".to_owned();
        return Finding {
            outcome: Outcome::Stopped,
            stage: Stage::Script,
            cause: Cause::ScriptNotFetched,
            headline,
            evidence: vec![cite(fetched), cite(sign)],
        };
    }
    let file = file_of(fetched, around);
    let name = file.map_or_else(|| "the loader".to_owned(), |file| file.name.to_string());
    let (cause, headline) = match (file, chain.firmware()) {
        (Some(file), Some(firmware)) if file.platform != firmware.platform() => (
            Cause::WrongArchitecture,
            format!(
                "{name} was fetched whole and did not start: it is made for {}, and the machine is {firmware}",
                file.platform
            ),
        ),
        (Some(file), Some(firmware))
            if around.loaders.altered().any(|altered| altered.name == file.name)
                && firmware.platform() != Firmware::Bios =>
        {
            (
                Cause::SecureBootRefused,
                format!(
                    "{name} was fetched whole and did not start: it was changed after it was signed, and Secure Boot starts only what its signature is of"
                ),
            )
        }
        (Some(file), Some(firmware)) if !file.signed && firmware.platform() != Firmware::Bios => (
            Cause::SecureBootRefused,
            format!(
                "{name} was fetched whole and did not start: it is not signed, and Secure Boot starts signed loaders only"
            ),
        ),
        (_, _) => {
            (Cause::LoaderSilent, format!("{name} was fetched whole, and nothing was heard of it since"))
        }
    };
    let mut evidence = vec![cite(fetched)];
    let said = chain.last_dhcp(|class| matches!(class, ClientClass::Firmware { .. }));
    evidence.extend(said.map(cite));
    Finding { outcome: Outcome::Stopped, stage: Stage::Loader, cause, headline, evidence }
}

fn file_of<'a>(fetched: &TimelineEvent, around: &'a Surroundings) -> Option<&'a LoaderFile> {
    let Happening::File { name, .. } = &fetched.happening else { return None };
    let exact = around.loaders.file(&LoaderName(name.clone()));
    exact.or_else(|| around.loaders.file(&LoaderName(name.to_ascii_lowercase())))
}

fn is_sign_of_life(happening: &Happening) -> bool {
    match happening {
        Happening::Dhcp { class, .. } => matches!(class, ClientClass::Ipxe { .. }),
        // Firmware fetches the one file it was told; whoever looks for others is a loader.
        Happening::File { .. } => true,
        Happening::OtherServer { .. }
        | Happening::Script { .. }
        | Happening::Profile { .. }
        | Happening::Agent { .. }
        | Happening::AgentRefused { .. }
        | Happening::OrderGiven { .. }
        | Happening::State { .. }
        | Happening::Approved
        | Happening::QuirksSet { .. }
        | Happening::Registered
        | Happening::Edited { .. }
        | Happening::Removed { .. }
        | Happening::BootLoop { .. }
        | Happening::PortConflict { .. }
        | Happening::Install { .. }
        | Happening::ApplianceStarted => false,
    }
}
