//! Debian packages as a source of files: found and downloaded by apt, which also checks their digests and signatures,
//! unpacked by dpkg-deb below a directory of ours, never installed.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::image::recipe::is_package_name;

/// How often a running download is looked at to move the progress bar.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Characters of a tool's complaint that go into our message; apt can be chatty.
const COMPLAINT_MAX: usize = 600;

/// One version of a package in apt's lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub architecture: String,
    /// Bytes of the `.deb`.
    pub size: u64,
    pub sha256: String,
    /// What it needs to run and to be installed.
    pub depends: Vec<String>,
}

impl Package {
    /// Exactly this version of this architecture.
    fn for_apt(&self) -> String {
        match self.architecture.as_str() {
            "all" => format!("{}={}", self.name, self.version),
            architecture => format!("{}:{architecture}={}", self.name, self.version),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    #[error(
        "`{tool}` is not installed; it is in Debian's package `{package}`. \
         On other distributions build the image on a Debian machine and copy the state directory's `images`"
    )]
    NoTool { tool: String, package: &'static str },
    #[error("`{tool}` cannot be started")]
    Start { tool: String, source: io::Error },
    #[error("`{command}` failed: {complaint}")]
    Tool { command: String, complaint: String },
    #[error("`{name}` is not a Debian package name")]
    Name { name: String },
    #[error("apt knows no package `{name}`: {complaint}; `apt-get update` as root refreshes its lists")]
    Unknown { name: String, complaint: String },
    #[error("package `{name}` depends on no package whose name starts with `{prefix}`")]
    NoDependency { name: String, prefix: String },
    #[error("{}: {what}", path.display())]
    File { path: PathBuf, what: &'static str, source: io::Error },
    #[error("package `{name}` has no file {}", path.display())]
    NoFile { name: String, path: PathBuf },
}

/// apt, with a directory to keep downloads in.
#[derive(Debug)]
pub struct Packages {
    cache: PathBuf,
}

impl Packages {
    /// Downloads are kept below `<state>/cache/packages`.
    pub fn open(state: &Path) -> Result<Packages, PackageError> {
        let cache = state.join("cache/packages");
        fs::create_dir_all(&cache).map_err(|source| PackageError::File {
            path: cache.clone(),
            what: "the package cache cannot be made",
            source,
        })?;
        Ok(Packages { cache })
    }

    /// The version apt would install. `name` may end in `:arm64` or another architecture this machine's apt knows.
    pub fn candidate(&self, name: &str) -> Result<Package, PackageError> {
        let text = describe(&[name]).map_err(|error| unknown(name, error))?;
        parse_stanza(&text).ok_or_else(|| PackageError::Unknown {
            name: name.to_owned(),
            complaint: "its description is incomplete".to_owned(),
        })
    }

    /// Those of `names` that apt knows as packages of their own; asked for together, for each question takes apt a while.
    pub fn candidates(&self, names: &[&str]) -> Result<Vec<Package>, PackageError> {
        let text = match describe(names) {
            Ok(text) => text,
            // One that is only virtual fails them all.
            Err(PackageError::Tool { .. }) => {
                return Ok(names.iter().flat_map(|name| self.candidate(name)).collect());
            }
            Err(error) => return Err(error),
        };
        Ok(text.split("\n\n").filter_map(parse_stanza).collect())
    }

    /// The package a meta package stands for, e.g. `linux-image-amd64` → `linux-image-6.1.0-56-amd64`.
    pub fn behind(&self, meta: &str, prefix: &str) -> Result<Package, PackageError> {
        let package = self.candidate(meta)?;
        let dependency =
            package.depends.iter().find(|name| name.starts_with(prefix)).ok_or_else(|| {
                PackageError::NoDependency { name: meta.to_owned(), prefix: prefix.to_owned() }
            })?;
        self.candidate(dependency)
    }

    /// Downloads a package unless it is here already; apt verifies what it downloads.
    pub fn download(&self, package: &Package, progress: &ProgressBar) -> Result<PathBuf, PackageError> {
        // apt writes the colon of an epoch as %3a.
        let version = package.version.replace(':', "%3a");
        let file = self.cache.join(format!("{}_{version}_{}.deb", package.name, package.architecture));
        if is_whole(&file, package) {
            return Ok(file);
        }
        progress.set_style(download_style());
        progress.set_length(package.size);
        progress.set_position(0);
        // In a directory of its own: an interrupted download never looks like a finished one.
        let scratch = Scratch::create(&self.cache)?;
        let mut command = Command::new("apt-get");
        // As root apt would download as user `_apt`, which cannot write here, and warn.
        command.args(["-q", "-o", "APT::Sandbox::User=root", "download"]);
        command.arg(package.for_apt()).current_dir(&scratch.path);
        let ran = run_watched(&mut command, "apt", || progress.set_position(bytes_in(&scratch.path)));
        progress.set_style(spinner_style());
        ran?;
        let downloaded = fs::read_dir(&scratch.path)
            .ok()
            .and_then(|entries| {
                entries
                    .flatten()
                    .map(|entry| entry.path())
                    .find(|path| path.extension() == Some(OsStr::new("deb")))
            })
            .ok_or_else(|| PackageError::Tool {
                command: "apt-get download".to_owned(),
                complaint: format!("no file came of it for {}", package.name),
            })?;
        fs::rename(&downloaded, &file).map_err(|source| PackageError::File {
            path: file.clone(),
            what: "the downloaded package cannot be kept",
            source,
        })?;
        Ok(file)
    }

    /// A directory beside the downloads, for a build to work in.
    pub fn scratch(&self) -> Result<Scratch, PackageError> {
        Scratch::create(&self.cache)
    }

    /// A package's files below a directory that goes away with the value returned.
    pub fn unpack(&self, package: &Package, progress: &ProgressBar) -> Result<Scratch, PackageError> {
        let file = self.download(package, progress)?;
        let scratch = Scratch::create(&self.cache)?;
        run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&scratch.path), "dpkg")?;
        Ok(scratch)
    }

