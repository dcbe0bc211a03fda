//! A lab of the storm's own: a namespace, a bridge big enough, and our appliance on it with something to boot.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};

use crate::boot::client::Firmware;
use crate::boot::loader::LoaderTable;
use crate::image::library::{Library, Manifest};
use crate::lab::appliance::database_files;
use crate::lab::launch::last_lines;
use crate::lab::process::look_again;
use crate::lab::state::{SOCKET_PATH_MAX, StateDir, connect};
use crate::net::MacAddr;
use crate::net::sys::die_with_parent;
use crate::storm::ground::{Ground, ip_batch, keep_firewall_off_bridges};
use crate::storm::random::Stream;
use crate::storm::report::ServerUse;

/// The bridge of the storm's own lab.
const BRIDGE: &str = "storm";
const ADDRESS: &str = "10.77.0.2/16";
/// The storm's end of the cable, and the machines behind it (see the module `storm`): the pool, in whole prefixes.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
const BEHIND_GATEWAY: [&str; 8] = [
    "10.77.1.0/24",
    "10.77.2.0/23",
    "10.77.4.0/22",
    "10.77.8.0/21",
    "10.77.16.0/20",
    "10.77.32.0/19",
    "10.77.64.0/18",
    "10.77.128.0/17",
];
const POOL: &str = "10.77.1.0-10.77.254.255";
/// Registered machines' addresses; inside the pool, which does without them.
const RESERVED_FROM: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 0);
/// Machines the pool has room for, with some to spare for strangers.
pub const NODES_MAX: usize = 60_000;
const PROFILE: &str = "storm";
/// Loaders that are not installed here are stood in for by as many bytes as they usually have.
const LOADER_BYTES: [(&str, usize); 4] = [
    ("undionly.kpxe", 72 << 10),
    ("ipxe.efi", 1 << 20),
    ("uefi-x64/shimx64.efi", 928 << 10),
    ("uefi-x64/grubx64.efi", 1600 << 10),
];

const READY_WITHIN: Duration = Duration::from_secs(20);
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// The appliance under storm. Dropped, it is ended.
pub struct Rig {
    appliance: Child,
    _lock: nix::fcntl::Flock<File>,
}

/// What is made for the machines.
#[derive(Clone, Debug)]
pub struct Offering {
    /// Bytes.
    pub kernel: usize,
    pub ramdisk: usize,
    /// UEFI machines get the signed chain instead of iPXE.
    pub signed: bool,
    /// Machines the operator knows, each with an address of its own.
    pub registered: Vec<MacAddr>,
}

impl Rig {
    /// Enters a fresh network namespace with this whole process, which must have one thread only, builds the bridge
    /// and starts the appliance.
    pub fn build(directory: &Path, farrier: &Path, offering: &Offering) -> anyhow::Result<Rig> {
        let state = StateDir::open(directory)?;
        let Some(lock) = state.try_lock()? else {
            bail!(
                "a storm or a lab runs in {} already; name another directory with --state",
                directory.display()
            );
        };
        for path in database_files(&state).into_iter().chain([state.operator_socket()]) {
            if path.exists() {
                fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
            }
        }
        prepare(&state.appliance_state(), offering)?;
        write_configuration(&state, offering)?;
        enter_namespace()?;
        keep_firewall_off_bridges();
        let routes: String = BEHIND_GATEWAY
            .iter()
            .map(|prefix| format!("route add {prefix} via {GATEWAY} dev {BRIDGE}\n"))
            .collect();
        ip_batch(&format!(
            "link set lo up\n\
             link add {BRIDGE} address 02:00:00:00:00:01 type bridge forward_delay 0 stp_state 0\n\
             address add {ADDRESS} dev {BRIDGE}\n\
             link set {BRIDGE} up\n\
             link add uplink type veth peer name cable\n\
             link set cable arp off addrgenmode none up\n\
             link set uplink master {BRIDGE} addrgenmode none up\n\
             {routes}"
        ))?;
        let log = File::create(state.appliance_log()).context("the appliance's log cannot be made")?;
        let mut command = Command::new(farrier);
        command.args(["serve", "--config", "farrier.toml"]).current_dir(state.root()).stdin(Stdio::null());
        // Ctrl-C is for the storm, which reports what the appliance used before it ends it.
        command.process_group(0);
        let appliance = die_with_parent(command.stdout(log.try_clone()?).stderr(log))
            .spawn()
            .with_context(|| format!("{} cannot be run", farrier.display()))?;
        let mut rig = Rig { appliance, _lock: lock };
        rig.await_ready(&state)?;
        Ok(rig)
    }

