//! Whether a machine would boot from here, found out before one tries.
//!
//! - `gather`: looks at the machine; [`facts`]: what it saw
//! - `judge`: facts → [`Finding`]s, without a look at anything
//! - `firewall`: a boot's packets and the rules in their way
//! - `rivals`: one DISCOVER and one router solicitation, to hear who else answers
//! - [`mend`]: runs the mends that concern nothing but the bridge and its ports
//!
//! Like the lab it is a user of the rest: nothing depends on it.

use serde::Serialize;

pub mod facts;
pub mod firewall;
pub mod gather;
pub mod judge;
pub mod mend;
pub mod rivals;

pub use judge::judge;
pub use mend::Mend;

/// How much a finding matters to a boot; later ones matter more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Ok,
    Warning,
    WouldNotBoot,
}

macro_rules! checks {
    ($($check:ident => $word:literal,)+) => {
        /// What is looked at, under words that stay.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Check {
            $($check,)+
        }

        impl Check {
            pub const ALL: &[Check] = &[$(Check::$check),+];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Check::$check => $word,)+
                }
            }
        }
    };
}

checks! {
    Bridge => "bridge",
    Address => "address",
    SpanningTree => "spanning-tree",
    BridgePorts => "bridge-ports",
    Checksums => "checksums",
    BridgeNetfilter => "bridge-netfilter",
    Firewall => "firewall",
    OtherDhcp => "other-dhcp",
    SharedNetwork => "shared-network",
    Nested => "nested",
    Sockets => "sockets",
    Capabilities => "capabilities",
    Neighbours => "neighbours",
    State => "state",
    Loaders => "loaders",
    Image => "image",
    Clock => "clock",
    Lab => "lab",
}

impl Serialize for Check {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One thing that was looked at, and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: Check,
    pub severity: Severity,
    /// The device, file or program it is about.
    pub subject: String,
    pub what: String,
    /// What it means to a boot; empty where all is well.
    pub why: String,
    pub mends: Vec<Mend>,
}

impl Finding {
    pub fn ok(check: Check, subject: impl ToString, what: impl Into<String>) -> Finding {
        let (subject, what) = (subject.to_string(), what.into());
        Finding { check, severity: Severity::Ok, subject, what, why: String::new(), mends: Vec::new() }
    }

    pub fn warning(check: Check, subject: impl ToString, what: impl Into<String>, why: &str) -> Finding {
        Finding { severity: Severity::Warning, why: why.to_owned(), ..Finding::ok(check, subject, what) }
    }

    pub fn would_not_boot(
        check: Check,
        subject: impl ToString,
        what: impl Into<String>,
        why: &str,
    ) -> Finding {
        Finding { severity: Severity::WouldNotBoot, ..Finding::warning(check, subject, what, why) }
    }

    pub fn mended_by(mut self, mends: impl IntoIterator<Item = Mend>) -> Finding {
        self.mends.extend(mends);
        self
    }
}

/// A machine would boot: nothing found says otherwise.
pub fn would_boot(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.severity < Severity::WouldNotBoot)
}
