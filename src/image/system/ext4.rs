//! A tree as an ext4 file system, made by nobody in particular and without a mount: `mke2fs` makes an empty one,
//! `debugfs` fills it from a script.
//!
//! `mke2fs -d` would take a directory in one step, but then owners are the builder's, change times the build's, and the
//! order that of the host's directories. From a script everything is said, so the same tree is the same bytes.
//! `e2fsck` has the last word: a script's line that debugfs passed over would show there or in the counts.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use uuid::Uuid;

use crate::image::package::{PackageError, run};
use crate::image::system::tree::{Content, Kind, Node, Tree, TreeError};

const PACKAGE: &str = "e2fsprogs";
pub const BLOCK_BYTES: u64 = 4096;
/// What GRUB 2.06 can read; newer mke2fs would add features that it cannot.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,\
                        sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// Directories and files every ext4 has: the root, `lost+found` and the reserved ones.
const INODES_RESERVED: u64 = 11;

#[derive(Clone, Debug)]
pub struct Ext4<'a> {
    pub label: &'a str,
    pub uuid: Uuid,
    pub bytes: u64,
    /// The time everything in it is from, seconds since 1970.
    pub time: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    #[error(transparent)]
    Tool(#[from] PackageError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("{} cannot be written", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("debugfs could not fill the file system: {complaint}")]
    Script { complaint: String },
    #[error("the file system has {found} files and directories instead of {wanted}")]
    Count { found: u64, wanted: u64 },
    #[error("`{path}` points to `{target}`, which cannot be written in debugfs's language")]
    Symlink { path: String, target: String },
}

