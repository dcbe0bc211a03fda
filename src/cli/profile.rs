//! `farrier profile …`: what nodes boot that is not our ramdisk, and who boots it.
//!
//! `add` writes to the state directory, as `image build` does, and the running appliance takes it up by itself; everything
//! else asks the appliance, which knows who is to boot what.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, Subcommand};

use super::client::{Client, segment};
use super::error::CommandError;
use super::json_text;
use super::table::Table;
use super::text::{Style, Tone, bytes, inert, or_dash};
use crate::boot::client::Firmware;
use crate::boot::profile::argument::ProfileArgument;
use crate::boot::profile::rules::RuleNumber;
use crate::boot::profile::{BootProfile, ProfileKind, ProfileName, Program, What};
use crate::image::digest::Digest;
use crate::image::executable;
use crate::image::library::{BlobRef, Library};
use crate::operator::api::{
    AssignRequest, Assigned, AssignedTo, AssignmentEntry, ProfileEntry, RunStateEntry, SignatureEntry,
};

/// Of a file, read to see what it is: past the first descriptor of an ISO image, and every header of a kernel.
const HEAD_BYTES: u64 = 64 * 1024;

#[derive(Debug, Subcommand)]
pub enum ProfileCommand {
    /// Put a kernel, an EFI program or an ISO image into the library; a running appliance serves it within a second
    Add(AddArgs),
    /// List profiles, and the rules that say who boots them
    List,
    /// Show one profile
    Show { name: ProfileName },
    /// Take a profile away that no rule names
    Rm { name: ProfileName },
    /// Have machines boot a profile: rules are asked from the first to the last, and the first that matches wins
    Assign(AssignArgs),
    /// Take a rule away
    Unassign { rule: u32 },
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["kernel", "efi", "iso"]))]
pub struct AddArgs {
    name: ProfileName,
    /// The appliance's state directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/farrier")]
    state: PathBuf,
    /// A kernel
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// An initrd for the kernel; several are loaded in this order
    #[arg(long = "initrd", value_name = "FILE", conflicts_with_all = ["efi", "iso"])]
    initrds: Vec<PathBuf>,
    /// A word of the kernel's command line; `{node.name}`, `{node.mac}`, `{node.address}`, `{node.uuid}`,
    /// `{node.label.KEY}`, `{server}` and `{metadata}` stand for the values of the node that boots, `{preseed}`,
    /// `{kickstart}` and `{autoinstall}` for where an installer finds its answers
    #[arg(long = "arg", value_name = "WORD", conflicts_with_all = ["efi", "iso"], allow_hyphen_values = true)]
    arguments: Vec<ProfileArgument>,
    /// An EFI program
    #[arg(long, value_name = "FILE")]
    efi: Option<PathBuf>,
    /// An ISO image, attached by iPXE as a drive
    #[arg(long, value_name = "FILE")]
    iso: Option<PathBuf>,
    /// Each node boots it once for each rule, and never again
    #[arg(long)]
    one_shot: bool,
    /// What the kernel, program or image must hash to
    #[arg(long, value_name = "DIGEST")]
    sha256: Option<Digest>,
    /// One line for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Take the place of the profile of this name
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("who").required(true).args(["node", "label", "uuid", "mac_prefix", "firmware"]))]
pub struct AssignArgs {
    name: ProfileName,
    /// One node: name, MAC address, id or UUID
    #[arg(long)]
    node: Option<String>,
    /// Nodes with these labels: `rack=r1,owner` is all of rack r1 that have an owner
    #[arg(long, value_name = "SELECTOR")]
    label: Option<String>,
    /// The machine with this SMBIOS UUID
    #[arg(long)]
    uuid: Option<uuid::Uuid>,
    /// Machines whose MAC address begins with this, as in 52:54:00
    #[arg(long, value_name = "PREFIX")]
    mac_prefix: Option<String>,
    /// Machines with this firmware: bios, uefi-x64, …
    #[arg(long, value_parser = firmware)]
    firmware: Option<Firmware>,
    /// Ask this rule before that one
    #[arg(long, value_name = "RULE")]
    before: Option<u32>,
}

fn firmware(text: &str) -> Result<Firmware, String> {
    let known = || Firmware::ALL.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let found = Firmware::ALL.iter().copied().find(|firmware| firmware.to_string() == text);
    found.ok_or_else(|| format!("one of {} is wanted", known()))
}

