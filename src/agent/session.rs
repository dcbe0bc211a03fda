//! The agent proper: from kernel command line to waiting for orders and tasks.
//!
//! No step gives up on its own: drivers, port, lease and calls are tried until they work, and the console says what is
//! being waited for. Only the appliance's refusal, or a command line without our parameters, ends a boot; the machine
//! then stands still with the reason on its screen.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::reboot::{RebootMode, reboot};

use crate::agent::MODULES_DIR;
use crate::agent::backoff::{Backoff, pause};
use crate::agent::calls::{Appliance, CallError, TaskCalls, Welcome};
use crate::agent::collect;
use crate::agent::console::{Console, uptime};
use crate::agent::drivers::{Loader, Role};
use crate::agent::install::target::{BlockDisk, Disk};
use crate::agent::install::{self, Ground, Outcome};
use crate::agent::keepsake::{self, Keepsake};
use crate::agent::lease::{self, Lease, News};
use crate::agent::parameters::Parameters;
use crate::agent::uevent::Uevents;
use crate::net::MacAddr;
use crate::node::install::task::AgentTask;
use crate::node::inventory::Inventory;
use crate::node::state::Order;

/// How often a wait looks again without having been woken: events can be lost.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// After this long a wait explains itself in a box, and then again at each further such time.
const EXPLAIN_AFTER: Duration = Duration::from_secs(20);
/// Disks are complete when the kernel has announced nothing for this long …
const QUIET: Duration = Duration::from_millis(120);
/// … or after this long at most; slower ones are reported later, when they have appeared.
const SETTLE_MAX: Duration = Duration::from_secs(8);
/// An appliance that says nothing sensible about heartbeats gets one this often.
const HEARTBEAT_SECS: std::ops::RangeInclusive<u64> = 1..=300;
/// A machine told to reboot says so, but does not wait long to be heard.
const OBEY_TRIES: u32 = 3;

struct Agent {
    console: Console,
    parameters: Parameters,
    appliance: Appliance,
    backoff: Backoff,
    uevents: Uevents,
    drivers: Loader,
}

pub fn run() -> ! {
    let root = Path::new("/");
    let console = Console::open(root);
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let parameters = match Parameters::parse(&cmdline) {
        Ok(parameters) => parameters,
        Err(error) => {
            console.trouble(
                "reading the kernel command line",
                &error.to_string(),
                "Netboot this machine again.",
            );
            stand_still()
        }
    };
    console.say(format_args!("ramdisk {}, calling {}", env!("CARGO_PKG_VERSION"), parameters.server));
    let drivers = Loader::open(Path::new(MODULES_DIR)).unwrap_or_else(|error| {
        console.trouble("reading the driver index", &error.to_string(), "Build the ramdisk again.");
        Loader::empty()
    });
    let seed = mac_number(parameters.mac);
    let mut agent = Agent {
        appliance: Appliance::new(&parameters.server, parameters.mac),
        // The kernel time makes two boots of one machine differ.
        backoff: Backoff::new(seed ^ (console.seconds() * 1e6) as u64),
        uevents: Uevents::open(),
        console,
        parameters,
        drivers,
    };
    let interface = agent.find_port();
    let lease = agent.get_address(&interface);
    let welcome = agent.say_hello();
    agent.collect_and_wait(&welcome, &interface, lease)
}

impl Agent {
    /// Loads drivers until the port we booted from is there.
    fn find_port(&mut self) -> String {
        let root = Path::new("/");
        let mut explain_at = Instant::now() + EXPLAIN_AFTER;
        let mut roles = [Role::Bus, Role::Network].as_slice();
        loop {
            self.load(roles);
            if let Some(interface) = lease::interface_with(root, self.parameters.mac) {
                self.console.say(format_args!("{} is {interface}", self.parameters.mac));
                return interface;
            }
            // A USB network card sits behind a controller that counts as storage.
            roles = &[Role::Bus, Role::Network, Role::Storage, Role::Other];
            self.uevents.wait(LOOK_AGAIN);
            if Instant::now() >= explain_at {
                explain_at += EXPLAIN_AFTER;
                let found: Vec<String> = collect::nics::interfaces(root)
                    .iter()
                    .map(|interface| format!("{} {}", interface.name, interface.mac))
                    .collect();
                let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
                let what = format!(
                    "No network interface has MAC {}, which the machine booted from. Found: {found}.",
                    self.parameters.mac
                );
                let way_out = "The ramdisk may lack its driver: add it to images/deploy.toml, or use the profile \
                               for real machines (`farrier image build deploy --profile metal`). Still looking.";
                self.console.trouble("finding the network port", &what, way_out);
            }
        }
    }

    fn load(&mut self, roles: &[Role]) {
        for refused in self.drivers.load_for_devices(Path::new("/"), roles) {
            self.console.say(format_args!("driver {}: {}", refused.name, refused.why));
        }
    }