impl Ext4<'_> {
    /// Writes the file system to the new file `image`; `scratch` is a directory of the caller's for what is in between.
    pub fn write(&self, tree: &Tree, image: &Path, scratch: &Path) -> Result<(), Ext4Error> {
        tree.check()?;
        let failed = |path: &Path, source| Ext4Error::Write { path: path.to_owned(), source };
        let file = fs::File::create(image).map_err(|source| failed(image, source))?;
        file.set_len(self.bytes).map_err(|source| failed(image, source))?;
        drop(file);
        // The host's mke2fs.conf must not have a say.
        let configuration = scratch.join("mke2fs.conf");
        fs::write(&configuration, "[defaults]\n").map_err(|source| failed(&configuration, source))?;
        let uuid = self.uuid.to_string();
        let mut make = self.tool("mke2fs");
        make.env("MKE2FS_CONFIG", &configuration);
        make.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "1", "-e", "remount-ro"]);
        make.args(["-O", FEATURES, "-U", &uuid, "-L", self.label]);
        // Enough for a small root that grows: a file system's inodes per block group never change.
        make.args(["-i", "16384", "-J", "size=16", "-E"]);
        make.arg(format!("hash_seed={uuid},nodiscard,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"));
        run(make.arg(image), PACKAGE)?;
        let script = self.script(tree, scratch)?;
        let path = scratch.join("debugfs.script");
        fs::write(&path, script).map_err(|source| failed(&path, source))?;
        let output = run(self.tool("debugfs").args(["-w", "-f"]).arg(&path).arg(image), PACKAGE)?;
        let said = String::from_utf8_lossy(&output.stderr);
        // Its version is all it has to say when all went well.
        let complaints: Vec<&str> =
            said.lines().filter(|line| !line.starts_with("debugfs ") && !line.trim().is_empty()).collect();
        if let Some(first) = complaints.first() {
            return Err(Ext4Error::Script { complaint: (*first).to_owned() });
        }
        self.check(tree, image)
    }

    fn check(&self, tree: &Tree, image: &Path) -> Result<(), Ext4Error> {
        run(self.tool("e2fsck").args(["-f", "-n"]).arg(image), PACKAGE)?;
        let output = run(self.tool("dumpe2fs").arg("-h").arg(image), PACKAGE)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let number = |key: &str| -> u64 {
            let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        let found = number("Inode count").saturating_sub(number("Free inodes"));
        let links = tree.iter().filter(|(_, node)| matches!(node.kind, Kind::HardLink(_))).count();
        let wanted = INODES_RESERVED + (tree.len() - links) as u64;
        if found == wanted { Ok(()) } else { Err(Ext4Error::Count { found, wanted }) }
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.env("E2FSPROGS_FAKE_TIME", self.time.to_string()).env("TZ", "UTC");
        command
    }

    /// What debugfs does, line by line. Files are written from `scratch`, where those in memory are put first.
    fn script(&self, tree: &Tree, scratch: &Path) -> Result<String, Ext4Error> {
        let mut out = String::new();
        let mut current = None;
        for (number, (path, node)) in tree.iter().enumerate() {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            if current != Some(parent) {
                line(&mut out, format_args!("cd \"/{parent}\""));
                current = Some(parent);
            }
            match &node.kind {
                Kind::Directory => line(&mut out, format_args!("mkdir \"{name}\"")),
                Kind::File(Content::Kept(source, _)) => {
                    line(&mut out, format_args!("write \"{}\" \"{name}\"", source.display()));
                }
                Kind::File(Content::Bytes(bytes)) => {
                    let source = scratch.join(format!("file-{number}"));
                    fs::write(&source, bytes)
                        .map_err(|error| Ext4Error::Write { path: source.clone(), source: error })?;
                    line(&mut out, format_args!("write \"{}\" \"{name}\"", source.display()));
                }
                Kind::Symlink(target) => {
                    if target.is_empty() || target.contains(|c: char| c == '"' || c.is_control()) {
                        let target = target.escape_default().collect();
                        return Err(Ext4Error::Symlink { path: path.to_owned(), target });
                    }
                    line(&mut out, format_args!("symlink \"{name}\" \"{target}\""));
                }
                // Written when all files are there, below.
                Kind::HardLink(_) => continue,
                Kind::Device { block, major, minor } => {
                    let letter = if *block { 'b' } else { 'c' };
                    line(&mut out, format_args!("mknod \"{name}\" {letter} {major} {minor}"));
                }
            }
            self.fields(&mut out, name, node, number, scratch)?;
        }
        hard_links(&mut out, tree);
        // Times of directories change with what is put into them.
        for (path, node) in tree.iter() {
            if let (Kind::Directory, Some(modified)) = (&node.kind, node.modified) {
                line(&mut out, format_args!("sif \"/{path}\" mtime @{modified}"));
            }
        }
        Ok(out)
    }

    /// Mode with the kind's bits, owner, times, attributes.
    fn fields(
        &self,
        out: &mut String,
        name: &str,
        node: &Node,
        number: usize,
        scratch: &Path,
    ) -> Result<(), Ext4Error> {
        let kind = match node.kind {
            Kind::Directory => 0o040_000,
            Kind::File(_) | Kind::HardLink(_) => 0o100_000,
            Kind::Symlink(_) => 0o120_000,
            Kind::Device { block: true, .. } => 0o060_000,
            Kind::Device { block: false, .. } => 0o020_000,
        };
        line(out, format_args!("sif \"{name}\" mode 0{:o}", kind | node.permissions));
        if node.owner != 0 {
            line(out, format_args!("sif \"{name}\" uid {}", node.owner));
        }
        if node.group != 0 {
            line(out, format_args!("sif \"{name}\" gid {}", node.group));
        }
        if let Some(modified) = node.modified {
            line(out, format_args!("sif \"{name}\" mtime @{modified}"));
        }
        for (index, (attribute, value)) in node.attributes.iter().enumerate() {
            let source = scratch.join(format!("attribute-{number}-{index}"));
            fs::write(&source, value)
                .map_err(|error| Ext4Error::Write { path: source.clone(), source: error })?;
            line(out, format_args!("ea_set -f \"{}\" \"{name}\" {attribute}", source.display()));
        }
        Ok(())
    }
}