impl AssignArgs {
    fn to(self) -> Option<(ProfileName, AssignedTo, Option<RuleNumber>)> {
        let AssignArgs { name, node, label, uuid, mac_prefix, firmware, before } = self;
        let to = node
            .map(AssignedTo::Node)
            .or(label.map(AssignedTo::Label))
            .or(uuid.map(AssignedTo::Uuid))
            .or(mac_prefix.map(AssignedTo::MacPrefix))
            .or(firmware.map(AssignedTo::Firmware))?;
        Some((name, to, before.map(RuleNumber)))
    }
}

pub(super) async fn run(
    command: ProfileCommand,
    client: &Client,
    json: bool,
    style: Style,
) -> Result<String, CommandError> {
    match command {
        ProfileCommand::Add(arguments) => add(arguments, json),
        ProfileCommand::List => {
            let profiles: Vec<ProfileEntry> = client.list("/api/v1/profiles").await?;
            let rules: Vec<AssignmentEntry> = client.list("/api/v1/assignments").await?;
            Ok(match json {
                true => json_text(&serde_json::json!({ "profiles": profiles, "assignments": rules })),
                false => listed(&profiles, &rules, style),
            })
        }
        ProfileCommand::Show { name } => {
            let profile: ProfileEntry = client.get(&format!("/api/v1/profiles/{name}")).await?;
            let path = format!("/api/v1/assignments?profile={name}");
            let rules: Vec<AssignmentEntry> = client.list(&path).await?;
            Ok(match json {
                true => json_text(&serde_json::json!({ "profile": profile, "assignments": rules })),
                false => shown(&profile, &rules, style),
            })
        }
        ProfileCommand::Rm { name } => {
            let gone: ProfileEntry = client.delete(&format!("/api/v1/profiles/{name}")).await?;
            Ok(if json { json_text(&gone) } else { format!("profile {name} is gone\n") })
        }
        ProfileCommand::Assign(arguments) => {
            let Some((profile, to, before)) = arguments.to() else {
                return Err(CommandError::Usage("say who is to boot it".to_owned()));
            };
            let request = AssignRequest { profile, to, before };
            let made: Assigned = client.post("/api/v1/assignments", &request).await?;
            Ok(if json { json_text(&made) } else { assigned(&made, style) })
        }
        ProfileCommand::Unassign { rule } => {
            let path = format!("/api/v1/assignments/{}", segment(&rule.to_string()));
            let gone: AssignmentEntry = client.delete(&path).await?;
            let told = || format!("rule {rule} is gone: {} no longer for {}\n", gone.profile, whom(&gone));
            Ok(if json { json_text(&gone) } else { told() })
        }
    }
}

fn add(arguments: AddArgs, json: bool) -> Result<String, CommandError> {
    let AddArgs { name, state, kernel, initrds, arguments, efi, iso, one_shot, sha256, description, replace } =
        arguments;
    let library = Library::open(&state).map_err(|error| failed(&error))?;
    if library.boot_profile(&name).is_some() && !replace {
        return Err(CommandError::Refused(format!(
            "there is a boot profile {name} already\n  way out: choose another name, or --replace it; nodes that are loading it now finish with what they began with"
        )));
    }
    // Until it is named, nobody else knows what the blobs are for.
    let until_named = library.hold().map_err(|error| failed(&error))?;
    let mut added: Vec<BlobRef> = Vec::new();
    let made = (|| {
        let mut put = |path: &Path| {
            let blob = store(&library, path)?;
            added.push(blob);
            Ok::<BlobRef, CommandError>(blob)
        };
        let (what, main) = match (&kernel, &efi, &iso) {
            (Some(path), _, _) => {
                let kernel = put(path)?;
                let initrds = initrds.iter().map(|path| put(path)).collect::<Result<_, _>>()?;
                (What::Kernel { kernel, initrds, arguments }, path)
            }
            (None, Some(path), _) => (What::EfiProgram { program: put(path)? }, path),
            (None, None, Some(path)) => (What::Iso { image: put(path)? }, path),
            (None, None, None) => return Err(CommandError::Usage("say what it is to boot".to_owned())),
        };
        let program = recognised(main, &what)?;
        let (_, blob) = what.main();
        if let Some(wanted) = sha256.filter(|wanted| *wanted != blob.digest) {
            return Err(CommandError::Refused(format!(
                "{}: its SHA-256 is {}, and {wanted} is wanted\n  way out: fetch it again, from who published that digest",
                main.display(),
                blob.digest
            )));
        }
        let profile = BootProfile { name, what, one_shot, description, program };
        profile.check().map_err(CommandError::Usage)?;
        library.publish_boot_profile(&profile).map_err(|error| failed(&error))?;
        Ok(profile)
    })();
    match made {
        Ok(profile) if json => Ok(json_text(&profile)),
        Ok(profile) => Ok(told(&profile)),
        Err(error) => {
            library.forget_blobs(until_named, &added);
            Err(error)
        }
    }
}

