//! The files a confined appliance reaches, and no TCP connection that it would begin itself.
//!
//! Nothing may be executed. Beneath the state directory everything else is allowed; the rest is read only. Rules hold
//! for directories as they are at the start, which is why their names are fixed then ([`Config::fixed_at_start`]).
//!
//! [`Config::fixed_at_start`]: crate::config::Config::fixed_at_start

use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Reach;
use crate::config::TlsConfig;

/// The newest the rules below know of; an older kernel enforces what it can.
const KNOWN: ABI = ABI::V6;

/// What is read beside the configuration: names of users and groups, what the C library and SQLite ask for, and what the
/// kernel tells of links and processes, for the guard of the bridge.
const READ: [&str; 6] = ["/etc/passwd", "/etc/group", "/dev/random", "/dev/urandom", "/proc", "/sys"];

/// `full`, `partial` (an older kernel) or `off`.
pub(super) fn restrict(reach: &Reach<'_>) -> &'static str {
    told(enforce(reach))
}

/// The same without a single file.
pub(super) fn restrict_to_nothing() -> &'static str {
    let ruled = nothing_yet(Scope::from_all(KNOWN)).and_then(RulesetCreated::restrict_self);
    told(ruled.map(|restricted| restricted.ruleset))
}

fn told(ruled: Result<RulesetStatus, RulesetError>) -> &'static str {
    match ruled {
        Ok(RulesetStatus::FullyEnforced) => "full",
        Ok(RulesetStatus::PartiallyEnforced) => "partial",
        Ok(RulesetStatus::NotEnforced) => "off",
        Err(error) => {
            tracing::warn!(reason = %error, "Landlock refuses the rules");
            "off"
        }
    }
}

fn enforce(reach: &Reach<'_>) -> Result<RulesetStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let own = AccessFs::from_all(KNOWN)
        & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
    let mut rules = nothing_yet(Scope::Signal.into())?;
    rules = beneath(rules, &reach.config.store.path, own)?;
    // A library that several appliances share is a link to somewhere else.
    for name in ["images", "loaders"] {
        if let Ok(shared) = fs::canonicalize(reach.config.store.path.join(name)) {
            rules = beneath(rules, &shared, own)?;
        }
    }
    for path in read_only(reach) {
        rules = beneath(rules, &path, read)?;
    }
    // The socket's name goes when we do.
    if let Some(directory) = reach.config.operator.socket.parent() {
        rules = beneath(rules, directory, AccessFs::RemoveFile.into())?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// Rules that allow nothing, before something is added.
fn nothing_yet(scope: BitFlags<Scope>) -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(scope)?
        .create()
}

fn beneath(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    // What is not there cannot be reached.
    let Ok(opened) = PathFd::new(path) else { return Ok(rules) };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(KNOWN) };
    rules.add_rule(PathBeneath::new(opened, access))
}

fn read_only(reach: &Reach<'_>) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = READ.iter().map(PathBuf::from).collect();
    // A package may keep a loader elsewhere and link to it, and whoever renews certificates does. Both are replaced, not
    // written, so it is the directory that counts.
    let certificates = match &reach.config.operator.tls {
        Some(TlsConfig::Files { certificate, key }) => vec![certificate, key],
        Some(TlsConfig::SelfSigned) | None => Vec::new(),
    };
    let kept = |path: &PathBuf| fs::canonicalize(path).ok()?.parent().map(Path::to_owned);
    let replaced = || reach.loaders.iter().chain(certificates.iter().copied());
    paths.extend(replaced().filter_map(kept));
    paths.extend(replaced().filter_map(|path| path.parent()).map(Path::to_owned));
    // An editor replaces a file, so it is the directory that counts.
    let directory = reach.config_file.parent().filter(|path| !path.as_os_str().is_empty());
    paths.push(directory.unwrap_or(Path::new(".")).to_owned());
    if let Some(consoles) = &reach.config.operator.consoles {
        paths.push(consoles.clone());
        paths.extend(targets_of_links(consoles));
    }
    paths
}

/// Whoever keeps consoles may keep them elsewhere, under other names, and link to them.
fn targets_of_links(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let target = |entry: fs::DirEntry| {
        let target = directory.join(fs::read_link(entry.path()).ok()?);
        fs::canonicalize(target.parent()?).ok()
    };
    let mut targets: Vec<PathBuf> = entries.filter_map(target).collect();
    targets.sort();
    targets.dedup();
    targets
}
