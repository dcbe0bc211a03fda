//! Every cause a verdict can name, and its word: the same in API, page, command line and tests.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident => $word:literal,)*) => {
        /// Why a boot is where it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Cause {
            $($(#[$doc])* $name,)*
        }

        impl Cause {
            pub const ALL: &'static [Cause] = &[$(Cause::$name,)*];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Cause::$name => $word,)*
                }
            }
        }
    };
}

causes! {
    // --- nothing is wrong ---
    /// The agent's inventory is in.
    Enrolled => "enrolled",
    /// Sent to its own disk, and gone there.
    LocalDisk => "local-disk",
    /// Its boot profile was handed out; what that does is not heard of.
    ProfileHandedOut => "profile-handed-out",
    /// The installer of its task was handed out; that task tells what comes of it.
    InstallerHandedOut => "installer-handed-out",
    /// The next step is not due yet.
    UnderWay => "under-way",
    /// An operator has to approve the node.
    AwaitsApproval => "awaits-approval",

    // --- before the first answer ---
    /// Registered or asked about, and nothing ever came from this MAC.
    NeverHeard => "never-heard",
    /// Nobody registered the MAC, and policy is to ignore such.
    UnknownMac => "unknown-mac",
    /// The bridge is down, gone, or without our address.
    BridgeDown => "bridge-down",
    /// The bridge port it is behind does not forward: spanning tree, blocked, no carrier.
    PortNotForwarding => "port-not-forwarding",
    /// It asks for an address only: an operating system, no boot ROM.
    NoNetboot => "no-netboot",

    // --- DHCP ---
    /// No address was free.
    PoolExhausted => "pool-exhausted",
    /// Strangers held as many offers as they may.
    StrangersLimit => "strangers-limit",
    /// It requested the address another DHCP server offered.
    OtherServerWon => "other-server-won",
    /// We are a proxy, and the server that is to give the addresses gave it none.
    NoAddressElsewhere => "no-address-elsewhere",
    /// We only observe, and answer nobody.
    Observing => "observing",
    /// Another DHCP server answers on the bridge, and until it is quiet we answer nobody.
    HeldForRival => "held-for-rival",
    /// Our offer was not taken, and nothing shows whose was.
    OfferNotRequested => "offer-not-requested",
    /// It declined the address: another station has it.
    AddressInUse => "address-in-use",
    /// It declines whatever it gets, and gets no more.
    TooManyDeclines => "too-many-declines",
    /// It asked for an address it may not have, and was told so.
    AddressRefused => "address-refused",
    /// The appliance could not store the lease, so it gave none.
    StoreFailed => "store-failed",
    /// DHCP was not answered for another reason; the evidence has its word.
    Unanswered => "unanswered",

    // --- loader ---
    /// Its firmware is of a kind nobody knows.
    UnknownFirmware => "unknown-firmware",
    /// The loader for its firmware is not installed.
    LoaderNotInstalled => "loader-not-installed",
    /// It asked for a loader under a name nobody serves.
    LoaderNotFound => "loader-not-found",
    /// Address and file name were given, and no file was asked for.
    LoaderNotFetched => "loader-not-fetched",
    /// The transfer broke off: packets were lost.
    TransferLost => "transfer-lost",
    /// The transfer broke off at once: full-size blocks do not get through.
    TransferMtu => "transfer-mtu",
    /// The machine ended the transfer itself.
    TransferAborted => "transfer-aborted",
    /// The loader is for another processor or firmware than the machine has.
    WrongArchitecture => "wrong-architecture",
    /// Secure Boot refused a loader that is not signed, or was changed since.
    SecureBootRefused => "secure-boot-refused",
    /// The loader was loaded and nothing came of it; no evidence says why.
    LoaderSilent => "loader-silent",
    /// The loader was fetched over and over with no script in between.
    BootLoop => "boot-loop",

    // --- script, kernel, ramdisk ---
    /// The loader asked for a script that is not there or not its own.
    ScriptNotFound => "script-not-found",
    /// The loader runs, and asked for no script.
    ScriptNotFetched => "script-not-fetched",
    /// Its boot profile wants a value that the node does not have.
    ProfileRefused => "profile-refused",
    /// The script names a kernel that is not there.
    KernelMissing => "kernel-missing",
    /// The script was fetched, and no kernel.
    KernelNotFetched => "kernel-not-fetched",
    /// The script names a ramdisk that is not there.
    RamdiskMissing => "ramdisk-missing",
    /// The kernel was fetched, and no ramdisk.
    RamdiskNotFetched => "ramdisk-not-fetched",
    /// The download stopped moving, and was ended by us.
    DownloadStalled => "download-stalled",
    /// The machine closed the connection in the middle of the download.
    DownloadCut => "download-cut",

    // --- agent ---
    /// The ramdisk runs, if it does, without network: nothing was heard from it.
    AgentNoDriver => "agent-no-driver",
    /// The ramdisk asked for an address and has none.
    AgentNoAddress => "agent-no-address",
    /// The ramdisk has an address, and its agent does not reach us.
    AgentNoRoute => "agent-no-route",
    /// The boot token had been used before.
    TokenReplayed => "token-replayed",
    /// The boot token was too old.
    TokenExpired => "token-expired",
    /// The agent's token or session was refused for another reason.
    AgentRefused => "agent-refused",
    /// The agent says that a step failed.
    AgentFailed => "agent-failed",
    /// The agent called, and its inventory never came.
    InventoryMissing => "inventory-missing",

    // --- the appliance itself ---
    /// The appliance restarted in the middle of the boot, and nothing came of it since.
    ApplianceRestarted => "appliance-restarted",
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Cause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        let known = Cause::ALL.iter().copied().find(|cause| cause.as_str() == word);
        known.ok_or_else(|| serde::de::Error::custom("no such cause"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_a_word_of_its_own_and_reads_back() {
        let mut words: Vec<&str> = Cause::ALL.iter().map(|cause| cause.as_str()).collect();
        for cause in Cause::ALL {
            let word = serde_json::to_string(cause).unwrap();
            assert_eq!(serde_json::from_str::<Cause>(&word).unwrap(), *cause);
            assert!(cause.as_str().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{cause}");
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Cause::ALL.len());
    }
}
