//! What to do about each cause, the most likely first, with the command where there is one.

use std::net::Ipv4Addr;

use crate::boot::client::ClientClass;
use crate::bridge_log::event::BridgeFault;
use crate::net::MacAddr;
use crate::node::timeline::{Happening, Stage};
use crate::node::verdict::chain::Chain;
use crate::node::verdict::{Case, Cause, Surroundings, silence};

pub(super) struct Context<'a> {
    pub(super) case: &'a Case<'a>,
    pub(super) chain: &'a Chain<'a>,
    pub(super) around: &'a Surroundings,
    pub(super) mac: Option<MacAddr>,
}

impl Context<'_> {
    /// How an operator names it: by name, else by MAC.
    fn node(&self) -> String {
        let name = self.case.node.and_then(|node| node.name.as_ref()).map(ToString::to_string);
        name.or_else(|| self.mac.map(|mac| mac.to_string())).unwrap_or_else(|| "NODE".to_owned())
    }

    fn mac(&self) -> String {
        self.mac.map_or_else(|| "MAC".to_owned(), |mac| mac.to_string())
    }

    fn loader(&self) -> String {
        match self.chain.file_of(Stage::Loader).map(|event| &event.happening) {
            Some(Happening::File { name, .. }) => name.clone(),
            Some(_) | None => "the loader".to_owned(),
        }
    }

    fn firmware(&self) -> String {
        self.chain.firmware().map_or_else(|| "its firmware".to_owned(), |firmware| firmware.to_string())
    }

    fn other_server(&self) -> Option<Ipv4Addr> {
        self.chain.events.iter().rev().find_map(|event| {
            let Happening::Dhcp { other_server, .. } = &event.happening else { return None };
            *other_server
        })
    }

    fn boot_again(&self) -> String {
        "boot the machine again".to_owned()
    }

    fn rebuild(&self) -> String {
        format!(
            "`farrier image build deploy --profile {}`, then `systemctl reload farrier`",
            self.around.profile
        )
    }
}

