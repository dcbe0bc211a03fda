//! `explain`: the whole dialogue a machine would have with the appliance, without a packet being sent.
//!
//! The same pure cores answer that answer the wire: a [`DhcpServer`] made from a copy of the leases, the boot decision,
//! the namespace and the script renderer. Nothing is stored and no address is taken; the token in the script is no token.
//!
//! - `dialogue`: what is told
//! - `machine`: what kinds of machine can be asked for, and the requests they send
//! - [`profiles`]: which boot profile it would have, and why not another
//! - `message`: a DHCP message option by option

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use data_encoding::HEXLOWER;

use crate::boot::decision::{self, KnownNode, NextBoot, NothingToBoot, ScriptPlan, Standing, UnknownPolicy};
use crate::boot::loader::{LoaderName, LoaderTable};
use crate::boot::namespace;
use crate::boot::profile::fit::Reader;
use crate::boot::quirks::Quirks;
use crate::boot::script::{KernelArgument, ScriptContext, render_grub, render_ipxe};
use crate::clock::Timestamp;
use crate::config::{Config, DhcpMode, Identity};
use crate::dhcp::lease::{Binding, BindingState, ClientKey, LeaseState, LeaseView};
use crate::dhcp::server::{
    Answer, Destination, DhcpServer, Directory, Received, Reply, ReplyKind, Service, Settings,
};
use crate::explain::profiles::{Assigned, ProfileKnowledge};
use crate::net::MacAddr;
use crate::node::NodeName;
use crate::node::timeline::Stage;

mod dialogue;
mod machine;
mod message;
pub mod profiles;

pub use dialogue::{Decision, Dialogue, Party, Step};
pub use machine::{Machine, ParseMachineError};
pub use message::OptionLine;

/// Stands where a token would: no token has this form, so nobody can use it.
const NO_TOKEN: &str = "a-token-is-made-when-the-script-is-fetched";
/// Its messages are told apart by these; on the wire they are random.
const FIRST_XID: u32 = 0xfa77_1e01;

/// Everything the dialogue depends on.
pub struct Knowledge<'a> {
    pub config: &'a Config,
    pub loaders: Arc<LoaderTable>,
    pub leases: Vec<LeaseView>,
    pub directory: &'a dyn Directory,
    pub name: Option<NodeName>,
    pub image: Option<DeployImage>,
    pub profiles: ProfileKnowledge,
    pub now: Timestamp,
}

/// The deploy image that would be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeployImage {
    pub arguments: Vec<KernelArgument>,
    pub kernel_bytes: u64,
    pub ramdisk_bytes: u64,
}

/// Runs the dialogue.
pub fn explain(mac: MacAddr, machine: Machine, bytes: bool, knowledge: &Knowledge<'_>) -> Dialogue {
    let settings = Settings::new(knowledge.config, Arc::clone(&knowledge.loaders));
    let bindings = bindings_of(&knowledge.leases, knowledge.config.dhcp.identity);
    let server = DhcpServer::new(settings, bindings, knowledge.now);
    let mut play = Play {
        mac,
        machine,
        bytes,
        knowledge,
        server,
        xid: FIRST_XID,
        steps: Vec::new(),
        decisions: Vec::new(),
    };
    play.note_standing();
    let ends = play.run();
    let Play { steps, decisions, .. } = play;
    Dialogue { mac, name: knowledge.name.clone(), firmware: machine, live: true, steps, decisions, ends }
}

