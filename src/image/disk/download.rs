//! An image from a web server into a file, from where the last try ended.
//!
//! The file is named by the digest it must come to, so that whatever is in it is worth going on with, and it is not
//! looked into before it has come to that. What the server sends is bounded; how often it is asked again is bounded by
//! tries that bring nothing.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tokio_rustls::rustls::crypto::ring;
use ureq::http::{HeaderMap, StatusCode, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, http};

use crate::image::digest::Digest;
use crate::image::disk::place::Place;
use crate::image::disk::source::Url;
use crate::image::library::own_like;

const CONNECT_MAX: Duration = Duration::from_secs(30);
/// A line on which nothing comes for so long is cut.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const REDIRECTS_MAX: u32 = 5;
/// Tries in a row that bring no byte.
const VAIN_TRIES_MAX: u32 = 5;
/// Before the second try; twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(500);
const PIECE: usize = 256 * 1024;
/// An entity tag is a few letters.
const TAG_LENGTH_MAX: usize = 256;
/// Where distributions keep the certificates they trust; `SSL_CERT_FILE` names another.
const TRUSTED: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];
/// A bundle is 200 kB.
const TRUSTED_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("{} cannot be written", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{url} is being downloaded by another import already")]
    Busy { url: String },
    #[error("{url} answers {status}")]
    Status { url: String, status: StatusCode },
    #[error("{url} is {given} bytes or more, and the limit is {bytes_max} (`--max-size`)")]
    TooLarge { url: String, given: u64, bytes_max: u64 },
    #[error(
        "{url} could not be downloaded: {reason}; what has come is kept, and the same command goes on there"
    )]
    Line { url: String, reason: String },
    #[error(
        "no certificates to trust https by: install `ca-certificates`, or name a file with SSL_CERT_FILE"
    )]
    NoCertificates,
}

/// A download that is whole, as far as the server says; what it comes to is for the caller to check.
pub struct Downloaded {
    pub file: File,
    path: PathBuf,
}

impl Downloaded {
    /// It is not needed any more, or not what it should be.
    pub fn discard(self) {
        // What stays takes space only, and the next try begins with it.
        let _ = std::fs::remove_file(tag_path(&self.path));
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Gets all of `url`, or goes on with it.
pub fn download(
    place: &Place,
    url: &Url,
    expected: Digest,
    bytes_max: u64,
    progress: &ProgressBar,
) -> Result<Downloaded, DownloadError> {
    let path = place.partial().join(expected.to_string());
    let failed = |source| DownloadError::Write { path: path.clone(), source };
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(failed)?;
    own_like(&file, &place.partial()).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(DownloadError::Busy { url: url.to_string() }),
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    let mut whole = file.try_clone().map_err(failed)?;
    if Digest::of_stream(&mut whole, |_| Ok(())).map_err(failed)?.0 == expected {
        return Ok(Downloaded { file, path });
    }
    let agent = agent(url)?;
    let mut vain = 0;
    loop {
        let before = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let reason = match attempt(&agent, url, &mut file, &path, bytes_max, progress) {
            Ok(()) => break,
            Err(Attempt::Over(error)) => return Err(error),
            Err(Attempt::Again(reason)) => reason,
        };
        let after = file.metadata().map_err(failed)?.len();
        vain = if after > before { 0 } else { vain + 1 };
        if vain == VAIN_TRIES_MAX {
            return Err(DownloadError::Line { url: url.to_string(), reason });
        }
        pause(PAUSE * (1 << vain.saturating_sub(1)));
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(Downloaded { file, path })
}

fn pause(duration: Duration) {
    let until = Instant::now() + duration;
    while let Some(rest) = until.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
        thread::park_timeout(rest);
    }
}

enum Attempt {
    /// The line broke, or the server has a bad moment.
    Again(String),
    Over(DownloadError),
}

fn attempt(
    agent: &Agent,
    url: &Url,
    file: &mut File,
    path: &Path,
    bytes_max: u64,
    progress: &ProgressBar,
) -> Result<(), Attempt> {
    let failed = |source| Attempt::Over(DownloadError::Write { path: path.to_owned(), source });
    let mut have = file.seek(SeekFrom::End(0)).map_err(failed)?;
    let mut request = agent.get(url.in_full());
    if have > 0 {
        request = request.header(header::RANGE, format!("bytes={have}-"));
        // Another version since then comes whole, instead of a piece that does not fit.
        if let Some(tag) = read_tag(path) {
            request = request.header(header::IF_RANGE, tag);
        }
    }
    let response = request.call().map_err(|error| judge_error(url, &error))?;
    let status = response.status();
    match status {
        StatusCode::PARTIAL_CONTENT if range_start(response.headers()) == Some(have) => {}
        StatusCode::OK => {
            file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(failed)?;
            have = 0;
            write_tag(path, response.headers()).map_err(failed)?;
        }
        // It has no such range: what is here is longer than what is there, or all of it and something else.
        StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT if have > 0 => {
            file.set_len(0).map_err(failed)?;
            return Err(Attempt::Again("the server has another file there by now".to_owned()));
        }
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Err(Attempt::Again(format!("the server answers {status}")));
        }
        status => return Err(Attempt::Over(DownloadError::Status { url: url.to_string(), status })),
    }
    let too_large = |given| DownloadError::TooLarge { url: url.to_string(), given, bytes_max };
    let announced = response.body().content_length().map(|rest| rest.saturating_add(have));
    if let Some(given) = announced.filter(|given| *given > bytes_max) {
        return Err(Attempt::Over(too_large(given)));
    }
    if let Some(total) = announced {
        progress.set_length(total);
    }
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
    let mut piece = vec![0; PIECE];
    loop {
        let count = match body.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Attempt::Again(error.to_string())),
        };
        file.write_all(&piece[..count]).map_err(failed)?;
        have += count as u64;
        progress.set_position(have);
        if have > bytes_max {
            return Err(Attempt::Over(too_large(have)));
        }
    }
    if announced.is_some_and(|announced| have < announced) {
        return Err(Attempt::Again("the line was cut".to_owned()));
    }
    file.sync_all().map_err(failed)
}