/// Empty only where nothing is to be done.
pub(super) fn of(cause: Cause, context: &Context<'_>) -> Vec<String> {
    let list = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let bridge = &context.around.bridge.name;
    match cause {
        Cause::Enrolled | Cause::UnderWay | Cause::ProfileHandedOut | Cause::InstallerHandedOut => Vec::new(),
        Cause::ProfileRefused => vec![
            format!("give the node the value: `farrier node label {} key=value`; `farrier profile show NAME` lists what is wanted", context.node()),
            "or take the profile from it: `farrier profile list` shows the rules, `farrier profile unassign RULE` ends one".to_owned(),
        ],
        Cause::LocalDisk => vec![format!(
            "nothing, if that was meant; `farrier node order {} reboot` sends it to the ramdisk on its next netboot",
            context.node()
        )],
        Cause::AwaitsApproval => vec![format!("`farrier node approve {}`", context.mac())],
        Cause::NeverHeard => never_heard(context),
        Cause::UnknownMac => vec![
            format!("register it: `farrier node add {}`; it is answered as soon as it asks again", context.mac()),
            "or let everybody in, or in after approval: dhcp.unknown = \"enroll\" or \"approve\", then `systemctl reload farrier`".to_owned(),
        ],
        Cause::BridgeDown => bridge_down(context),
        Cause::PortNotForwarding => vec![
            format!("`bridge link show` tells the state of every port of {bridge}"),
            format!("turn spanning tree off, which boot ROMs do not wait for: `ip link set {bridge} type bridge stp_state 0`"),
            "or set the port forwarding: `bridge link set dev PORT state 3`".to_owned(),
        ],
        Cause::NoNetboot => list(&[
            "put network boot first in its firmware's boot order, and start it again",
            "if it does: its firmware has network boot turned off, or the wrong card chosen",
        ]),
        Cause::PoolExhausted => list(&[
            "enlarge dhcp.pool, then `systemctl reload farrier`",
            "`farrier lease list` shows who has the addresses; a shorter dhcp.lease gives them back earlier",
        ]),
        Cause::StrangersLimit => vec![
            format!("register the machines that matter, they are not counted: `farrier node add {}`", context.mac()),
            "find out who asks under so many MACs: `farrier lease list`".to_owned(),
        ],
        Cause::OtherServerWon => other_server(context),
        Cause::NoAddressElsewhere => vec![
            format!("see whether the other DHCP server runs and has addresses left: `tcpdump -eni {bridge} port 67 or port 68` shows its offers"),
            "if there is to be no other: dhcp.mode = \"server\", then restart farrier".to_owned(),
        ],
        Cause::Observing => list(&["let it answer: dhcp.mode = \"server\", or \"proxy\" beside another DHCP server; then restart farrier"]),
        Cause::HeldForRival => list(&[
            "`farrier status` names the other server and what mends it; service goes on by itself once it is quiet",
            "to serve beside it all the same: dhcp.on_rival = \"warn\", then `systemctl reload farrier`",
        ]),
        Cause::OfferNotRequested => list(&[
            "capture what it hears: `tcpdump -eni BRIDGE port 67 or port 68`; another server may be quicker, or our answers do not reach it",
            "look for a firewall between the bridge and its port: `nft list ruleset`",
        ]),
        Cause::AddressInUse => vec![
            format!("find who has the address: `ip neigh show dev {bridge}`; give that station another, or take its address out of dhcp.pool"),
            "the address is withheld meanwhile, and the machine gets another one when it asks again".to_owned(),
        ],
        Cause::TooManyDeclines => vec![
            "find the station that answers for every address (proxy ARP, a loop): `tcpdump -eni BRIDGE arp`".to_owned(),
            context.boot_again() + " after ten minutes: it is given addresses again",
        ],
        Cause::AddressRefused => vec![
            context.boot_again() + ": it will ask anew and get an address",
            "if it was served by another network before: make it forget its lease".to_owned(),
        ],
        Cause::StoreFailed => list(&["`farrier status` shows the error of the store; free space or mend the disk, leases are given again by themselves"]),
        Cause::Unanswered => list(&["`farrier status` counts every silence by reason; the configuration manual explains the word in the evidence"]),
        Cause::UnknownFirmware => list(&["choose another boot mode in its firmware (UEFI x64 or BIOS); no loader exists here for that architecture"]),
        Cause::LoaderNotInstalled => not_installed(context),
        Cause::LoaderNotFound => list(&[
            "if the name is from its own setup (a boot file set in firmware, or by another DHCP server): remove it there",
            "else the loader is not here: `farrier image build loaders`, then `systemctl reload farrier`",
        ]),
        Cause::LoaderNotFetched => vec![
            "see whether TFTP (UDP 69) or HTTP (TCP 80) is filtered on the way: `nft list ruleset`".to_owned(),
            format!("see whether it asks anybody else: `tcpdump -eni {bridge} host {}`", context.chain.address().map_or_else(|| "ADDRESS".to_owned(), |address| address.to_string())),
        ],
        Cause::TransferLost => list(&[
            "look for errors of cable, switch port and card: `ip -s link show`, `ethtool -S PORT`",
            "use HTTP Boot where the firmware has it: it stands loss better than TFTP",
        ]),
        Cause::TransferMtu => vec![
            format!("make the MTU of every port and switch on the way the bridge's own: `ip link show {bridge}`"),
            "a tunnel or VLAN in between takes some bytes of each frame: lower the bridge's MTU by that, TFTP blocks follow".to_owned(),
        ],
        Cause::TransferAborted => list(&["read the machine's screen or console: its ROM said why it gave up", "boot the machine again"]),
        Cause::WrongArchitecture => vec![
            format!("take `{}` out of [boot.loaders] in the configuration, or name a loader for it; then `systemctl reload farrier`", context.firmware()),
            "or switch the machine between UEFI and legacy BIOS boot, to what the loader is for".to_owned(),
        ],
        Cause::SecureBootRefused => secure_boot(context),
        Cause::LoaderSilent => vec![
            format!("read the machine's screen or console after it has loaded {}", context.loader()),
            "with Secure Boot on: its firmware may have revoked this shim; update shim-signed and `farrier image build loaders`".to_owned(),
            format!("try another loader for it: [boot.loaders] {} = …", context.firmware()),
        ],
        Cause::BootLoop => vec![
            "read the machine's screen or console: its loader starts and fails, or is not started at all".to_owned(),
            format!("try another loader: [boot.loaders] {} = …, then `systemctl reload farrier`", context.firmware()),
            format!("`farrier node approve {}` ends the pause at once; else it ends after ten minutes", context.node()),
        ],
        Cause::ScriptNotFound => list(&["boot the machine again: a script has the name of the machine's own MAC", "if it boots by two cards: disable network boot on one of them"]),
        Cause::ScriptNotFetched => vec![
            format!("see whether HTTP (TCP 80) to {} is filtered on the way: `nft list ruleset`", context.around.bridge.address),
            "read the machine's screen: the loader says what it waits for".to_owned(),
        ],
        Cause::KernelMissing | Cause::RamdiskMissing => vec![context.rebuild()],
        Cause::KernelNotFetched | Cause::RamdiskNotFetched => vec![
            "read the machine's screen or console: its loader says why it stopped (memory, network card driver)".to_owned(),
            context.boot_again(),
        ],
        Cause::DownloadStalled => list(&["look for errors of cable, switch port and card: `ip -s link show`", "boot the machine again; if it stops at the same byte, suspect its card or its loader's driver"]),
        Cause::DownloadCut => list(&["see whether the machine was reset, or lost its link: its console, `ip -s link show`", "boot the machine again"]),
        Cause::AgentNoDriver => vec![
            format!("the ramdisk may lack the driver of its network card: build one with it, {}", context.rebuild()),
            "read the machine's console: whether the kernel starts at all (console= in boot.kernel_arguments)".to_owned(),
        ],
        Cause::AgentNoAddress => list(&["the evidence has the reason of DHCP; `farrier lease list` shows the pool", "read the machine's console: the ramdisk tells of its network"]),
        Cause::AgentNoRoute => vec![
            format!("see whether HTTP (TCP 80) to {} is filtered: `nft list ruleset`", context.around.bridge.address),
            "if it has several cards: see that the one it booted from is the one with the address".to_owned(),
        ],
        Cause::TokenReplayed => vec![
            context.boot_again() + ": each boot gets a token of its own",
            "if nobody restarted the agent by hand: somebody else used its token; look who, in `farrier node show`".to_owned(),
        ],
        Cause::TokenExpired => vec![
            context.boot_again() + ": a token is good for half an hour from when its script was fetched",
            "if it took that long: the download or the machine is too slow; see the times above".to_owned(),
        ],
        Cause::AgentRefused => vec![context.boot_again() + ": it gets a new token", format!("`farrier node show {}` tells whether it is approved", context.node())],
        Cause::AgentFailed => vec![
            format!("`farrier node show {}` shows the step and what it said", context.node()),
            context.boot_again() + " once that is mended",
        ],
        Cause::InventoryMissing => vec!["read the machine's console: its agent runs and hangs in its inventory".to_owned(), context.boot_again()],
        Cause::ApplianceRestarted => vec![context.boot_again() + ": nothing is wrong with it"],
    }
}