    /// The bytes of one installed path of a package.
    pub fn read_file(
        &self,
        package: &Package,
        path: &Path,
        progress: &ProgressBar,
    ) -> Result<Vec<u8>, PackageError> {
        self.unpack(package, progress)?
            .read(path)?
            .ok_or_else(|| PackageError::NoFile { name: package.name.clone(), path: path.to_owned() })
    }
}

/// Stanzas of packages, one after the other.
fn describe(names: &[&str]) -> Result<String, PackageError> {
    for name in names {
        let (plain, architecture) = name.split_once(':').unwrap_or((name, "all"));
        if !is_package_name(plain) || !architecture.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(PackageError::Name { name: name.escape_default().collect() });
        }
    }
    let output = run(Command::new("apt-cache").args(["show", "--no-all-versions"]).args(names), "apt")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn unknown(name: &str, error: PackageError) -> PackageError {
    match error {
        PackageError::Tool { complaint, .. } => PackageError::Unknown { name: name.to_owned(), complaint },
        other => other,
    }
}

pub fn spinner_style() -> ProgressStyle {
    style("{spinner} {msg} ({elapsed})")
}

fn download_style() -> ProgressStyle {
    style("{spinner} {msg} {bar:30} {bytes}/{total_bytes}")
}

fn style(template: &str) -> ProgressStyle {
    // Only our two templates come here, and a test parses both.
    ProgressStyle::with_template(template).expect("a valid progress template")
}

fn is_whole(file: &Path, package: &Package) -> bool {
    if fs::metadata(file).map(|metadata| metadata.len()).ok() != Some(package.size) {
        return false;
    }
    // Kept for months, perhaps: hashed again before it is trusted again.
    fs::read(file).is_ok_and(|bytes| crate::image::digest::Digest::of(&bytes).to_string() == package.sha256)
}

fn bytes_in(directory: &Path) -> u64 {
    fs::read_dir(directory)
        .map(|entries| {
            entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|data| data.len()).sum()
        })
        .unwrap_or(0)
}

/// One stanza of `apt-cache show`. Of alternatives in `Depends` the first is taken.
fn parse_stanza(text: &str) -> Option<Package> {
    let field = |key: &str| {
        text.lines()
            .take_while(|line| !line.is_empty())
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':').map(str::trim))
    };
    let all = ["Depends", "Pre-Depends"].into_iter().filter_map(field).flat_map(|list| list.split(','));
    let depends = all.filter_map(|dependency| {
        dependency.split_whitespace().next().map(|name| name.split(':').next().unwrap_or(name).to_owned())
    });
    Some(Package {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        architecture: field("Architecture")?.to_owned(),
        size: field("Size")?.parse().ok()?,
        sha256: field("SHA256")?.to_owned(),
        depends: depends.collect(),
    })
}

