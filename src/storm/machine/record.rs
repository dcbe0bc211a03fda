//! What is known of a machine's boot: stages, times, troubles.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    FirmwareDhcp,
    Loader,
    IpxeDhcp,
    Script,
    Kernel,
    Ramdisk,
    AgentDhcp,
    Enroll,
}

impl Stage {
    pub const ALL: [Stage; 8] = [
        Stage::FirmwareDhcp,
        Stage::Loader,
        Stage::IpxeDhcp,
        Stage::Script,
        Stage::Kernel,
        Stage::Ramdisk,
        Stage::AgentDhcp,
        Stage::Enroll,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Stage::FirmwareDhcp => "firmware-dhcp",
            Stage::Loader => "loader",
            Stage::IpxeDhcp => "ipxe-dhcp",
            Stage::Script => "script",
            Stage::Kernel => "kernel",
            Stage::Ramdisk => "ramdisk",
            Stage::AgentDhcp => "agent-dhcp",
            Stage::Enroll => "enroll",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// How far machines are to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    Address,
    Loader,
    Script,
    Ramdisk,
    Enroll,
}

impl Goal {
    pub fn last_stage(self) -> Stage {
        match self {
            Goal::Address => Stage::FirmwareDhcp,
            Goal::Loader => Stage::Loader,
            Goal::Script => Stage::Script,
            Goal::Ramdisk => Stage::Ramdisk,
            Goal::Enroll => Stage::Enroll,
        }
    }
}

/// Why a step failed. The same words in the report, in JSON and in tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Trouble {
    #[error("no DHCPOFFER")]
    NoOffer,
    #[error("no DHCPACK")]
    NoAck,
    #[error("DHCPNAK")]
    Nak,
    #[error("DHCPACK for another address than was offered")]
    AddressChanged,
    #[error("no boot file in the DHCP answer")]
    NoBootFile,
    #[error("file not found")]
    FileMissing,
    #[error("TFTP server silent")]
    TftpSilent,
    #[error("TFTP transfer stalled")]
    TftpStalled,
    #[error("TFTP error {0}")]
    TftpError(u16),
    #[error("file shorter or longer than announced")]
    WrongLength,
    #[error("no TCP connection")]
    NoConnection,
    #[error("HTTP connection broke off")]
    HttpBroken,
    #[error("HTTP transfer stalled")]
    HttpStalled,
    #[error("HTTP answer firmware cannot read")]
    HttpNonsense,
    #[error("HTTP status {0}")]
    HttpStatus(u16),
    #[error("a script that boots nothing")]
    BadScript,
    #[error("sent to the local disk")]
    LocalDisk,
    #[error("agent refused")]
    AgentRefused,
    #[error("the storm was over first")]
    OutOfTime,
    #[error("the storm was interrupted first")]
    Interrupted,
    #[error("no socket left on the storm's own side")]
    NoSocket,
}

impl Trouble {
    /// A transfer that was begun and not brought to its end.
    pub fn is_given_up_transfer(self) -> bool {
        match self {
            Trouble::TftpSilent
            | Trouble::TftpStalled
            | Trouble::TftpError(_)
            | Trouble::WrongLength
            | Trouble::NoConnection
            | Trouble::HttpBroken
            | Trouble::HttpStalled
            | Trouble::HttpNonsense
            | Trouble::HttpStatus(_)
            | Trouble::FileMissing => true,
            Trouble::NoOffer
            | Trouble::NoAck
            | Trouble::Nak
            | Trouble::AddressChanged
            | Trouble::NoBootFile
            | Trouble::BadScript
            | Trouble::LocalDisk
            | Trouble::AgentRefused
            | Trouble::OutOfTime
            | Trouble::Interrupted
            | Trouble::NoSocket => false,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Record {
    pub powered_on: Option<Instant>,
    /// When it was done or gave up.
    pub ended: Option<Instant>,
    /// By [`Stage`].
    pub took: [Option<Duration>; Stage::ALL.len()],
    /// When each stage was done, by [`Stage`].
    pub left_at: [Option<Instant>; Stage::ALL.len()],
    pub address: Option<Ipv4Addr>,
    /// From the first DISCOVER (or REQUEST) of a conversation to its answer.
    pub replies: Vec<Duration>,
    pub dhcp_resends: u32,
    pub tftp_resends: u32,
    /// 503 answers that said when to come back.
    pub told_to_wait: u32,
    pub bytes: u64,
    /// Steps that failed, whether the boot survived them or not.
    pub setbacks: Vec<(Stage, Trouble)>,
    pub lost: Option<(Stage, Trouble)>,
}

impl Record {
    pub fn total(&self) -> Option<Duration> {
        Some(self.ended?.duration_since(self.powered_on?))
    }

    pub fn is_complete(&self) -> bool {
        self.ended.is_some() && self.lost.is_none()
    }
}