fn never_heard(context: &Context<'_>) -> Vec<String> {
    let bridge = &context.around.bridge.name;
    let mut lines = vec![
        "switch the machine on, with network boot first in its boot order".to_owned(),
        format!("see whether its cable leads to {bridge}: `bridge link show`, `bridge fdb show br {bridge}`"),
        format!("compare the MAC with the one its firmware shows: {}", context.mac()),
    ];
    if context.case.node.is_none() && silence::ignores_strangers(context.around) {
        lines
            .push(format!("it will be ignored until it is registered: `farrier node add {}`", context.mac()));
    }
    lines
}

fn bridge_down(context: &Context<'_>) -> Vec<String> {
    let (name, address) = (&context.around.bridge.name, &context.around.bridge.address);
    let again = context.boot_again();
    match context.around.bridge.fault {
        None => vec![again, "`farrier event bridge` tells when it was out".to_owned()],
        Some(BridgeFault::Down) => vec![format!("`ip link set {name} up`"), again],
        Some(BridgeFault::Gone) => vec![
            format!(
                "`ip link add {name} type bridge && ip addr add {address} dev {name} && ip link set {name} up`, and attach its ports again"
            ),
            again,
        ],
        Some(BridgeFault::WithoutAddress) => vec![format!("`ip addr add {address} dev {name}`"), again],
    }
}