    fn await_ready(&mut self, state: &StateDir) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        while !is_ready(state).unwrap_or(false) {
            if let Some(status) = self.appliance.try_wait()? {
                bail!("the appliance does not start ({status}); {}", last_lines(&state.appliance_log()));
            }
            if Instant::now() >= deadline {
                bail!("the appliance is not ready; {}", last_lines(&state.appliance_log()));
            }
            look_again();
        }
        Ok(())
    }

    /// Where its storm takes place.
    pub fn ground(&self) -> Ground {
        Ground { bridge: BRIDGE.to_owned(), gateway: Some(GATEWAY) }
    }

    /// What the appliance has used so far.
    pub fn server_use(&self) -> Option<ServerUse> {
        let process = Path::new("/proc").join(self.appliance.id().to_string());
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        let status = fs::read_to_string(process.join("status")).ok()?;
        // Fields 14 and 15 in clock ticks, counted from behind the name, which may hold anything.
        let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().skip(11);
        let ticks: f64 = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kibibytes: u64 = peak.split_ascii_whitespace().next()?.parse().ok()?;
        let io = fs::read_to_string(process.join("io")).ok()?;
        let written_bytes =
            io.lines().find_map(|line| line.strip_prefix("write_bytes:"))?.trim().parse().ok()?;
        let cpu_secs = ticks / per_second as f64;
        Some(ServerUse { cpu_secs, peak_memory_bytes: kibibytes << 10, written_bytes })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.appliance.id().cast_signed()), Signal::SIGTERM);
        let deadline = Instant::now() + ENDS_WITHIN;
        while matches!(self.appliance.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                let _ = self.appliance.kill();
            }
            look_again();
        }
    }
}

/// As root directly; otherwise by way of a user namespace in which we are root.
fn enter_namespace() -> anyhow::Result<()> {
    if unshare(CloneFlags::CLONE_NEWNET).is_ok() {
        return Ok(());
    }
    let (user, group) = (Uid::current(), Gid::current());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from).context(
        "no network namespace can be made here: run as root, or allow user namespaces \
         (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)",
    )?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    Ok(())
}

/// Loaders and a deploy image made of noise: what they hold does not matter, how long they are does.
fn prepare(state: &Path, offering: &Offering) -> anyhow::Result<()> {
    fs::create_dir_all(state).with_context(|| format!("{} cannot be made", state.display()))?;
    let library = Library::open(state)?;
    let sizes = |profile: &crate::image::library::Profile| (profile.kernel.size, profile.ramdisk.size);
    if library.profile(PROFILE).map(|profile| sizes(&profile))
        != Some((offering.kernel as u64, offering.ramdisk as u64))
    {
        let manifest = Manifest {
            profile: PROFILE.to_owned(),
            kernel: library.add(&mut noise(1, offering.kernel).as_slice())?,
            ramdisk: library.add(&mut noise(2, offering.ramdisk).as_slice())?,
            arguments: Vec::new(),
            built_from: [("farrier storm".to_owned(), "noise".to_owned())].into(),
        };
        library.publish(&manifest)?;
    }
    for file in LoaderTable::built_in().files() {
        let Some((_, bytes)) = LOADER_BYTES.into_iter().find(|(name, _)| file.name.0 == *name) else {
            continue;
        };
        let kept = state.join("loaders").join(file.path.strip_prefix("/").unwrap_or(&file.path));
        if file.path.exists() || kept.exists() {
            continue;
        }
        fs::create_dir_all(kept.parent().unwrap_or(state))?;
        fs::write(&kept, noise(3, bytes)).with_context(|| format!("{} cannot be written", kept.display()))?;
    }
    Ok(())
}

fn noise(number: u64, length: usize) -> Vec<u8> {
    let mut stream = Stream::new(0, number);
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| stream.next_u64().to_le_bytes()).collect();
    bytes.truncate(length);
    bytes
}

fn write_configuration(state: &StateDir, offering: &Offering) -> anyhow::Result<()> {
    let mut socket = state.operator_socket();
    if socket.as_os_str().len() > SOCKET_PATH_MAX {
        socket = Path::new("/proc/self/cwd").join(socket.file_name().unwrap_or_default());
    }
    let loaders = match offering.signed {
        true => String::new(),
        false => format!("[boot.loaders]\n{} = \"ipxe.efi\"\n", Firmware::UefiX64),
    };
    let mut text = format!(
        "# Written by `farrier storm` at every start.\n\
         [network]\nbridge = {BRIDGE:?}\naddress = {ADDRESS:?}\n\n\
         [dhcp]\npool = {POOL:?}\n\n\
         [operator]\nsocket = {socket:?}\nlisten = \"off\"\n\n\
         [store]\npath = {:?}\n\n\
         [process]\nuser = \"0\"\n\n\
         [boot]\nprofile = {PROFILE:?}\n\n{loaders}",
        state.appliance_state(),
    );
    for (number, mac) in offering.registered.iter().enumerate() {
        let address = Ipv4Addr::from(u32::from(RESERVED_FROM) + number as u32);
        text.push_str(&format!(
            "\n[[dhcp.reservation]]\nmac = \"{mac}\"\naddress = \"{address}\"\nname = \"storm-{number}\"\n"
        ));
    }
    let path = state.appliance_config();
    fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))
}

fn is_ready(state: &StateDir) -> std::io::Result<bool> {
    let mut stream = connect(&state.operator_socket())?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: farrier\r\nConnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(&status == b"HTTP/1.1 200")
}