    fn get_address(&mut self, interface: &str) -> Lease {
        loop {
            match Lease::start(interface) {
                Ok(lease) => {
                    if self.await_lease(&lease, interface) {
                        return lease;
                    }
                }
                Err(error) => self.console.trouble(
                    "starting udhcpc",
                    &error.to_string(),
                    "The ramdisk is damaged: build it again. Trying again.",
                ),
            }
            pause(self.backoff.wait(None));
        }
    }

    fn await_lease(&mut self, lease: &Lease, interface: &str) -> bool {
        let mut explain_at = Instant::now() + EXPLAIN_AFTER;
        let mut talk = String::from("it said nothing");
        loop {
            match lease.wait(LOOK_AGAIN) {
                Some(News::Lease { address, .. }) => {
                    self.console.say(format_args!("address {address}"));
                    return true;
                }
                Some(News::Talk(line)) => talk = line,
                Some(News::Ended(why)) => {
                    self.console.say(format_args!("{why} ({talk}); starting it again"));
                    return false;
                }
                None => {}
            }
            if Instant::now() >= explain_at {
                explain_at += EXPLAIN_AFTER;
                let what = format!("No DHCP server answers on {interface}. The last word of udhcpc: {talk}");
                let way_out = "Look whether the appliance runs and whether it knows this machine: \
                               `farrier node show MAC`. Still asking.";
                self.console.trouble("getting an address", &what, way_out);
            }
        }
    }

    fn say_hello(&mut self) -> Welcome {
        let keepsake = Keepsake::of_this_boot(Path::new(keepsake::FILE));
        if let Some(welcome) = keepsake.welcome {
            self.console.say(format_args!("the agent was restarted; going on as {}", welcome.node));
            return welcome;
        }
        let (token, nonce) = (self.parameters.token.clone(), keepsake.nonce);
        let welcome = self.until_answered("hello", &token, |agent| {
            agent.appliance.hello(&token, nonce, uptime(Path::new("/")))
        });
        self.console.say(format_args!("the appliance knows this machine as {}", welcome.node));
        Keepsake { nonce, welcome: Some(welcome.clone()) }.keep(Path::new(keepsake::FILE));
        welcome
    }

    /// Tries a call until it is answered; ends the boot if it is refused.
    fn until_answered<A>(
        &mut self,
        step: &'static str,
        credential: &str,
        call: impl Fn(&Agent) -> Result<A, CallError>,
    ) -> A {
        let mut explain_at = Instant::now() + EXPLAIN_AFTER;
        loop {
            match call(self) {
                Ok(answer) => {
                    self.backoff.reset();
                    return answer;
                }
                Err(CallError::Later { what, retry_after }) => {
                    let wait = self.backoff.wait(retry_after);
                    self.console.say(format_args!("{step}: {what}; again in {:.1} s", wait.as_secs_f64()));
                    if Instant::now() >= explain_at {
                        explain_at = Instant::now() + 3 * EXPLAIN_AFTER;
                        let way_out = "Look whether the appliance runs: `farrier status`. Still trying.";
                        self.console.trouble(step, &what, way_out);
                    }
                    pause(wait);
                }
                Err(error @ CallError::Refused { .. }) => self.refused(step, &error.to_string()),
                Err(error @ (CallError::Superseded { .. } | CallError::Rejected { .. })) => {
                    let message = error.to_string();
                    // It refuses this call; that it hears of the failure is a hope.
                    let _ = self.appliance.failure(credential, step, &message);
                    let way_out = "Ramdisk and appliance may be of different versions: build the ramdisk again \
                                   (`farrier image build deploy`) and restart this machine.";
                    self.console.trouble(step, &message, way_out);
                    stand_still()
                }
            }
        }
    }

    fn refused(&self, step: &str, what: &str) -> ! {
        let way_out = "A token is good for one boot: restart this machine. If it was removed or is not approved, see \
                       `farrier node list` at the appliance.";
        self.console.trouble(step, what, way_out);
        stand_still()
    }

    fn collect_and_wait(&mut self, welcome: &Welcome, interface: &str, mut lease: Lease) -> ! {
        self.settle();
        let mut reported = self.report_inventory(welcome);
        let period =
            Duration::from_secs(welcome.heartbeat_secs.clamp(*HEARTBEAT_SECS.start(), *HEARTBEAT_SECS.end()));
        self.console
            .say(format_args!("enrolled; waiting for orders, a heartbeat every {} s", period.as_secs()));
        // A task may be waiting already.
        let mut due = Instant::now();
        loop {
            match lease.wait(due.saturating_duration_since(Instant::now())) {
                Some(News::Ended(why)) => {
                    self.console.say(format_args!("{why}; starting it again"));
                    lease = self.get_address(interface);
                }
                Some(News::Lease { .. } | News::Talk(_)) => {}
                None => {
                    due = Instant::now() + period;
                    let session = welcome.session.clone();
                    let orders = self
                        .until_answered("heartbeat", &session, |agent| agent.appliance.heartbeat(&session));
                    if let Some(order) = orders.order {
                        self.obey(order, &session);
                    } else if let Some(task) = orders.task {
                        self.carry_out(&task, &session);
                        due = Instant::now() + period;
                    }
                    let now = collect::inventory(Path::new("/"));
                    if hardware_differs(&reported, &now) {
                        self.console.say("the hardware changed: reporting it");
                        reported = self.report_inventory(welcome);
                    }
                }
            }
        }
    }