/// An offer stands as long as a lease does, for whoever asks meanwhile.
fn bindings_of(leases: &[LeaseView], identity: Identity) -> Vec<Binding> {
    let binding = |lease: &LeaseView| Binding {
        address: lease.address,
        key: match (identity, &lease.client_id) {
            (Identity::ClientId, Some(id)) if id.len() >= 2 => ClientKey::ClientId(id.clone()),
            (Identity::ClientId | Identity::Mac, _) => ClientKey::Mac(lease.mac),
        },
        mac: lease.mac,
        client_id: lease.client_id.clone(),
        hostname: lease.hostname.clone(),
        state: match lease.state {
            LeaseState::Offered | LeaseState::Bound | LeaseState::Elsewhere => BindingState::Bound,
            LeaseState::Released => BindingState::Released,
            LeaseState::Quarantined => BindingState::Quarantined,
        },
        granted_at: lease.granted_at.unwrap_or_default(),
        expires_at: lease.expires_at,
    };
    leases.iter().map(binding).collect()
}

struct Play<'a> {
    mac: MacAddr,
    machine: Machine,
    bytes: bool,
    knowledge: &'a Knowledge<'a>,
    server: DhcpServer,
    xid: u32,
    steps: Vec<Step>,
    decisions: Vec<Decision>,
}

/// What speaks DHCP in the machine at the moment.
#[derive(Clone, Copy)]
enum Voice {
    Rom,
    Ipxe,
    Ramdisk,
}