fn failed(error: &dyn std::error::Error) -> CommandError {
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    CommandError::Failed(format!("{error}{source}"))
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> CommandError {
    let path = path.display().to_string();
    move |error| CommandError::Usage(format!("{path} cannot be read: {error}"))
}

fn store(library: &Library, path: &Path) -> Result<BlobRef, CommandError> {
    let mut file = File::open(path).map_err(unreadable(path))?;
    if file.metadata().map_err(unreadable(path))?.is_dir() {
        return Err(CommandError::Usage(format!("{} is a directory", path.display())));
    }
    library.add(&mut file).map_err(|error| failed(&error))
}

/// Insists that the file is what it is said to be.
fn recognised(path: &Path, what: &What) -> Result<Program, CommandError> {
    let mut file = File::open(path).map_err(unreadable(path))?;
    let refused = |kind: &str, way_out: &str| {
        Err(CommandError::Usage(format!("{} is no {kind}\n  way out: {way_out}", path.display())))
    };
    // A signature stands at a program's end; an image is too large to read whole for its head.
    let limit = if what.kind() == ProfileKind::Iso { HEAD_BYTES } else { u64::MAX };
    let mut read = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(unreadable(path))?;
    file.take(limit).read_to_end(&mut read).map_err(unreadable(path))?;
    let program = executable::program(&read);
    match what.kind() {
        ProfileKind::Kernel if read.is_empty() => refused("kernel", "it is empty"),
        ProfileKind::EfiProgram if program.platform.is_none() => {
            refused("EFI program", "a PE file with the EFI subsystem is wanted, as memtest86+x64.efi is")
        }
        ProfileKind::Iso if !executable::is_iso(&read) => refused(
            "ISO image",
            "an image with an ISO 9660 file system is wanted; unpack it if it is compressed",
        ),
        ProfileKind::Kernel | ProfileKind::EfiProgram => Ok(program),
        ProfileKind::Iso => Ok(Program::default()),
    }
}

fn told(profile: &BootProfile) -> String {
    let BootProfile { name, what, program, one_shot, .. } = profile;
    let size = what.files().iter().map(|(_, blob)| blob.bytes).sum();
    let mut text = format!("added profile {name}: {}, {}", what.kind(), bytes(size));
    if what.kind() != ProfileKind::Iso {
        let platform = program.platform.map(|platform| platform.to_string());
        let runs = [program.bios.then(|| "bios".to_owned()), platform].into_iter().flatten();
        let runs: Vec<String> = runs.collect();
        if !runs.is_empty() {
            text.push_str(&format!(", for {}", runs.join(" and ")));
        }
        text.push_str(match program.signature {
            executable::Signature::Absent => ", not signed: Secure Boot refuses it",
            executable::Signature::Whole => ", signed",
            executable::Signature::Broken => ", changed after it was signed: Secure Boot refuses it",
        });
    }
    let whom = if *one_shot { "once" } else { "whenever they netboot" };
    let mut next = format!("`farrier profile assign {name} …` says who boots it {whom}");
    if profile.is_installer() {
        // First, for an installer that is merely booted finds no answers.
        next = format!("`farrier node deploy NODE --installer {name}` has it install a node; {next}");
    }
    format!("{text}\na running appliance serves it within a second; {next}\n")
}

fn whom(rule: &AssignmentEntry) -> String {
    match &rule.to {
        AssignedTo::Node(id) => match &rule.node_name {
            Some(name) => format!("node {name}"),
            None => format!("node {id}"),
        },
        AssignedTo::Label(selector) => format!("label {selector}"),
        AssignedTo::Uuid(uuid) => format!("UUID {uuid}"),
        AssignedTo::MacPrefix(prefix) => format!("MAC prefix {prefix}"),
        AssignedTo::Firmware(firmware) => format!("firmware {firmware}"),
    }
}

fn assigned(made: &Assigned, style: Style) -> String {
    let rule = &made.assignment;
    let mut text = format!("rule {}: {} boots {}\n", rule.rule, inert(&whom(rule)), rule.profile);
    for warning in &made.warnings {
        text.push_str(&format!("{}\n", style.paint(Tone::Attention, &inert(&format!("warning: {warning}")))));
    }
    text
}

fn kind_word(profile: &ProfileEntry) -> String {
    profile.kind.map_or_else(|| "damaged".to_owned(), |kind| kind.to_string())
}

fn listed(profiles: &[ProfileEntry], rules: &[AssignmentEntry], style: Style) -> String {
    if profiles.is_empty() && rules.is_empty() {
        return "no boot profiles; `farrier profile add` makes one\n".to_owned();
    }
    let mut table = Table::new(&["PROFILE", "KIND", ">SIZE", "SIGNED", "RULES", "DESCRIPTION"]);
    for profile in profiles {
        let size = profile.files.iter().map(|file| file.bytes).sum();
        let rules: Vec<String> = profile.rules.iter().map(ToString::to_string).collect();
        let kind =
            if profile.one_shot { format!("{}, once", kind_word(profile)) } else { kind_word(profile) };
        let told = profile.damage.clone().or_else(|| profile.description.clone());
        let tone = if profile.served { Tone::Plain } else { Tone::Bad };
        let size = if profile.served { bytes(size) } else { "-".to_owned() };
        let rules = if rules.is_empty() { "-".to_owned() } else { rules.join(",") };
        let signed = or_dash(profile.signature.map(signed_word));
        table.row(tone, [profile.name.clone(), kind, size, signed, rules, told.unwrap_or_default()]);
    }
    let mut text = table.render(style);
    if !rules.is_empty() {
        text.push('\n');
        text.push_str(&rule_table(rules).render(style));
    }
    text
}

fn signed_word(signature: SignatureEntry) -> &'static str {
    match signature {
        SignatureEntry::Absent => "no",
        SignatureEntry::Whole => "yes",
        SignatureEntry::Broken => "broken",
    }
}

