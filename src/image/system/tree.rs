//! The files of a system that is being built: what each is, whose it is, and where its bytes are.
//!
//! Sorted by path, so that whatever is made of it does not depend on the order it was put together in.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

/// Files by path relative to the root; parents come by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    /// Permission bits only.
    pub permissions: u32,
    pub owner: u32,
    pub group: u32,
    /// Seconds since 1970; `None` is the time of the image.
    pub modified: Option<u64>,
    /// By full name, e.g. `security.capability`.
    pub attributes: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File(Content),
    Symlink(String),
    /// Path of the file that this is another name of.
    HardLink(String),
    Device {
        block: bool,
        major: u32,
        minor: u32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Bytes(Vec<u8>),
    /// A file of the build's scratch directory, with this many bytes.
    Kept(PathBuf, u64),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error(
        "`{path}` cannot be a path in an image: it must be relative, without `.`, `..`, empty parts, quotes or control characters"
    )]
    Path { path: String },
    #[error("`{path}` is a hard link to `{target}`, which is no file of the image")]
    Link { path: String, target: String },
    #[error("the image has no file `{path}`")]
    Missing { path: String },
}

impl Node {
    pub fn new(kind: Kind, permissions: u32) -> Node {
        Node { kind, permissions, owner: 0, group: 0, modified: None, attributes: BTreeMap::new() }
    }
}

impl Content {
    pub fn len(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Kept(_, bytes) => *bytes,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Content::Bytes(bytes) => Ok(bytes.clone()),
            Content::Kept(path, _) => std::fs::read(path),
        }
    }
}

impl Tree {
    pub fn directory(&mut self, path: &str, permissions: u32) -> Result<(), TreeError> {
        self.add(path, Node::new(Kind::Directory, permissions))
    }

    pub fn file(&mut self, path: &str, permissions: u32, bytes: impl Into<Vec<u8>>) -> Result<(), TreeError> {
        self.add(path, Node::new(Kind::File(Content::Bytes(bytes.into())), permissions))
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), TreeError> {
        self.add(path, Node::new(Kind::Symlink(target.to_owned()), 0o777))
    }

    /// Puts a file where it belongs, in place of what was there.
    pub fn add(&mut self, path: &str, node: Node) -> Result<(), TreeError> {
        check_path(path)?;
        for (at, _) in path.match_indices('/') {
            let parent = Node::new(Kind::Directory, 0o755);
            self.nodes.entry(path[..at].to_owned()).or_insert(parent);
        }
        self.nodes.insert(path.to_owned(), node);
        Ok(())
    }

    pub fn remove(&mut self, path: &str) -> Option<Node> {
        self.nodes.remove(path)
    }

    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// A parent comes before what is in it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Bytes of all files, each rounded up to what a file system gives it.
    pub fn bytes(&self, block: u64) -> u64 {
        let of = |node: &Node| match &node.kind {
            Kind::File(content) => content.len().next_multiple_of(block),
            Kind::Directory => block,
            Kind::Symlink(_) | Kind::HardLink(_) | Kind::Device { .. } => 0,
        };
        self.nodes.values().map(of).sum()
    }

    /// The bytes of a regular file, hard links followed.
    pub fn content(&self, path: &str) -> Result<&Content, TreeError> {
        match self.nodes.get(path).map(|node| &node.kind) {
            Some(Kind::File(content)) => Ok(content),
            Some(Kind::HardLink(target)) => match self.nodes.get(target).map(|node| &node.kind) {
                Some(Kind::File(content)) => Ok(content),
                _ => Err(TreeError::Missing { path: target.clone() }),
            },
            _ => Err(TreeError::Missing { path: path.to_owned() }),
        }
    }

    /// That every hard link leads to a file; the first of several names is the file.
    pub fn check(&self) -> Result<(), TreeError> {
        for (path, node) in &self.nodes {
            if let Kind::HardLink(target) = &node.kind
                && !matches!(self.nodes.get(target).map(|node| &node.kind), Some(Kind::File(_)))
            {
                return Err(TreeError::Link { path: path.clone(), target: target.clone() });
            }
        }
        Ok(())
    }
}

/// Quotes and control characters would end a word, or the line, in the script that fills the file system.
fn check_path(path: &str) -> Result<(), TreeError> {
    let bad_part = |part: &str| matches!(part, "" | "." | "..") || part.len() > 255;
    if path.split('/').any(bad_part) || path.contains(|letter: char| letter == '"' || letter.is_control()) {
        return Err(TreeError::Path { path: path.escape_default().collect() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_by_themselves() {
        let mut tree = Tree::default();
        tree.file("usr/bin/tool", 0o755, b"x").unwrap();
        tree.directory("usr", 0o700).unwrap();
        let paths: Vec<_> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["usr", "usr/bin", "usr/bin/tool"]);
        assert_eq!(tree.get("usr").unwrap().permissions, 0o700);
        assert_eq!(tree.bytes(4096), 3 * 4096);
    }

    #[test]
    fn paths_that_would_leave_the_image_or_the_script_are_refused() {
        for path in ["", "/etc", "a//b", "../a", "a/.", "a\"b", "a\nb"] {
            assert!(Tree::default().directory(path, 0o755).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_hard_link_leads_to_a_file() {
        let mut tree = Tree::default();
        tree.file("a", 0o644, b"x").unwrap();
        tree.add("b", Node::new(Kind::HardLink("a".to_owned()), 0o644)).unwrap();
        assert_eq!(tree.check(), Ok(()));
        assert_eq!(tree.content("b").unwrap().read().unwrap(), b"x");
        tree.remove("a");
        assert!(matches!(tree.check(), Err(TreeError::Link { .. })));
    }
}
