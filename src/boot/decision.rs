//! The boot decision: what a client gets, and the reason when it gets nothing.
//!
//! One pure function, so that DHCP, TFTP, HTTP, `explain` and the tests can never disagree about it.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::boot::client::{ClientClass, Firmware};
use crate::boot::loader::{LoaderName, LoaderTable};
use crate::boot::namespace;
use crate::boot::profile::{AssignedProfile, ProfileName};
use crate::boot::quirks::Quirks;
use crate::net::MacAddr;
use crate::node::NodeId;

/// Loader fetches without a script fetch in between that make a boot loop. One is a boot, two is a retry.
pub const FRUITLESS_LOADERS_MAX: u32 = 3;

/// Bytes of the BOOTP `file` field, less its NUL (RFC 2131 §2).
pub const BOOT_FILE_LEN_MAX: usize = 127;

/// What we know of the machine behind a MAC when it asks. Built by the node registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No record of this MAC.
    Stranger,
    Known(KnownNode),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownNode {
    pub id: NodeId,
    /// Operators registered it, or policy enrolls on sight.
    pub approved: bool,
    /// Operators registered or approved it, or it called home: no mere MAC that somebody made up.
    pub proven: bool,
    pub next_boot: NextBoot,
    /// A task on its disks is open: until it is done, no profile comes between.
    pub task_open: bool,
    /// The boot profile of the installer that does that task, if one does.
    pub installer: Option<ProfileName>,
    /// What the first rule that matches and that its firmware can carry has it boot.
    pub profile: Option<AssignedProfile>,
    /// The address the operator fixed for this port, if any.
    pub reserved: Option<Ipv4Addr>,
    /// Times in the last ten minutes that this port fetched a loader with no script fetched since.
    pub fruitless_loaders: u32,
    /// As they are obeyed, with what a profile stands for.
    pub quirks: Quirks,
}

/// What the operator, or an open task on the node's disks, wants the next netboot to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NextBoot {
    /// Deploy kernel and ramdisk: the agent takes inventory and waits for orders.
    #[default]
    Ramdisk,
    /// Hand over to the local disk.
    LocalDisk,
}

/// `dhcp.unknown`: what happens to a MAC nobody registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownPolicy {
    /// Boots and enrolls on sight.
    #[default]
    Enroll,
    /// Gets an address and a screen that waits until an operator approves.
    Approve,
    /// Gets no answer at all.
    Ignore,
}

/// What a client is told to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootPlan {
    /// Fetch this boot loader: by TFTP, or by URL for HTTP Boot firmware.
    Loader { firmware: Firmware, loader: LoaderName },
    /// iPXE: fetch your script.
    Script,
    /// An address, and nothing to boot.
    AddressOnly(NothingToBoot),
    /// No answer: not even an address.
    Refuse(RefusedBoot),
}

/// Why a client gets an address but no boot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NothingToBoot {
    /// It did not ask: an operating system or the ramdisk.
    NotABootClient,
    /// The node is to boot from its own disk.
    LocalDisk,
    /// Architecture code without a loader.
    UnknownFirmware,
    /// The loader for this firmware, or one it fetches next, is not installed; or the table has none for it.
    NoLoader,
    /// It fetched the same loader three times without ever asking for a script.
    BootLoop,
}

/// Why a client gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusedBoot {
    /// `dhcp.unknown = "ignore"` and nobody registered this MAC.
    UnknownMac,
}

/// Where a node's next boot is to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course<'a> {
    /// Of an open task.
    Installer(&'a ProfileName),
    Ramdisk,
    LocalDisk,
    Profile(&'a AssignedProfile),
}

/// What outranks what: an open task on its disks, a one-shot profile, the local disk, a profile that is booted every time, the ramdisk.
pub fn course(node: &KnownNode) -> Course<'_> {
    if let Some(installer) = &node.installer {
        return Course::Installer(installer);
    }
    let profile = node.profile.as_ref().filter(|_| !node.task_open);
    match (profile, node.next_boot) {
        (Some(profile), _) if profile.one_shot => Course::Profile(profile),
        (_, NextBoot::LocalDisk) => Course::LocalDisk,
        (Some(profile), NextBoot::Ramdisk) => Course::Profile(profile),
        (None, NextBoot::Ramdisk) => Course::Ramdisk,
    }
}

/// What an iPXE script or GRUB configuration is to do. Decided when the text is fetched, not when DHCP answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ScriptPlan {
    /// Load the deploy kernel and ramdisk.
    Ramdisk,
    /// Wait and ask again: an operator has to approve this node.
    AwaitApproval,
    /// Leave the loader so that the firmware goes on to the local disk.
    LocalDisk,
    /// Load what the boot profile is made of.
    Profile,
    /// Say why the boot profile cannot be booted by this node, wait and ask again.
    ProfileRefused,
    /// Load the kernel of the installer that an open task is done by, this once.
    Installer,
}

