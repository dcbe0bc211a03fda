//! Boot profiles: what a node boots that is not our ramdisk.
//!
//! A profile is a kernel with initrds and arguments, an EFI program, or an ISO image; all of them blobs of the library.
//! Rules assign profiles to nodes; the first that matches wins. One that a machine's firmware or loader cannot carry is
//! passed over, and whoever assigns it is told so at once.
//!
//! - [`argument`]: words of the kernel's command line with values of the node in them
//! - [`fit`]: which firmware and which loader can carry a profile
//! - [`rules`]: who gets which profile, and why not another
//! - [`runs`]: the fence of a one-shot profile: at most one boot of it, whatever crashes

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::boot::client::Firmware;
use crate::boot::profile::argument::ProfileArgument;
use crate::boot::profile::rules::RuleNumber;
use crate::image::executable::Signature;
use crate::image::library::{BlobRef, is_profile_name};

pub mod argument;
pub mod fit;
pub mod rules;
pub mod runs;

/// More than any live system has; iPXE and GRUB take them one after another.
pub const INITRDS_MAX: usize = 16;
pub const ARGUMENTS_MAX: usize = 64;
/// One line for people.
pub const DESCRIPTION_CHARS_MAX: usize = 200;

/// A host name label: it ends up in URLs and in file names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProfileName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a profile name: 1 to 63 lower-case letters, digits and inner hyphens are wanted")]
pub struct ParseProfileNameError {
    pub text: String,
}

impl ProfileName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ProfileName {
    type Err = ParseProfileNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match is_profile_name(text) {
            true => Ok(ProfileName(text.to_owned())),
            false => Err(ParseProfileNameError { text: text.escape_default().take(80).collect() }),
        }
    }
}

impl TryFrom<String> for ProfileName {
    type Error = ParseProfileNameError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ProfileName> for String {
    fn from(name: ProfileName) -> String {
        name.0
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The document of a profile, and what its program says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootProfile {
    pub name: ProfileName,
    pub what: What,
    /// Each node boots it once per assignment, and never again.
    #[serde(default)]
    pub one_shot: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Read from its bytes whenever they are opened, so it is not kept.
    #[serde(skip)]
    pub program: Program,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum What {
    Kernel {
        kernel: BlobRef,
        initrds: Vec<BlobRef>,
        arguments: Vec<ProfileArgument>,
    },
    EfiProgram {
        program: BlobRef,
    },
    /// Attached by iPXE as a drive (`sanboot`).
    Iso {
        image: BlobRef,
    },
}

/// What the bytes of a kernel or EFI program tell of where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    pub signature: Signature,
    /// The UEFI platform it is a program of, if it is one.
    pub platform: Option<Firmware>,
    /// It has the header by which BIOS loaders start Linux.
    pub bios: bool,
}

impl Default for Program {
    fn default() -> Program {
        Program { signature: Signature::Absent, platform: None, bios: false }
    }
}

/// One file of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProfileFile {
    Kernel,
    Initrd(usize),
    EfiProgram,
    Iso,
}

impl What {
    /// Every file with its blob; the first is the one that starts the machine.
    pub fn files(&self) -> Vec<(ProfileFile, BlobRef)> {
        match self {
            What::Kernel { kernel, initrds, .. } => {
                let initrds =
                    initrds.iter().enumerate().map(|(number, blob)| (ProfileFile::Initrd(number), *blob));
                std::iter::once((ProfileFile::Kernel, *kernel)).chain(initrds).collect()
            }
            What::EfiProgram { program } => vec![(ProfileFile::EfiProgram, *program)],
            What::Iso { image } => vec![(ProfileFile::Iso, *image)],
        }
    }

    /// The file without which nothing starts.
    pub fn main(&self) -> (ProfileFile, BlobRef) {
        match self {
            What::Kernel { kernel, .. } => (ProfileFile::Kernel, *kernel),
            What::EfiProgram { program } => (ProfileFile::EfiProgram, *program),
            What::Iso { image } => (ProfileFile::Iso, *image),
        }
    }

    pub fn kind(&self) -> ProfileKind {
        match self {
            What::Kernel { .. } => ProfileKind::Kernel,
            What::EfiProgram { .. } => ProfileKind::EfiProgram,
            What::Iso { .. } => ProfileKind::Iso,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProfileKind {
    Kernel,
    EfiProgram,
    Iso,
}

impl fmt::Display for ProfileKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            ProfileKind::Kernel => "kernel",
            ProfileKind::EfiProgram => "EFI program",
            ProfileKind::Iso => "ISO image",
        })
    }
}

/// The profile a node is to boot, as far as the boot decision has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedProfile {
    pub name: ProfileName,
    pub rule: RuleNumber,
    pub one_shot: bool,
    /// Only iPXE can start it.
    pub wants_ipxe: bool,
}

impl BootProfile {
    pub fn assigned_by(&self, rule: RuleNumber) -> AssignedProfile {
        let wants_ipxe = self.what.kind() == ProfileKind::Iso;
        AssignedProfile { name: self.name.clone(), rule, one_shot: self.one_shot, wants_ipxe }
    }

    /// Whether it can be the installer of a task: a kernel with an argument that has it ask us for its answers.
    pub fn is_installer(&self) -> bool {
        match &self.what {
            What::Kernel { arguments, .. } => arguments.iter().any(ProfileArgument::names_answers),
            What::EfiProgram { .. } | What::Iso { .. } => false,
        }
    }

    /// Bounds that the types do not hold by themselves.
    pub fn check(&self) -> Result<(), String> {
        if let What::Kernel { initrds, arguments, .. } = &self.what {
            if initrds.len() > INITRDS_MAX {
                return Err(format!("{} initrds are too many: {INITRDS_MAX} at most", initrds.len()));
            }
            if arguments.len() > ARGUMENTS_MAX {
                return Err(format!("{} arguments are too many: {ARGUMENTS_MAX} at most", arguments.len()));
            }
        }
        let description = self.description.as_deref().unwrap_or_default();
        if description.chars().count() > DESCRIPTION_CHARS_MAX || description.contains(char::is_control) {
            return Err(format!("a description is one line of at most {DESCRIPTION_CHARS_MAX} characters"));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod testing;