fn other_server(context: &Context<'_>) -> Vec<String> {
    let bridge = &context.around.bridge.name;
    let server = context.other_server();
    let at = server.and_then(|server| context.around.servers.get(&server));
    let which = match (server, at) {
        (Some(server), Some(mac)) => format!("{server} ({mac})"),
        (Some(server), None) => server.to_string(),
        (None, _) => "the other server".to_owned(),
    };
    vec![
        format!("stop the DHCP server at {which}, or take it off {bridge}: only one may answer there"),
        match at {
            Some(mac) => format!("find its port: `bridge fdb show br {bridge} | grep {mac}`"),
            None => {
                format!("find its MAC and port: `ip neigh show dev {bridge}`, `bridge fdb show br {bridge}`")
            }
        },
    ]
}

fn not_installed(context: &Context<'_>) -> Vec<String> {
    let class = context.chain.events.iter().rev().find_map(|event| {
        let Happening::Dhcp { class, .. } = &event.happening else { return None };
        class.wants_boot().then_some(*class)
    });
    let file = context.around.loaders.lacking(class.unwrap_or(ClientClass::OperatingSystem));
    let install = match file {
        Some(file) if file.packaged => {
            format!(
                "`apt install {}` or `farrier image build loaders`, then `systemctl reload farrier`",
                file.package
            )
        }
        Some(file) => format!(
            "no Debian package has {}: put it below the state directory's `loaders` as {}, then `systemctl reload farrier`",
            file.name,
            file.path.display()
        ),
        None => "`farrier image build loaders`, then `systemctl reload farrier`".to_owned(),
    };
    vec![install, format!("or name another loader: [boot.loaders] {} = …", context.firmware())]
}

fn secure_boot(context: &Context<'_>) -> Vec<String> {
    if context.chain.reached == Some(Stage::Kernel) {
        return vec!["find out who or what changed the deploy image's kernel".to_owned(), context.rebuild()];
    }
    let platform = context.chain.firmware().map(|firmware| firmware.platform());
    let signed: Vec<String> = context
        .around
        .loaders
        .files()
        .filter(|file| file.signed && file.second.is_some() && Some(file.platform) == platform)
        .map(|file| file.name.to_string())
        .collect();
    if let Some(file) = context.around.loaders.altered().find(|file| Some(file.platform) == platform) {
        return vec![format!(
            "somebody or something changed {} ({}): find out who, then install package {} again and `systemctl reload farrier`",
            file.name,
            file.path.display(),
            file.package
        )];
    }
    let mut lines = vec!["turn Secure Boot off in the machine's firmware".to_owned()];
    if let Some(name) = signed.first() {
        let platform = platform.map_or_else(|| context.firmware(), |platform| platform.to_string());
        lines.push(format!(
            "or give it the signed loader by PXE: [boot.loaders] {platform} = \"{name}\", then `systemctl reload farrier`"
        ));
    }
    lines
}