/// Decides what DHCP tells a client to boot.
pub fn decide(
    class: ClientClass,
    standing: &Standing,
    unknown: UnknownPolicy,
    loaders: &LoaderTable,
) -> BootPlan {
    let (course, fruitless_loaders) = match (standing, unknown) {
        (Standing::Stranger, UnknownPolicy::Ignore) => return BootPlan::Refuse(RefusedBoot::UnknownMac),
        // A stranger gets a loader under either policy; the script it fetches boots it or makes it wait.
        (Standing::Stranger, UnknownPolicy::Enroll | UnknownPolicy::Approve) => (Course::Ramdisk, 0),
        (Standing::Known(node), _) => (course(node), node.fruitless_loaders),
    };
    match class {
        ClientClass::OperatingSystem | ClientClass::Ramdisk => {
            BootPlan::AddressOnly(NothingToBoot::NotABootClient)
        }
        ClientClass::UnknownFirmware { .. } => BootPlan::AddressOnly(NothingToBoot::UnknownFirmware),
        ClientClass::Firmware { firmware } => {
            let usual = loaders.for_firmware(firmware);
            let loader = match course {
                // UEFI without an answer to boot from tries every other way first, minutes long; GRUB finds the disk in seconds,
                // and where only iPXE can be started, that starts GRUB.
                Course::LocalDisk if usual.is_none() || firmware.platform() == Firmware::Bios => {
                    return BootPlan::AddressOnly(NothingToBoot::LocalDisk);
                }
                Course::Profile(profile) if profile.wants_ipxe && fruitless_loaders == 0 => {
                    // A machine that refuses it (Secure Boot, of which nobody knew) asks again, and gets the usual one.
                    loaders.full_ipxe(firmware).or(usual)
                }
                Course::Profile(_) | Course::Installer(_) | Course::Ramdisk | Course::LocalDisk => usual,
            };
            loader_plan(firmware, loader.cloned(), fruitless_loaders)
        }
        // iPXE gets a script even for the local disk: leaving it cleanly beats its "nothing to boot" pause.
        ClientClass::Ipxe { can_boot: true, .. } => BootPlan::Script,
        ClientClass::Ipxe { firmware, can_boot: false } => {
            loader_plan(firmware, loaders.full_ipxe(firmware).cloned(), fruitless_loaders)
        }
    }
}

fn loader_plan(firmware: Firmware, loader: Option<LoaderName>, fruitless_loaders: u32) -> BootPlan {
    match loader {
        None => BootPlan::AddressOnly(NothingToBoot::NoLoader),
        Some(_) if fruitless_loaders >= FRUITLESS_LOADERS_MAX => {
            BootPlan::AddressOnly(NothingToBoot::BootLoop)
        }
        Some(loader) => BootPlan::Loader { firmware, loader },
    }
}

/// Decides what the script or GRUB configuration does that a node has come to fetch.
pub fn decide_script(node: &KnownNode) -> ScriptPlan {
    match (node.approved, course(node)) {
        (false, _) => ScriptPlan::AwaitApproval,
        (true, Course::Ramdisk) => ScriptPlan::Ramdisk,
        (true, Course::LocalDisk) => ScriptPlan::LocalDisk,
        (true, Course::Profile(_)) => ScriptPlan::Profile,
        (true, Course::Installer(_)) => ScriptPlan::Installer,
    }
}

/// What an OFFER or ACK says about booting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFile {
    /// TFTP name or URL, at most [`BOOT_FILE_LEN_MAX`] bytes.
    pub file: String,
    pub vendor_class: VendorClass,
}

/// Option 60 of the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VendorClass {
    Pxe,
    Http,
}

/// The boot file a plan puts into DHCP replies.
pub fn boot_file(plan: &BootPlan, server: Ipv4Addr, mac: MacAddr) -> Option<BootFile> {
    let boot_file = match plan {
        BootPlan::Loader { firmware, loader } if firmware.is_http() => {
            BootFile { file: format!("http://{server}/{loader}"), vendor_class: VendorClass::Http }
        }
        BootPlan::Loader { loader, .. } => {
            BootFile { file: loader.0.clone(), vendor_class: VendorClass::Pxe }
        }
        BootPlan::Script => BootFile {
            file: format!("http://{server}/{}", namespace::ipxe_script_name(mac)),
            vendor_class: VendorClass::Pxe,
        },
        BootPlan::AddressOnly(_) | BootPlan::Refuse(_) => return None,
    };
    debug_assert!(boot_file.file.len() <= BOOT_FILE_LEN_MAX);
    Some(boot_file)
}