/// What a name server or a handshake says now it says in a minute too; a connection may come about yet.
fn judge_error(url: &Url, error: &ureq::Error) -> Attempt {
    let reason = error.to_string();
    match error {
        ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed => {
            Attempt::Again(reason)
        }
        _ => Attempt::Over(DownloadError::Line { url: url.to_string(), reason }),
    }
}

/// `bytes 100-199/200` begins at 100.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

fn tag_path(path: &Path) -> PathBuf {
    path.with_extension("tag")
}

fn read_tag(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = File::open(tag_path(path)).ok()?;
    file.take(TAG_LENGTH_MAX as u64).read_to_string(&mut text).ok()?;
    Some(text).filter(|text| http::HeaderValue::from_str(text).is_ok() && !text.is_empty())
}

/// A weak tag means much the same, which is not enough to put pieces together.
fn write_tag(path: &Path, headers: &HeaderMap) -> io::Result<()> {
    let tag = headers.get(header::ETAG).and_then(|tag| tag.to_str().ok());
    let tag = tag.filter(|tag| tag.starts_with('"') && tag.len() <= TAG_LENGTH_MAX);
    let modified = headers.get(header::LAST_MODIFIED).and_then(|time| time.to_str().ok());
    std::fs::write(tag_path(path), tag.or(modified).unwrap_or_default())
}

fn agent(url: &Url) -> Result<Agent, DownloadError> {
    let mut tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()));
    // A redirection may lead from http to https.
    match trusted() {
        Some(certificates) => tls = tls.root_certs(RootCerts::Specific(Arc::new(certificates))),
        None if url.is_encrypted() => return Err(DownloadError::NoCertificates),
        None => tls = tls.root_certs(RootCerts::Specific(Arc::default())),
    }
    Ok(Agent::config_builder()
        .tls_config(tls.build())
        .timeout_connect(Some(CONNECT_MAX))
        .timeout_per_read(Some(SILENCE_MAX))
        .timeout_per_write(Some(SILENCE_MAX))
        .http_status_as_error(false)
        .max_redirects(REDIRECTS_MAX)
        // Bytes as they are: the digest is over them.
        .accept_encoding("identity")
        .user_agent(concat!("farrier/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent())
}

fn trusted() -> Option<Vec<ureq::tls::Certificate<'static>>> {
    let named = std::env::var_os("SSL_CERT_FILE").filter(|name| !name.is_empty()).map(PathBuf::from);
    let places = match named {
        Some(path) => vec![path],
        None => TRUSTED.iter().map(PathBuf::from).collect(),
    };
    let text = places.iter().find_map(|path| {
        let mut text = Vec::new();
        File::open(path).ok()?.take(TRUSTED_BYTES_MAX).read_to_end(&mut text).ok().map(|_| text)
    })?;
    let certificates: Vec<_> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            Ok(_) | Err(_) => None,
        })
        .collect();
    Some(certificates).filter(|certificates| !certificates.is_empty())
}
