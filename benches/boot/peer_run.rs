//! One machine, served by dnsmasq and nginx from the configurations in `benches/peers`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use farrier::boot::client::Firmware;
use farrier::boot::loader::{LoaderFile, LoaderTable};
use farrier::image::library::{Library, Profile};
use farrier::lab::config::LabFirmware;
use farrier::lab::plan::ProgramPlan;
use farrier::lab::prepare::PROFILE;
use farrier::lab::{Lab, LabOptions, Services, needs, process};

use crate::{Bench, ENROLLED_WITHIN};

const DNSMASQ: &str = include_str!("../peers/dnsmasq-boot.conf");
const NGINX: &str = include_str!("../peers/nginx-boot.conf");

/// Both say that they serve by writing their process id.
const READY_WITHIN: Duration = Duration::from_secs(10);

pub fn check_needs() -> anyhow::Result<()> {
    for (program, package) in [("dnsmasq", "dnsmasq-base"), ("nginx", "nginx-light")] {
        if !needs::is_there(program) {
            bail!("{program} (Debian package {package}) is not installed: it is what we compare with");
        }
    }
    Ok(())
}

pub fn power_on_to_enrolled(bench: &Bench, firmware: LabFirmware, state: &Path) -> anyhow::Result<Duration> {
    lay_out(bench, state)?;
    let program = |name: &str, arguments: &[&str]| ProgramPlan {
        name: name.to_owned(),
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        directory: state.to_owned(),
        log: state.join(format!("{name}.log")),
        takes_listener: false,
        restarts: false,
    };
    let services = vec![
        program("dnsmasq", &["dnsmasq", "--keep-in-foreground", "--conf-file=dnsmasq.conf"]),
        program("nginx", &["nginx", "-p", ".", "-c", "nginx.conf"]),
    ];
    let lab = Lab::start(LabOptions {
        state: state.to_owned(),
        config: bench.config(firmware),
        farrier: bench.farrier.clone(),
        fresh: true,
        ends_with_launcher: true,
        services: Services::Others(services),
    })?;
    await_file(state, "dnsmasq.pid")?;
    await_file(state, "nginx.pid")?;
    let started = lab.power_on(lab.machines()[0].name.as_str())?;
    let deadline = Instant::now() + ENROLLED_WITHIN;
    let enrolled_millis = loop {
        let log = fs::read_to_string(state.join("nginx.access")).unwrap_or_default();
        if let Some(millis) = inventory_call(&log) {
            break millis;
        }
        if Instant::now() >= deadline {
            bail!("not enrolled within {} s; see {}", ENROLLED_WITHIN.as_secs(), state.display());
        }
        process::look_again();
    };
    lab.stop()?;
    Ok(Duration::from_millis(enrolled_millis.saturating_sub(started.as_millis())))
}

/// The moment of the agent's inventory call, in milliseconds since the epoch.
fn inventory_call(log: &str) -> Option<u64> {
    let line = log.lines().find(|line| line.ends_with("POST /agent/v1/inventory 200"))?;
    let (secs, millis) = line.split_whitespace().next()?.split_once('.')?;
    Some(secs.parse::<u64>().ok()? * 1000 + millis.parse::<u64>().ok()?)
}

fn await_file(state: &Path, name: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    while fs::read_to_string(state.join(name)).map_or(true, |text| text.trim().is_empty()) {
        if Instant::now() >= deadline {
            bail!("{name} is not written; see the logs in {}", state.display());
        }
        process::look_again();
    }
    Ok(())
}

/// Configuration and files, where such a set-up keeps them.
fn lay_out(bench: &Bench, state: &Path) -> anyhow::Result<()> {
    let tftp = state.join("tftp");
    let www = state.join("www");
    fs::create_dir_all(tftp.join("grub"))?;
    fs::create_dir_all(&www)?;
    let root = state.to_str().context("the target directory's path is not UTF-8")?;
    fs::write(state.join("dnsmasq.conf"), DNSMASQ.replace("@ROOT@", root))?;
    fs::write(state.join("nginx.conf"), NGINX.replace("@ROOT@", root))?;

    let library = Library::open(&bench.images)?;
    let profile = library.profile(PROFILE).context("no deploy image")?;
    for directory in [&tftp, &www] {
        fs::write(directory.join("vmlinuz"), &profile.kernel.bytes)?;
        fs::write(directory.join("initrd.img"), &profile.ramdisk.bytes)?;
    }
    let table = LoaderTable::built_in();
    for firmware in [Firmware::Bios, Firmware::UefiX64] {
        let mut next = table.for_firmware(firmware).and_then(|name| table.file(name));
        while let Some(file) = next {
            let name = file.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // Under the names shim and dnsmasq.conf know, in the root as such set-ups have them.
            let name = match name {
                "shimx64.efi.signed" => "shimx64.efi",
                "grubnetx64.efi.signed" => "grubx64.efi",
                other => other,
            };
            copy_loader(file, &bench.images, &tftp.join(name))?;
            next = file.second.as_ref().and_then(|name| table.file(name));
        }
    }
    fs::write(www.join("boot.ipxe"), ipxe_script(&profile))?;
    fs::write(tftp.join("grub/grub.cfg"), grub_config(&profile))?;
    Ok(())
}

fn copy_loader(file: &LoaderFile, images: &Path, to: &Path) -> anyhow::Result<()> {
    let fetched = images.join("loaders").join(file.path.strip_prefix("/").unwrap_or(&file.path));
    let from = if file.path.is_file() { &file.path } else { &fetched };
    fs::copy(from, to).with_context(|| format!("boot loader {}", from.display()))?;
    Ok(())
}

/// Both command lines say what ours say; the firmware's own variables name the machine.
fn command_line(profile: &Profile, mac: &str) -> String {
    let words = profile.manifest.arguments.join(" ");
    format!("{words} farrier.server=http://192.168.2.2 farrier.mac={mac} farrier.token=peer")
}

fn ipxe_script(profile: &Profile) -> String {
    let line = command_line(profile, "${net0/mac}");
    format!(
        "#!ipxe\nkernel http://192.168.2.2/vmlinuz initrd=initrd.img {line}\n\
         initrd http://192.168.2.2/initrd.img\nboot\n"
    )
}

fn grub_config(profile: &Profile) -> String {
    let line = command_line(profile, "$net_default_mac");
    format!("set timeout=0\nmenuentry deploy {{\n linux /vmlinuz {line}\n initrd /initrd.img\n}}\n")
}