impl BootPlan {
    /// Why it names nothing to boot, if it does not.
    pub fn nothing(&self) -> Option<NothingToBoot> {
        match self {
            BootPlan::AddressOnly(reason) => Some(*reason),
            BootPlan::Loader { .. } | BootPlan::Script | BootPlan::Refuse(_) => None,
        }
    }
}

impl NothingToBoot {
    /// The word for logs, counters and timelines.
    pub fn as_str(self) -> &'static str {
        match self {
            NothingToBoot::NotABootClient => "not-a-boot-client",
            NothingToBoot::LocalDisk => "local-disk",
            NothingToBoot::UnknownFirmware => "unknown-firmware",
            NothingToBoot::NoLoader => "no-loader",
            NothingToBoot::BootLoop => "boot-loop",
        }
    }
}

impl RefusedBoot {
    pub fn as_str(self) -> &'static str {
        match self {
            RefusedBoot::UnknownMac => "unknown-mac",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 2);

    fn known(next_boot: NextBoot, approved: bool, fruitless_loaders: u32) -> KnownNode {
        KnownNode {
            id: NodeId(uuid::Uuid::nil()),
            approved,
            proven: approved,
            next_boot,
            task_open: false,
            installer: None,
            profile: None,
            reserved: None,
            fruitless_loaders,
            quirks: Quirks::default(),
        }
    }

    fn profile(one_shot: bool, wants_ipxe: bool) -> AssignedProfile {
        let name = "live".parse().unwrap();
        AssignedProfile { name, rule: crate::boot::profile::rules::RuleNumber(1), one_shot, wants_ipxe }
    }

    fn plan(class: ClientClass, standing: &Standing) -> BootPlan {
        decide(class, standing, UnknownPolicy::Enroll, &LoaderTable::built_in())
    }

    fn firmware(firmware: Firmware) -> ClientClass {
        ClientClass::Firmware { firmware }
    }

    #[test]
    fn each_firmware_gets_its_loader_by_name_or_url() {
        let table = [
            (Firmware::Bios, "undionly.kpxe", VendorClass::Pxe),
            (Firmware::UefiX64, "uefi-x64/shimx64.efi", VendorClass::Pxe),
            (Firmware::UefiX64Http, "http://192.168.2.2/ipxe.efi", VendorClass::Http),
        ];
        for (kind, file, vendor_class) in table {
            let plan = plan(firmware(kind), &Standing::Stranger);
            assert_eq!(boot_file(&plan, SERVER, MAC), Some(BootFile { file: file.into(), vendor_class }));
        }
    }

    #[test]
    fn ipxe_goes_straight_to_its_script() {
        let ipxe = ClientClass::Ipxe { firmware: Firmware::Bios, can_boot: true };
        let plan = plan(ipxe, &Standing::Stranger);
        let file = boot_file(&plan, SERVER, MAC).unwrap().file;
        assert_eq!(file, "http://192.168.2.2/boot/52-54-00-00-00-01/script.ipxe");
    }

    #[test]
    fn ipxe_that_cannot_boot_is_replaced_by_one_that_can() {
        let limited = ClientClass::Ipxe { firmware: Firmware::Bios, can_boot: false };
        let expected =
            BootPlan::Loader { firmware: Firmware::Bios, loader: LoaderName("undionly.kpxe".into()) };
        assert_eq!(plan(limited, &Standing::Stranger), expected);
    }

    #[test]
    fn a_third_fruitless_loader_ends_the_loop() {
        let class = firmware(Firmware::UefiX64);
        for (fruitless, looping) in [(0, false), (2, false), (3, true), (9, true)] {
            let plan = plan(class, &Standing::Known(known(NextBoot::Ramdisk, true, fruitless)));
            assert_eq!(plan == BootPlan::AddressOnly(NothingToBoot::BootLoop), looping, "{fruitless}");
        }
    }

    #[test]
    fn a_node_sent_to_its_disk_gets_no_loader() {
        let local = Standing::Known(known(NextBoot::LocalDisk, true, 0));
        assert_eq!(plan(firmware(Firmware::Bios), &local), BootPlan::AddressOnly(NothingToBoot::LocalDisk));
        let ipxe = ClientClass::Ipxe { firmware: Firmware::Bios, can_boot: true };
        assert_eq!(plan(ipxe, &local), BootPlan::Script);
        // UEFI is brought there, by HTTP Boot as well.
        for uefi in [Firmware::UefiX64, Firmware::UefiX64Http] {
            let plan = plan(firmware(uefi), &local);
            assert!(matches!(plan, BootPlan::Loader { .. }), "{plan:?}");
        }
        let without = LoaderTable::built_in().with_installed(|_| false);
        let plan = decide(firmware(Firmware::UefiX64Http), &local, UnknownPolicy::Enroll, &without);
        assert_eq!(plan, BootPlan::AddressOnly(NothingToBoot::LocalDisk));
    }