/// debugfs adds names, but does not count them.
fn hard_links(out: &mut String, tree: &Tree) {
    let mut counts = std::collections::BTreeMap::new();
    for (path, node) in tree.iter() {
        if let Kind::HardLink(target) = &node.kind {
            line(out, format_args!("ln \"/{target}\" \"/{path}\""));
            *counts.entry(target.as_str()).or_insert(1_u32) += 1;
        }
    }
    for (target, names) in counts {
        line(out, format_args!("sif \"/{target}\" links_count {names}"));
    }
}

fn line(out: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(words);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::Digest;

    fn sample() -> Tree {
        let mut tree = Tree::default();
        tree.file("bin/tool", 0o4755, vec![7; 10_000]).unwrap();
        tree.file("etc/with space\\x2d", 0o600, b"secret".to_vec()).unwrap();
        tree.symlink("sbin", "bin").unwrap();
        tree.add("bin/other", Node::new(Kind::HardLink("bin/tool".to_owned()), 0o4755)).unwrap();
        let device = Node::new(Kind::Device { block: false, major: 5, minor: 1 }, 0o600);
        tree.add("dev/console", device).unwrap();
        let mut owned = Node::new(Kind::File(Content::Bytes(b"x".to_vec())), 0o640);
        (owned.owner, owned.group, owned.modified) = (70_000, 42, Some(1_000_000_000));
        owned.attributes.insert("user.note".to_owned(), b"hello".to_vec());
        tree.add("var/owned", owned).unwrap();
        tree
    }

    const SMALL: Ext4<'_> =
        Ext4 { label: "root", uuid: Uuid::from_u128(7), bytes: 64 << 20, time: 1_700_000_000 };

    fn made(directory: &Path, tree: &Tree) -> PathBuf {
        let (image, scratch) = (directory.join("image"), directory.join("scratch"));
        fs::create_dir_all(&scratch).unwrap();
        SMALL.write(tree, &image, &scratch).unwrap();
        image
    }

    fn told(image: &Path, request: &str) -> String {
        let output = run(Command::new("debugfs").args(["-R", request]).arg(image), PACKAGE).unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn what_is_in_the_tree_is_in_the_file_system() {
        let directory = tempfile::tempdir().unwrap();
        let image = made(directory.path(), &sample());
        let tool = told(&image, "stat /bin/other");
        assert!(tool.contains("Mode:  04755") && tool.contains("Links: 2"), "{tool}");
        let owned = told(&image, "stat /var/owned");
        for wanted in ["User: 70000   Group:    42", "Mode:  0640", "mtime: 0x3b9aca00", "user.note (5)"] {
            assert!(owned.contains(wanted), "{wanted}: {owned}");
        }
        assert_eq!(told(&image, "cat \"/etc/with space\\x2d\""), "secret");
        assert!(told(&image, "stat /sbin").contains("Fast link dest: \"bin\""));
        assert!(told(&image, "stat /dev/console").contains("Device major/minor number: 05:01"));
    }

    #[test]
    fn the_same_tree_is_the_same_bytes() {
        let digest = |tree: &Tree| {
            let directory = tempfile::tempdir().unwrap();
            Digest::of(&fs::read(made(directory.path(), tree)).unwrap())
        };
        assert_eq!(digest(&sample()), digest(&sample()));
        let mut other = sample();
        other.file("etc/with space\\x2d", 0o600, b"Secret".to_vec()).unwrap();
        assert_ne!(digest(&sample()), digest(&other));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut tree = Tree::default();
        tree.file("large", 0o644, vec![1; 70 << 20]).unwrap();
        let scratch = directory.path().join("scratch");
        fs::create_dir(&scratch).unwrap();
        let error = SMALL.write(&tree, &directory.path().join("image"), &scratch).unwrap_err();
        assert!(matches!(error, Ext4Error::Script { .. }), "{error}");
    }
}