impl Play<'_> {
    fn run(&mut self) -> String {
        let voice = if self.machine.is_ipxe() { Voice::Ipxe } else { Voice::Rom };
        let boot_file = match self.lease(voice, Stage::Dhcp) {
            Ok(boot_file) => boot_file,
            Err(end) => return end,
        };
        let Some(boot_file) = boot_file else { return self.nothing_to_boot() };
        if self.machine.is_ipxe() {
            return self.script_by_ipxe(&boot_file);
        }
        let url_or_name = boot_file;
        let name = url_or_name
            .rsplit_once(&format!("{}/", self.host()))
            .map_or(url_or_name.as_str(), |(_, name)| name);
        let loaders = Arc::clone(&self.knowledge.loaders);
        let chain = loaders.chain(&LoaderName(name.to_owned()));
        for (index, file) in chain.iter().enumerate() {
            let by_firmware = index == 0;
            self.fetch(Stage::Loader, &file.name.0, by_firmware, &format!(", {}", file.note));
            if by_firmware && self.machine.secure_boot() && !file.signed {
                return format!(
                    "Secure Boot refuses {}: it is not signed. The machine goes on to its next boot option",
                    file.name
                );
            }
        }
        let last = chain.last().map_or(name, |file| file.name.0.as_str());
        let runs_grub = last.rsplit('/').next().is_some_and(|file| file.starts_with("grub"));
        if runs_grub {
            return self.script("grub/grub.cfg", true);
        }
        match self.lease(Voice::Ipxe, Stage::Loader) {
            Ok(Some(url)) => self.script_by_ipxe(&url),
            Ok(None) => self.nothing_to_boot(),
            Err(end) => end,
        }
    }

    fn host(&self) -> Ipv4Addr {
        self.knowledge.config.network.address.ip()
    }

    fn script_by_ipxe(&mut self, url: &str) -> String {
        let name = url.split_once(&format!("{}/", self.host())).map_or(url, |(_, name)| name).to_owned();
        self.script(&name, false)
    }

    /// DISCOVER to ACK, as this voice says it; gives the boot file it is told.
    fn lease(&mut self, voice: Voice, stage: Stage) -> Result<Option<String>, String> {
        self.xid = self.xid.wrapping_add(1);
        let who = match voice {
            Voice::Rom => "",
            Voice::Ipxe => " by iPXE",
            Voice::Ramdisk => " by the ramdisk",
        };
        let discover = self.request(voice, None);
        if self.knowledge.config.dhcp.mode == DhcpMode::Proxy {
            return self.proxy_offer(voice, stage, who, &discover);
        }
        let offer = self.exchange(stage, &format!("DISCOVER{who}, broadcast"), &discover)?;
        let Some(address) = offer.address else { return Err("the offer has no address".to_owned()) };
        let request = self.request(voice, Some((address, self.host())));
        let ack = self.exchange(stage, &format!("REQUEST{who} of {address}, broadcast"), &request)?;
        match ack.kind {
            ReplyKind::Ack => Ok(ack.boot_file),
            ReplyKind::Offer | ReplyKind::Nak | ReplyKind::Bootp => {
                Err("the machine is told to start over (NAK)".to_owned())
            }
        }
    }

    /// Beside another server: it gives the address, we name the file.
    fn proxy_offer(
        &mut self,
        voice: Voice,
        stage: Stage,
        who: &str,
        discover: &[u8],
    ) -> Result<Option<String>, String> {
        let offer = self.exchange(stage, &format!("DISCOVER{who}, broadcast"), discover);
        let takes = format!("REQUEST{who} of what the other DHCP server offers; it gives the address");
        match (offer, voice) {
            (Ok(offer), _) => {
                self.say(stage, Party::Machine, takes, None);
                Ok(offer.boot_file)
            }
            // The silence is as it should be: the ramdisk wants an address and no file.
            (Err(_), Voice::Ramdisk) => {
                self.say(stage, Party::Machine, takes, None);
                Ok(None)
            }
            (Err(end), Voice::Rom | Voice::Ipxe) => Err(end),
        }
    }

    fn request(&self, voice: Voice, take: Option<(Ipv4Addr, Ipv4Addr)>) -> Vec<u8> {
        let class = match voice {
            Voice::Rom => machine::Speaker::Firmware(self.machine.firmware()),
            Voice::Ipxe => machine::Speaker::Ipxe(self.machine.firmware()),
            Voice::Ramdisk => machine::Speaker::Ramdisk,
        };
        machine::request(class, self.mac, self.xid, take)
    }

    fn exchange(&mut self, stage: Stage, text: &str, request: &[u8]) -> Result<Reply, String> {
        self.say(stage, Party::Machine, text.to_owned(), Some(request));
        let received = Received {
            bytes: request,
            source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
            destination: Ipv4Addr::BROADCAST,
            service: Service::Dhcp,
        };
        // What it would change is dropped with this copy of the server.
        let directory = Assigned {
            registry: self.knowledge.directory,
            profile: self.knowledge.profiles.choose(self.mac, self.machine, None),
        };
        let outcome = self.server.handle(&received, &directory, self.knowledge.now);
        match outcome.answer {
            Answer::Reply(reply) => {
                let address = reply.address.map(|address| format!(" {address}")).unwrap_or_default();
                let file =
                    reply.boot_file.as_ref().map(|file| format!(", boot file {file}")).unwrap_or_default();
                let text =
                    format!("{}{address}{file}{}", reply.kind.as_str().to_uppercase(), self.loudly(&reply));
                self.say(stage, Party::Appliance, text, Some(&reply.bytes));
                Ok(reply)
            }
            Answer::Withheld(reply) => {
                let address = reply.address.map(|address| format!(" {address}")).unwrap_or_default();
                let text = format!("no answer: {}{address}", reply.kind.withheld());
                self.say(stage, Party::Appliance, text, Some(&reply.bytes));
                Err("the appliance only observes (dhcp.mode = \"observe\")".to_owned())
            }
            Answer::Silence(silence) => {
                self.say(stage, Party::Appliance, format!("no answer: {silence}"), None);
                Err(format!("the appliance stays silent: {silence}"))
            }
        }
    }

    fn say(&mut self, stage: Stage, from: Party, text: String, message: Option<&[u8]>) {
        let options = message.map(message::options).unwrap_or_default();
        let bytes = message.filter(|_| self.bytes).map(|bytes| HEXLOWER.encode(bytes));
        self.steps.push(Step { stage, from, text, options, script: None, bytes });
    }

    /// A file by TFTP, or by HTTP where that is what the machine boots by. False if it is not here.
    fn fetch(&mut self, stage: Stage, name: &str, by_firmware: bool, note: &str) -> bool {
        let http = self.machine.firmware().is_http() || (stage > Stage::Loader && self.machine.is_ipxe());
        let host = self.host();
        let asked = match (http, by_firmware) {
            (true, true) => format!("HTTP HEAD, then GET http://{host}/{name}"),
            (true, false) => format!("HTTP GET http://{host}/{name}"),
            (false, _) => format!("TFTP read {name} (octet, blksize, tsize)"),
        };
        self.say(stage, Party::Machine, asked, None);
        let known = namespace::resolve(name, &self.knowledge.loaders).is_some();
        let size = match stage {
            Stage::Kernel => self.knowledge.image.as_ref().map(|image| image.kernel_bytes),
            Stage::Ramdisk => self.knowledge.image.as_ref().map(|image| image.ramdisk_bytes),
            Stage::Dhcp | Stage::Loader | Stage::Script | Stage::Agent | Stage::Enrolled => None,
        };
        let here = known && (size.is_some() || !matches!(stage, Stage::Kernel | Stage::Ramdisk));
        let size = size.map(|size| format!(", {size} bytes")).unwrap_or_default();
        let blocks = self.quirks().blksize_max.filter(|_| !http);
        let blocks = blocks.map(|max| format!(", blocks of {max} bytes at most")).unwrap_or_default();
        let text = if here { format!("{name}{size}{blocks}{note}") } else { format!("{name}: not found") };
        self.say(stage, Party::Appliance, text, None);
        here
    }

    fn script(&mut self, name: &str, grub: bool) -> String {
        let asked = if grub && !self.machine.firmware().is_http() {
            format!("TFTP read {name}")
        } else {
            format!("HTTP GET http://{}/{name}", self.host())
        };
        self.say(Stage::Script, Party::Machine, asked, None);
        let reader = if grub { Reader::Grub } else { Reader::Ipxe };
        let leased = self.knowledge.leases.iter().find(|lease| lease.mac == self.mac);
        // Any address of the subnet stands for the one it would be given.
        let address = leased.map_or(self.host(), |lease| lease.address);
        let told = self.knowledge.profiles.told(self.mac, self.machine, reader, self.host(), address);
        for (setting, effect) in self.knowledge.profiles.asked(self.mac, self.machine, reader) {
            self.decide(&setting, effect);
        }
        let plan = match self.script_plan(reader) {
            ScriptPlan::Profile => told.plan(),
            ScriptPlan::Installer if told.plan() == ScriptPlan::Profile => ScriptPlan::Installer,
            ScriptPlan::Installer => ScriptPlan::ProfileRefused,
            other => other,
        };
        let arguments = self.arguments();
        let context = ScriptContext {
            server: self.host(),
            mac: self.mac,
            node: self.knowledge.name.as_ref(),
            profile: &self.knowledge.config.boot.profile,
            token: NO_TOKEN,
            arguments: &arguments,
            grubs: &self.knowledge.loaders.grubs(),
            boot: told.text(),
        };
        let text = if grub { render_grub(plan, &context) } else { render_ipxe(plan, &context) };
        self.steps.push(Step {
            stage: Stage::Script,
            from: Party::Appliance,
            text: format!("{name}, {} bytes, rendered for this machine", text.len()),
            options: Vec::new(),
            script: Some(text),
            bytes: None,
        });
        match plan {
            ScriptPlan::AwaitApproval => {
                self.decide(
                    "approval",
                    "nobody approved the node: its script waits and asks again every 10 s",
                );
                format!("it waits for approval: `farrier node approve {}`", self.mac)
            }
            ScriptPlan::LocalDisk => "it boots from its local disk".to_owned(),
            ScriptPlan::Ramdisk => self.ramdisk(grub),
            ScriptPlan::Profile => {
                for (name, bytes) in told.files() {
                    self.profile_file(&name, bytes, grub);
                }
                format!("it boots profile {}", told.name())
            }
            ScriptPlan::Installer => {
                for (name, bytes) in told.files() {
                    self.profile_file(&name, bytes, grub);
                }
                format!(
                    "it starts installer {}, if no boot before did; and no boot after it does",
                    told.name()
                )
            }
            ScriptPlan::ProfileRefused => {
                format!(
                    "profile {} is refused to it: its script waits and asks again every 10 s",
                    told.name()
                )
            }
        }
    }

    fn ramdisk(&mut self, grub: bool) -> String {
        let profile = self.knowledge.config.boot.profile.clone();
        let files = [
            (Stage::Kernel, namespace::kernel_name(&profile)),
            (Stage::Ramdisk, namespace::ramdisk_name(&profile)),
        ];
        for (stage, name) in files {
            // GRUB goes on by what it came by; a loader of ours always takes the script's URLs.
            let here = match grub {
                true => self.fetch(stage, &name, false, ""),
                false => self.fetch_by_http(stage, &name),
            };
            if !here {
                return format!(
                    "it cannot go on: {name} is not here; `farrier image build deploy --profile {profile}`"
                );
            }
        }
        if let Err(end) = self.lease(Voice::Ramdisk, Stage::Agent) {
            return format!("the ramdisk gets no address: {end}");
        }
        let host = self.host();
        self.say(
            Stage::Agent,
            Party::Machine,
            format!("HTTP POST http://{host}/agent/v1/hello with its token"),
            None,
        );
        self.say(Stage::Agent, Party::Appliance, "a session; the token is spent".to_owned(), None);
        self.say(
            Stage::Enrolled,
            Party::Machine,
            format!("HTTP POST http://{host}/agent/v1/inventory"),
            None,
        );
        self.say(
            Stage::Enrolled,
            Party::Appliance,
            "stored; the node is enrolled and waits for orders".to_owned(),
            None,
        );
        "it enrolls".to_owned()
    }

    fn fetch_by_http(&mut self, stage: Stage, name: &str) -> bool {
        let was = self.machine;
        self.machine = was.as_ipxe();
        let here = self.fetch(stage, name, false, "");
        self.machine = was;
        here
    }

    fn arguments(&self) -> Vec<KernelArgument> {
        let image = self.knowledge.image.iter().flat_map(|image| &image.arguments);
        image.chain(&self.knowledge.config.boot.kernel_arguments).cloned().collect()
    }

    fn standing(&self) -> Standing {
        self.standing_before(None)
    }

    /// As the loader that asks finds it, or as DHCP does.
    fn standing_before(&self, reader: Option<Reader>) -> Standing {
        let profile = self.knowledge.profiles.choose(self.mac, self.machine, reader);
        let registry = self.knowledge.directory;
        Assigned { registry, profile }.standing(self.mac, self.knowledge.now)
    }

    /// What its script does; by then a stranger whose address was granted is a node.
    fn script_plan(&self, reader: Reader) -> ScriptPlan {
        match self.standing_before(Some(reader)) {
            Standing::Known(node) => decision::decide_script(&node),
            Standing::Stranger => match self.knowledge.config.dhcp.unknown {
                UnknownPolicy::Enroll
                    if self.knowledge.profiles.choose(self.mac, self.machine, Some(reader)).is_some() =>
                {
                    ScriptPlan::Profile
                }
                UnknownPolicy::Enroll => ScriptPlan::Ramdisk,
                UnknownPolicy::Approve | UnknownPolicy::Ignore => ScriptPlan::AwaitApproval,
            },
        }
    }

    fn quirks(&self) -> Quirks {
        match self.standing() {
            Standing::Known(node) => node.quirks,
            Standing::Stranger => Quirks::default(),
        }
    }

    /// What a quirk makes of where a reply goes.
    fn loudly(&self, reply: &Reply) -> &'static str {
        let forced = self.quirks().broadcast_replies && reply.destination == Destination::Broadcast;
        if forced { ", to everybody" } else { "" }
    }

    fn nothing_to_boot(&mut self) -> String {
        let class = machine::class_of(
            &self.request(if self.machine.is_ipxe() { Voice::Ipxe } else { Voice::Rom }, None),
        );
        let unknown = self.knowledge.config.dhcp.unknown;
        let plan = decision::decide(class, &self.standing(), unknown, &self.knowledge.loaders);
        let reason = plan.nothing().unwrap_or(NothingToBoot::NotABootClient);
        match reason {
            NothingToBoot::LocalDisk => {
                "it has an address and nothing to boot: it goes on to its own disk".to_owned()
            }
            NothingToBoot::NoLoader => {
                let file = self.knowledge.loaders.lacking(class).map(|file| file.name.to_string());
                let which = file.unwrap_or_else(|| "a loader".to_owned());
                format!("it has an address and nothing to boot: {which} is not installed")
            }
            NothingToBoot::NotABootClient | NothingToBoot::UnknownFirmware | NothingToBoot::BootLoop => {
                format!("it has an address and nothing to boot: {}", reason.as_str())
            }
        }
    }

    fn decide(&mut self, setting: &str, effect: impl Into<String>) {
        self.decisions.push(Decision { setting: setting.to_owned(), effect: effect.into() });
    }

    /// The operator's settings that this dialogue turns on.
    fn note_standing(&mut self) {
        let config = self.knowledge.config;
        match self.standing() {
            Standing::Stranger => match config.dhcp.unknown {
                UnknownPolicy::Enroll => self.decide(
                    "dhcp.unknown = \"enroll\"",
                    "nobody registered the MAC: it boots and enrolls on sight",
                ),
                UnknownPolicy::Approve => self.decide(
                    "dhcp.unknown = \"approve\"",
                    "nobody registered the MAC: it boots as far as its script, and waits there",
                ),
                UnknownPolicy::Ignore => self.decide(
                    "dhcp.unknown = \"ignore\"",
                    format!(
                        "nobody registered the MAC: no answer; `farrier node add {}` changes that",
                        self.mac
                    ),
                ),
            },
            Standing::Known(node) => self.note_node(&node),
        }
        let firmware = self.machine.firmware();
        if let Some(loader) = config.boot.loaders.get(&firmware) {
            self.decide(&format!("boot.loaders.{firmware}"), format!("its loader is {loader}"));
        }
        if !config.boot.kernel_arguments.is_empty() {
            let words: Vec<&str> = config.boot.kernel_arguments.iter().map(KernelArgument::as_str).collect();
            self.decide("boot.kernel_arguments", format!("its kernel gets {}", words.join(" ")));
        }
    }

    fn note_node(&mut self, node: &KnownNode) {
        let KnownNode {
            id: _,
            approved,
            proven: _,
            next_boot,
            task_open,
            installer,
            profile,
            reserved,
            fruitless_loaders,
            quirks,
        } = node;
        self.decide(
            "registration",
            if *approved { "it is a node, and may boot" } else { "it is a node, and nobody approved it" },
        );
        if let Some(address) = reserved {
            self.decide("reservation", format!("{address} is fixed for this MAC"));
        }
        for effect in quirks.told() {
            self.decide("quirks", effect);
        }
        if let Some(installer) = installer {
            self.decide("task", format!("an install by installer {installer} is open: it is started once"));
        } else if *task_open {
            self.decide("task", "a task on its disks is open: no boot profile comes between");
        }
        match next_boot {
            NextBoot::Ramdisk => {}
            NextBoot::LocalDisk if profile.as_ref().is_some_and(|profile| profile.one_shot) => self.decide(
                "order",
                "local boot was ordered: it is sent to its own disk once its one-shot profile was booted",
            ),
            NextBoot::LocalDisk => self.decide("order", "local boot was ordered: it is sent to its own disk"),
        }
        if *fruitless_loaders >= decision::FRUITLESS_LOADERS_MAX {
            self.decide(
                "boot loop",
                format!("it fetched its loader {fruitless_loaders} times and no script: it is given none for ten minutes, or until approved again"),
            );
        }
    }
}

#[cfg(test)]
mod tests;