    /// What outranks what, as a table.
    #[test]
    fn a_one_shot_outranks_the_disk_and_the_disk_a_profile() {
        let (none, live, once) = (None, Some(profile(false, false)), Some(profile(true, false)));
        let (ramdisk, disk) = (NextBoot::Ramdisk, NextBoot::LocalDisk);
        for (profile, next_boot, script, dhcp_nothing) in [
            (&none, ramdisk, ScriptPlan::Ramdisk, None),
            (&none, disk, ScriptPlan::LocalDisk, Some(NothingToBoot::LocalDisk)),
            (&live, ramdisk, ScriptPlan::Profile, None),
            (&live, disk, ScriptPlan::LocalDisk, Some(NothingToBoot::LocalDisk)),
            (&once, ramdisk, ScriptPlan::Profile, None),
            (&once, disk, ScriptPlan::Profile, None),
        ] {
            let node = KnownNode { profile: profile.clone(), ..known(next_boot, true, 0) };
            assert_eq!(decide_script(&node), script, "{profile:?} {next_boot:?}");
            let unapproved = KnownNode { approved: false, ..node.clone() };
            assert_eq!(decide_script(&unapproved), ScriptPlan::AwaitApproval);
            let busy = KnownNode { task_open: true, ..node.clone() };
            assert_eq!(decide_script(&busy), decide_script(&known(next_boot, true, 0)), "a task outranks it");
            let dhcp = plan(firmware(Firmware::Bios), &Standing::Known(node));
            assert_eq!(dhcp.nothing(), dhcp_nothing, "{profile:?} {next_boot:?}");
        }
    }

    #[test]
    fn an_open_installers_netboot_outranks_everything() {
        for next_boot in [NextBoot::Ramdisk, NextBoot::LocalDisk] {
            for profile in [None, Some(profile(true, true))] {
                let installer = Some("debian-installer".parse().unwrap());
                let node = KnownNode { task_open: true, installer, profile, ..known(next_boot, true, 0) };
                assert_eq!(decide_script(&node), ScriptPlan::Installer);
                let unapproved = KnownNode { approved: false, ..node.clone() };
                assert_eq!(decide_script(&unapproved), ScriptPlan::AwaitApproval);
                let dhcp = plan(firmware(Firmware::Bios), &Standing::Known(node));
                assert!(matches!(dhcp, BootPlan::Loader { loader, .. } if loader.0 == "undionly.kpxe"));
            }
        }
    }

    #[test]
    fn what_only_ipxe_can_start_brings_ipxe_unless_the_machine_refused_it() {
        let loader_for = |firmware, wants_ipxe, fruitless| {
            let node = known(NextBoot::Ramdisk, true, fruitless);
            let node = KnownNode { profile: Some(profile(false, wants_ipxe)), ..node };
            match plan(ClientClass::Firmware { firmware }, &Standing::Known(node)) {
                BootPlan::Loader { loader, .. } => loader.0,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(loader_for(Firmware::UefiX64, true, 0), "ipxe.efi");
        assert_eq!(loader_for(Firmware::UefiX64, true, 1), "uefi-x64/shimx64.efi");
        assert_eq!(loader_for(Firmware::UefiX64, false, 0), "uefi-x64/shimx64.efi");
        assert_eq!(loader_for(Firmware::Bios, true, 0), "undionly.kpxe");
    }

    #[test]
    fn strangers_are_refused_only_where_policy_says_so() {
        let loaders = LoaderTable::built_in();
        for class in [firmware(Firmware::Bios), ClientClass::OperatingSystem] {
            let plan = decide(class, &Standing::Stranger, UnknownPolicy::Ignore, &loaders);
            assert_eq!(plan, BootPlan::Refuse(RefusedBoot::UnknownMac));
            let node = Standing::Known(known(NextBoot::Ramdisk, true, 0));
            assert!(!matches!(decide(class, &node, UnknownPolicy::Ignore, &loaders), BootPlan::Refuse(_)));
        }
    }

    #[test]
    fn a_firmware_without_loader_still_gets_an_address() {
        let loaders = LoaderTable::built_in().with_installed(|name| name.0 != "ipxe-riscv64.efi");
        let class = firmware(Firmware::UefiRiscv64);
        let plan = decide(class, &Standing::Stranger, UnknownPolicy::Enroll, &loaders);
        assert_eq!(plan, BootPlan::AddressOnly(NothingToBoot::NoLoader));
    }

    #[test]
    fn an_unapproved_node_waits_whatever_else_is_set() {
        assert_eq!(decide_script(&known(NextBoot::LocalDisk, false, 0)), ScriptPlan::AwaitApproval);
        assert_eq!(decide_script(&known(NextBoot::Ramdisk, true, 0)), ScriptPlan::Ramdisk);
        assert_eq!(decide_script(&known(NextBoot::LocalDisk, true, 0)), ScriptPlan::LocalDisk);
    }
}
