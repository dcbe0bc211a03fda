//! Where an image comes from: a plain file here, or a web server.
//!
//! A file is opened as what it is and as nothing else: no link is followed, no device, pipe or directory read. Whoever
//! names `/dev/zero` gets a refusal instead of a disk full of nothing.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::str::FromStr;

use nix::libc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Url(Url),
}

/// `http://` or `https://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url(String);

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("`{scheme}:` is not imported from: give the path of a file, or an http:// or https:// URL")]
    Scheme { scheme: String },
    #[error("`{url}` names no server")]
    Server { url: String },
    #[error("{} is {what}: name a regular file, which can be read twice and ends", path.display())]
    NotAFile { path: PathBuf, what: &'static str },
    #[error("{} is a symbolic link: name the file itself, {}", path.display(), target.display())]
    Link { path: PathBuf, target: PathBuf },
    #[error("{} cannot be opened", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Source, SourceError> {
        let scheme = text.split_once(':').filter(|(scheme, rest)| {
            let letters = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
            // `file:/x` is a URL as well; another name with a colon in it is a file's.
            letters && (rest.starts_with("//") || scheme.eq_ignore_ascii_case("file"))
        });
        let Some((scheme, rest)) = scheme else { return Ok(Source::File(PathBuf::from(text))) };
        match scheme.to_ascii_lowercase().as_str() {
            known @ ("http" | "https") => {
                let host = rest
                    .strip_prefix("//")
                    .unwrap_or_default()
                    .split(['/', '?', '#'])
                    .next()
                    .unwrap_or_default();
                let host = host.rsplit('@').next().unwrap_or_default();
                if host.is_empty() || text.chars().any(|character| character.is_control() || character == ' ')
                {
                    return Err(SourceError::Server { url: text.escape_default().to_string() });
                }
                Ok(Source::Url(Url(format!("{known}:{rest}"))))
            }
            other => Err(SourceError::Scheme { scheme: other.escape_default().to_string() }),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => path.display().fmt(formatter),
            Source::Url(url) => url.fmt(formatter),
        }
    }
}

impl Url {
    /// To be asked for, secrets and all.
    pub fn in_full(&self) -> &str {
        &self.0
    }

    pub fn is_encrypted(&self) -> bool {
        self.0.starts_with("https:")
    }
}

/// Without what may be secret in it: name and password, and the query, where signatures are.
impl fmt::Display for Url {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = self.0.split(['?', '#']).next().unwrap_or_default();
        let (scheme, rest) = bare.split_once("//").unwrap_or((bare, ""));
        let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        let host = authority.rsplit('@').next().unwrap_or_default();
        write!(formatter, "{scheme}//{host}{path}")
    }
}

/// Opens a regular file, and nothing that only looks like one.
pub fn open_file(path: &std::path::Path) -> Result<File, SourceError> {
    let failed = |source| SourceError::Open { path: path.to_owned(), source };
    let refused = |what| SourceError::NotAFile { path: path.to_owned(), what };
    // Looked at before it is opened, for opening some devices does something; and after, for it may be another by then.
    let kind = fs::symlink_metadata(path).map_err(failed)?.file_type();
    if kind.is_symlink() {
        let target = fs::canonicalize(path).map_err(failed)?;
        return Err(SourceError::Link { path: path.to_owned(), target });
    }
    if let Some(what) = not_regular(kind) {
        return Err(refused(what));
    }
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(failed)?;
    match not_regular(file.metadata().map_err(failed)?.file_type()) {
        Some(what) => Err(refused(what)),
        None => Ok(file),
    }
}

fn not_regular(kind: fs::FileType) -> Option<&'static str> {
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_fifo() => Some("a pipe"),
        () if kind.is_socket() => Some("a socket"),
        () if kind.is_block_device() || kind.is_char_device() => Some("a device"),
        () => Some("no file of a kind known here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_and_web_servers_are_sources() {
        let parse = |text: &str| text.parse::<Source>();
        for path in ["disk.img", "/a/b.qcow2", "a:b", "./file:x", "12:30.img"] {
            assert_eq!(parse(path).unwrap(), Source::File(PathBuf::from(path)), "{path}");
        }
        for url in ["http://a/b", "HTTPS://a/b?c", "https://u:p@a:81/b"] {
            assert!(matches!(parse(url).unwrap(), Source::Url(_)), "{url}");
        }
        for url in ["file:///etc/passwd", "file:/etc/passwd", "FILE:x", "ftp://a/b", "nbd://a", "json://{}"] {
            assert!(matches!(parse(url), Err(SourceError::Scheme { .. })), "{url}");
        }
        for url in ["http://", "http:///x", "https://u@/x", "http://a b/", "http://a\n/"] {
            assert!(matches!(parse(url), Err(SourceError::Server { .. })), "{url}");
        }
    }

    #[test]
    fn what_is_secret_in_a_url_is_not_told() {
        let url: Source = "https://user:word@host:8080/a/b.img?X-Signature=1#f".parse().unwrap();
        assert_eq!(url.to_string(), "https://host:8080/a/b.img");
        let Source::Url(url) = url else { panic!("a URL") };
        assert!(url.in_full().contains("user:word") && url.is_encrypted());
    }

    #[test]
    fn links_devices_pipes_and_directories_are_refused() {
        let here = tempfile::tempdir().unwrap();
        let (file, link, pipe) = (here.path().join("f"), here.path().join("l"), here.path().join("p"));
        fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open_file(&file).is_ok());
        assert!(matches!(open_file(&link), Err(SourceError::Link { .. })));
        for other in [pipe.as_path(), here.path(), "/dev/zero".as_ref()] {
            assert!(matches!(open_file(other), Err(SourceError::NotAFile { .. })), "{}", other.display());
        }
        assert!(matches!(open_file(&here.path().join("none")), Err(SourceError::Open { .. })));
    }
}