fn rule_table(rules: &[AssignmentEntry]) -> Table {
    let mut table = Table::new(&[">RULE", "WHO", "PROFILE", "STARTED BY"]);
    for rule in rules {
        let runs = match rule.runs.len() {
            0 => "-".to_owned(),
            1 => rule.runs[0].mac.to_string(),
            count => format!("{count} nodes"),
        };
        table.row(Tone::Plain, [rule.rule.to_string(), whom(rule), rule.profile.to_string(), runs]);
    }
    table
}

fn shown(profile: &ProfileEntry, rules: &[AssignmentEntry], style: Style) -> String {
    let mut text = format!("{}\n", style.paint(Tone::Heading, &inert(&profile.name)));
    let mut line = |name: &str, value: &str| text.push_str(&format!("  {name:<12} {}\n", inert(value)));
    line("kind", &kind_word(profile));
    if let Some(description) = &profile.description {
        line("description", description);
    }
    if profile.one_shot {
        line("one-shot", "each node boots it once for each rule");
    }
    if let Some(damage) = &profile.damage {
        line("damage", damage);
    }
    if let Some(platform) = profile.platform {
        line("platform", &platform.to_string());
    }
    if let Some(signature) = profile.signature {
        line("signed", signed_word(signature));
    }
    for file in &profile.files {
        line("file", &format!("{}, {}, sha256 {}", file.name, bytes(file.bytes), file.digest));
    }
    if !profile.arguments.is_empty() {
        line("arguments", &profile.arguments.join(" "));
    }
    for rule in rules {
        line("rule", &format!("{}: {}", rule.rule, whom(rule)));
        for run in &rule.runs {
            let state = match run.state {
                RunStateEntry::Started => "started",
                RunStateEntry::Spent => "spent",
            };
            line("", &format!("{state} by {} at {}", run.mac, run.at));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::image::disk::gc::{CollectError, collect};
    use crate::image::disk::place::Place;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: ProfileCommand,
    }

    fn read(words: &str) -> Result<ProfileCommand, String> {
        let line = Line::try_parse_from(["profile"].into_iter().chain(words.split_whitespace()));
        line.map(|line| line.command).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_collected_while_a_profile_is_added() {
        let state = tempfile::tempdir().unwrap();
        let path = |name: &str| state.path().join(name).display().to_string();
        std::fs::write(path("kernel"), "a kernel").unwrap();
        nix::unistd::mkfifo(path("initrd").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let words = format!(
            "add live --state {} --kernel {} --initrd {}",
            path("state"),
            path("kernel"),
            path("initrd")
        );
        let Ok(ProfileCommand::Add(arguments)) = read(&words) else { panic!("{words}") };
        let adding = std::thread::spawn(move || add(arguments, false));
        // Opens once the other end is read: the kernel is in the library then, and nothing names it.
        let mut initrd = File::options().write(true).open(path("initrd")).unwrap();
        let place = Place::open(&state.path().join("state")).unwrap();
        assert!(matches!(collect(&place), Err(CollectError::Busy)));
        std::io::Write::write_all(&mut initrd, b"an initrd").unwrap();
        drop(initrd);
        adding.join().unwrap().unwrap();
        assert_eq!(collect(&place).unwrap().kept_blobs, 2);

        // One that is refused leaves nothing behind, unless somebody else is adding at the same time.
        let library = Library::open(&state.path().join("state")).unwrap();
        std::fs::write(path("other"), "another kernel").unwrap();
        let wrong = "0".repeat(64);
        let words = format!("add x --state {} --kernel {} --sha256 {wrong}", path("state"), path("other"));
        let refused = || {
            let Ok(ProfileCommand::Add(arguments)) = read(&words) else { panic!("{words}") };
            assert!(matches!(add(arguments, false), Err(CommandError::Refused(_))));
        };
        let held = library.hold().unwrap();
        refused();
        drop(held);
        assert_eq!(collect(&place).unwrap().blobs, 1);
        refused();
        assert_eq!(collect(&place).unwrap().blobs, 0);
    }

    #[test]
    fn exactly_one_thing_is_booted_by_exactly_one_kind_of_machine() {
        for good in [
            "add live --kernel k --initrd a --initrd b --arg quiet --arg h={node.name} --one-shot",
            "add mem --efi m.efi --sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "add disc --iso d.iso --description x",
            "assign live --node n1",
            "assign live --label rack=r1 --before 3",
            "assign live --firmware uefi-x64",
        ] {
            assert!(read(good).is_ok(), "{good}: {:?}", read(good));
        }
        for (bad, why) in [
            ("add live", "required"),
            ("add live --kernel k --efi e", "cannot be used with"),
            ("add live --efi e --arg x", "cannot be used with"),
            ("add live --arg x", "required"),
            ("add live --kernel k --arg {node.serial}", "node.label.KEY"),
            ("add Live --kernel k", "not a profile name"),
            ("assign live", "required"),
            ("assign live --node a --label b", "cannot be used with"),
            ("assign live --firmware vax", "uefi-x64"),
            ("unassign one", "invalid"),
        ] {
            let refused = read(bad).unwrap_err();
            assert!(refused.contains(why), "{bad}: {refused}");
        }
    }

    #[test]
    fn a_file_that_is_not_what_it_is_said_to_be_is_refused_and_leaves_nothing() {
        let here = tempfile::tempdir().unwrap();
        let state = here.path().join("state");
        let path = here.path().join("file");
        std::fs::write(&path, "no program").unwrap();
        let add = |words: &str| {
            let line = format!("add x --state {} {words} {}", state.display(), path.display());
            let ProfileCommand::Add(arguments) = read(&line).unwrap() else { panic!("add") };
            super::add(arguments, false)
        };
        for (words, why) in [
            ("--efi", "is no EFI program"),
            ("--iso", "is no ISO image"),
            (
                "--sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 --kernel",
                "its SHA-256 is",
            ),
        ] {
            let refused = add(words).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
            assert_eq!(std::fs::read_dir(state.join("images/blobs")).unwrap().count(), 0, "{words}");
        }
        assert!(add("--kernel").unwrap().starts_with("added profile x: kernel, 10"));
        let again = add("--kernel").unwrap_err();
        assert_eq!(again.exit_code(), 4, "{again}");
        assert!(add("--replace --kernel").is_ok());
    }
}