    /// Loads the remaining drivers and waits, within bounds, until devices stop appearing.
    fn settle(&mut self) {
        let deadline = Instant::now() + SETTLE_MAX;
        if Path::new("/sys/firmware/efi").exists() {
            self.drivers.load_named("efivarfs");
            collect::mount_efivars();
        }
        loop {
            self.load(&[Role::Bus, Role::Network, Role::Storage, Role::Other]);
            collect::nics::bring_up_all();
            if !self.uevents.wait(QUIET) || Instant::now() >= deadline {
                return;
            }
        }
    }

    fn report_inventory(&mut self, welcome: &Welcome) -> Inventory {
        let inventory = collect::inventory(Path::new("/"));
        self.console.say(format_args!(
            "{} CPUs, {} MiB memory, {} disks, {} network interfaces",
            inventory.cpu.logical,
            inventory.memory_bytes >> 20,
            inventory.disks.len(),
            inventory.nics.len()
        ));
        let session = &welcome.session;
        self.until_answered("inventory", session, |agent| agent.appliance.inventory(session, &inventory));
        inventory
    }

    /// Installs, cleans, or stands by; heartbeats go on as reports of progress.
    fn carry_out(&self, task: &AgentTask, session: &str) {
        let root = Path::new("/");
        let ground = Ground {
            root,
            console: &self.console,
            calls: &TaskCalls { appliance: &self.appliance, session },
            open: &|device| BlockDisk::open(device).map(|disk| Box::new(disk) as Box<dyn Disk>),
            unlock_firmware: &collect::unlock_efivars,
            seed: mac_number(self.parameters.mac),
        };
        match install::run(&ground, task) {
            Outcome::Reboot => {
                self.restart(RebootMode::RB_AUTOBOOT, "restarting into the new system", session)
            }
            Outcome::Stay | Outcome::Superseded { .. } => {}
            Outcome::Refused { reason } => self.refused("the task", &reason),
        }
    }

    fn obey(&mut self, order: Order, session: &str) {
        self.console.say(format_args!("order: {order}"));
        for _ in 0..OBEY_TRIES {
            match self.appliance.obeying(session, order) {
                Ok(()) => break,
                Err(error) => {
                    self.console.say(format_args!("telling the appliance: {error}"));
                    pause(self.backoff.wait(None));
                }
            }
        }
        self.backoff.reset();
        let mode = match order {
            // The appliance keeps the choice of the local disk: the next netboot goes there.
            Order::Reboot | Order::LocalBoot => RebootMode::RB_AUTOBOOT,
            Order::PowerOff => RebootMode::RB_POWER_OFF,
        };
        self.restart(mode, &order.to_string(), session);
    }

    /// Comes back only if the kernel does not do it.
    fn restart(&self, mode: RebootMode, what: &str, session: &str) {
        nix::unistd::sync();
        let Err(errno) = reboot(mode);
        self.console.trouble(
            "obeying",
            &format!("{what}: {}", errno.desc()),
            "Use the machine's own switch.",
        );
        let message = format!("{what} refused by the kernel: {}", errno.desc());
        // It stands on the screen as well.
        let _ = self.appliance.failure(session, "obeying", &message);
    }
}

/// A number that differs between machines.
fn mac_number(mac: MacAddr) -> u64 {
    mac.0.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
}

/// Disks or network interfaces came or went; link and time may differ freely.
fn hardware_differs(before: &Inventory, now: &Inventory) -> bool {
    let nics = |inventory: &Inventory| {
        inventory.nics.iter().map(|nic| (nic.name.clone(), nic.mac, nic.link)).collect::<Vec<_>>()
    };
    before.disks != now.disks || nics(before) != nics(now)
}

/// The end of a boot that cannot go on: the text stays on the screen, the machine waits for its switch.
fn stand_still() -> ! {
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::inventory::Disk;

    #[test]
    fn a_late_disk_is_news_and_a_later_clock_is_not() {
        let before = Inventory::default();
        let mut now = Inventory { uptime_secs: 99.0, ..Inventory::default() };
        assert!(!hardware_differs(&before, &now));
        now.disks.push(Disk { name: "sda".to_owned(), ..Disk::default() });
        assert!(hardware_differs(&before, &now));
    }
}