/// A directory that is removed with the value.
#[derive(Debug)]
pub struct Scratch {
    pub path: PathBuf,
}

impl Scratch {
    fn create(parent: &Path) -> Result<Scratch, PackageError> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!(".work-{}-{number}", std::process::id()));
        // A leftover of a process that died with our id.
        let _ = fs::remove_dir_all(&path);
        match fs::create_dir(&path) {
            Ok(()) => Ok(Scratch { path }),
            Err(source) => Err(PackageError::File { path, what: "the directory cannot be made", source }),
        }
    }
}

impl Scratch {
    /// The bytes of a file in it, by its path as if this were the root; `None` where there is none. Links stay inside:
    /// one that is absolute or climbs out is not followed to this machine's files.
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, PackageError> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let places = self.path.join(relative).canonicalize().ok().zip(self.path.canonicalize().ok());
        let Some((file, _)) = places.filter(|(file, root)| file.starts_with(root) && file.is_file()) else {
            return Ok(None);
        };
        match fs::read(&file) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(source) => Err(PackageError::File { path: file, what: "it cannot be read", source }),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind only takes space, and the next run with our id removes it.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Runs a tool to its end. `package` is where Debian has it.
pub fn run(command: &mut Command, package: &'static str) -> Result<Output, PackageError> {
    run_watched(command, package, || {})
}

fn run_watched(
    command: &mut Command,
    package: &'static str,
    mut look: impl FnMut(),
) -> Result<Output, PackageError> {
    let tool = command.get_program().to_string_lossy().into_owned();
    // depmod lives where users other than root do not look; messages are read by us and by people, in one language.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    command
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => PackageError::NoTool { tool: tool.clone(), package },
        _ => PackageError::Start { tool: tool.clone(), source },
    })?;
    let (sender, ended) = channel();
    let waiter = std::thread::spawn(move || {
        let output = child.wait_with_output();
        // Received unless we are unwinding.
        let _ = sender.send(());
        output
    });
    while matches!(ended.recv_timeout(LOOK_EVERY), Err(RecvTimeoutError::Timeout)) {
        look();
    }
    let output = match waiter.join() {
        Ok(Ok(output)) => output,
        Ok(Err(source)) => return Err(PackageError::Start { tool, source }),
        Err(panic) => std::panic::resume_unwind(panic),
    };
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let complaint: String =
        said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(COMPLAINT_MAX).collect();
    let arguments = command.get_args().map(|argument| format!(" {}", argument.to_string_lossy()));
    Err(PackageError::Tool { command: tool + &arguments.collect::<String>(), complaint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_progress_templates_are_valid() {
        let (_, _) = (spinner_style(), download_style());
    }

    #[test]
    fn a_stanza_becomes_a_package() {
        let text = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nArchitecture: amd64\n\
                    Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), perl:any, a | b\n\
                    Description: Linux\n more text\nSize: 1504\nSHA256: 00be\n\nPackage: other\n";
        let package = parse_stanza(text).unwrap();
        assert_eq!(package.depends, ["linux-image-6.1.0-56-cloud-amd64", "perl", "a"]);
        assert_eq!((package.size, package.version.as_str()), (1504, "6.1.192-2"));
        assert_eq!(package.for_apt(), "linux-image-cloud-amd64:amd64=6.1.192-2");
        assert_eq!(parse_stanza("Package: x\n"), None);
    }

    #[test]
    fn a_missing_tool_is_named_with_its_package() {
        let error = run(&mut Command::new("no-such-tool-anywhere"), "kmod").unwrap_err().to_string();
        assert!(error.contains("`no-such-tool-anywhere` is not installed"), "{error}");
        assert!(error.contains("`kmod`"), "{error}");
    }

    #[test]
    fn a_failing_tool_is_quoted() {
        let error = run(Command::new("ls").arg("/no/such/place"), "coreutils").unwrap_err().to_string();
        assert!(error.contains("ls /no/such/place") && error.contains("No such file"), "{error}");
    }
}
