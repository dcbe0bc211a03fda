//! TLS of the operator plane: the operator's own certificate, or one we made for ourselves.
//!
//! A self-signed certificate proves nothing but that it is the same as yesterday. Its SHA-256 fingerprint is
//! therefore printed at every start and in the status, for people to compare with what their browser shows; it is
//! made once, kept in the state directory with its key (mode 0600), and used until that file is removed.
//!
//! Files that change are read again, by themselves and on SIGHUP: who renews certificates restarts nothing. What cannot be
//! served changes nothing, and stays a problem until it can.

use std::error::Error as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, DnType, KeyPair};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

use crate::config::TlsConfig;

/// Certificate and key, one file so that neither can be there without the other.
const SELF_SIGNED_FILE: &str = "operator-tls.pem";

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{key}: {path} cannot be read: it is a PEM file the appliance's user may read")]
    Unreadable { key: &'static str, path: String, source: pem::Error },
    #[error(
        "operator.tls.certificate: {path} holds no certificate: it begins with -----BEGIN CERTIFICATE-----"
    )]
    NoCertificate { path: String },
    #[error(
        "operator.tls: certificate and key of {path} do not go together, or are of a kind rustls does not take"
    )]
    Unusable { path: String, source: rustls::Error },
    #[error("operator.tls.self_signed: no certificate can be made: check operator.names")]
    NotMade(#[source] rcgen::Error),
    #[error("operator.tls.self_signed: {path} cannot be kept: check that store.path is writable")]
    NotKept { path: String, source: io::Error },
}

/// How long files have to be as they are before they are read again: whoever renews a certificate writes two of them.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The certificate we serve with, which changes when its files do.
pub struct Tls {
    source: Source,
    served: ArcSwap<Served>,
    files: Mutex<Files>,
    /// Made just now, to be written once the state directory is ours.
    unsaved: Mutex<Option<String>>,
}

/// Where certificate and key are read from.
struct Source {
    certificate: PathBuf,
    key: PathBuf,
    /// The configuration's key that names the private key.
    key_named: &'static str,
    is_self_signed: bool,
}

struct Served {
    config: Arc<ServerConfig>,
    fingerprint: String,
}

/// What is known of the files.
#[derive(Default)]
struct Files {
    /// As they were when they were read last.
    read: Stamps,
    /// As they were at the last look.
    seen: Stamps,
    /// Why what is there now is not served.
    problem: Option<String>,
}

type Stamps = [Option<Stamp>; 2];

/// What changes when a file is written, replaced, or given other rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        let data = std::fs::metadata(path).ok()?;
        Some(Stamp {
            device: data.dev(),
            inode: data.ino(),
            size: data.size(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }
}

impl Source {
    fn stamps(&self) -> Stamps {
        [Stamp::of(&self.certificate), Stamp::of(&self.key)]
    }

    fn read(&self) -> Result<Served, TlsError> {
        let certificates = read_certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|source| unreadable(self.key_named, &self.key, source))?;
        Served::new(certificates, key, &self.certificate)
    }
}

impl Served {
    fn new(
        certificates: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        path: &Path,
    ) -> Result<Served, TlsError> {
        let path = || path.display().to_string();
        let first = certificates.first().ok_or_else(|| TlsError::NoCertificate { path: path() })?;
        let fingerprint = fingerprint(first);
        let unusable = |source| TlsError::Unusable { path: path(), source };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Served { config: Arc::new(config), fingerprint })
    }
}

impl Tls {
    /// Reads what the configuration names, or what was made before; else makes a certificate for these names.
    pub fn load(
        config: &TlsConfig,
        state: &Path,
        listen: SocketAddr,
        names: &[String],
    ) -> Result<Tls, TlsError> {
        let source = match config {
            TlsConfig::Files { certificate, key } => Source {
                certificate: certificate.clone(),
                key: key.clone(),
                key_named: "operator.tls.key",
                is_self_signed: false,
            },
            TlsConfig::SelfSigned => {
                let path = state.join(SELF_SIGNED_FILE);
                Source {
                    certificate: path.clone(),
                    key: path,
                    key_named: "operator.tls.self_signed",
                    is_self_signed: true,
                }
            }
        };
        // Before they are read: what changes meanwhile is read again.
        let read = source.stamps();
        let (served, unsaved) = if source.is_self_signed && !source.certificate.exists() {
            let (served, text) = make(&source.certificate, listen, names)?;
            (served, Some(text))
        } else {
            (source.read()?, None)
        };
        let files = Files { read, seen: read, problem: None };
        Ok(Tls {
            source,
            served: ArcSwap::from_pointee(served),
            files: Mutex::new(files),
            unsaved: Mutex::new(unsaved),
        })
    }

    /// Writes a certificate that was made just now. The state directory must be there.
    pub fn keep(&self) -> Result<(), TlsError> {
        let unsaved = self.unsaved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(text) = unsaved else { return Ok(()) };
        let path = &self.source.certificate;
        let mut temporary = path.clone().into_os_string();
        temporary.push(".new");
        let write = || -> io::Result<()> {
            let _ = std::fs::remove_file(&temporary);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)
        };
        write().map_err(|source| TlsError::NotKept { path: path.display().to_string(), source })?;
        let mut files = self.files();
        files.read = self.source.stamps();
        files.seen = files.read;
        Ok(())
    }

    /// Reads the files again if they have changed, and have been as they are since the last look.
    pub(super) fn look(&self) {
        let stamps = self.source.stamps();
        let mut files = self.files();
        let settled = files.seen == stamps;
        files.seen = stamps;
        // A certificate of our own is served until we end, though its file be gone: without it a new one is made then.
        let gone = self.source.is_self_signed && stamps[0].is_none();
        if settled && files.read != stamps && !gone {
            self.read_into(&mut files, stamps);
        }
    }

    /// Reads the files again, whether they have changed or not.
    pub(super) fn read_again(&self) {
        let stamps = self.source.stamps();
        let mut files = self.files();
        files.seen = stamps;
        self.read_into(&mut files, stamps);
    }

    /// What cannot be served changes nothing, and is told until it can.
    fn read_into(&self, files: &mut Files, stamps: Stamps) {
        files.read = stamps;
        match self.source.read() {
            Ok(served) => {
                let is_new = served.fingerprint != self.served.load().fingerprint;
                if is_new || files.problem.is_some() {
                    tracing::info!(
                        fingerprint = served.fingerprint,
                        "the operators' certificate was read again"
                    );
                }
                files.problem = None;
                self.served.store(Arc::new(served));
            }
            Err(error) => {
                let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
                let told = format!(
                    "{error}{cause}; the certificate of before is served on: mend the files, they are read again when they change"
                );
                tracing::error!("{told}");
                files.problem = Some(told);
            }
        }
    }

    /// Why the files as they are now are not served.
    pub fn problem(&self) -> Option<String> {
        self.files().problem.clone()
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For one connection; the next may have another certificate.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.served.load().config))
    }

    /// SHA-256 of the certificate, as browsers show it: pairs of upper-case digits.
    pub fn fingerprint(&self) -> String {
        self.served.load().fingerprint.clone()
    }

    pub fn is_self_signed(&self) -> bool {
        self.source.is_self_signed
    }
}

/// A certificate for these names, and the text it is kept as.
fn make(path: &Path, listen: SocketAddr, names: &[String]) -> Result<(Served, String), TlsError> {
    let key = KeyPair::generate().map_err(TlsError::NotMade)?;
    let mut names: Vec<String> = names.to_vec();
    names.extend([listen.ip().to_string(), "localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()]);
    names.sort();
    names.dedup();
    let mut parameters = CertificateParams::new(names).map_err(TlsError::NotMade)?;
    parameters.distinguished_name.push(DnType::CommonName, "farrier");
    let certificate = parameters.self_signed(&key).map_err(TlsError::NotMade)?;
    let text = format!("{}{}", certificate.pem(), key.serialize_pem());
    let private = PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|source| unreadable("operator.tls.self_signed", path, source))?;
    Ok((Served::new(vec![certificate.der().clone()], private, path)?, text))
}

fn unreadable(key: &'static str, path: &Path, source: pem::Error) -> TlsError {
    TlsError::Unreadable { key, path: path.display().to_string(), source }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| unreadable("operator.tls.certificate", path, source);
    CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
}

pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let pairs: Vec<String> = Sha256::digest(certificate).iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn listen() -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 5], 8067))
    }

    #[test]
    fn a_made_certificate_is_private_and_stays_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let load =
            || Tls::load(&TlsConfig::SelfSigned, directory.path(), listen(), &["boot.example".to_owned()]);
        let made = load().unwrap();
        let path = directory.path().join(SELF_SIGNED_FILE);
        assert!(!path.exists(), "nothing is written before the store is open");
        made.keep().unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        let again = load().unwrap();
        assert_eq!(again.fingerprint(), made.fingerprint());
        assert!(again.is_self_signed());
        assert_eq!((made.fingerprint().len(), made.fingerprint().matches(':').count()), (95, 31));

        let files = TlsConfig::Files { certificate: path.clone(), key: path };
        let own = Tls::load(&files, directory.path(), listen(), &[]).unwrap();
        assert!(own.fingerprint() == made.fingerprint() && !own.is_self_signed());
    }

    /// A certificate of its own in a folder of its own.
    fn pair(directory: &Path, name: &str) -> PathBuf {
        let state = directory.join(name);
        std::fs::create_dir(&state).unwrap();
        Tls::load(&TlsConfig::SelfSigned, &state, listen(), &[]).unwrap().keep().unwrap();
        state.join(SELF_SIGNED_FILE)
    }

    #[test]
    fn files_are_read_again_once_they_have_changed_and_settled() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (pair(directory.path(), "one"), pair(directory.path(), "other"));
        let (certificate, key) = (directory.path().join("c.pem"), directory.path().join("k.pem"));
        let put = |from: &Path, to: &Path| {
            // As who renews certificates does: the name is another file's from one moment to the next.
            let new = directory.path().join("new");
            std::fs::copy(from, &new).unwrap();
            std::fs::rename(&new, to).unwrap();
        };
        put(&one, &certificate);
        put(&one, &key);
        let files = TlsConfig::Files { certificate: certificate.clone(), key: key.clone() };
        let tls = Tls::load(&files, directory.path(), listen(), &[]).unwrap();
        let first = tls.fingerprint();
        tls.look();
        tls.look();
        assert_eq!((tls.fingerprint(), tls.problem()), (first.clone(), None));

        // Between the two files of a pair nothing is read, and nothing is wrong.
        put(&other, &certificate);
        tls.look();
        put(&other, &key);
        tls.look();
        assert_eq!((tls.fingerprint(), tls.problem()), (first.clone(), None));
        tls.look();
        let second = tls.fingerprint();
        assert!(second != first && tls.problem().is_none());

        // What does not go together is told, and changes nothing; nor does a file that is gone.
        put(&one, &certificate);
        tls.look();
        tls.look();
        let told = tls.problem().unwrap();
        assert!(told.contains("do not go together") && told.contains("c.pem"), "{told}");
        assert_eq!(tls.fingerprint(), second);
        std::fs::remove_file(&key).unwrap();
        tls.read_again();
        assert!(tls.problem().unwrap().contains("k.pem cannot be read"), "{:?}", tls.problem());
        put(&one, &key);
        tls.read_again();
        assert_eq!((tls.fingerprint(), tls.problem()), (first, None));
    }

    #[test]
    fn a_made_certificate_whose_file_is_gone_is_served_on() {
        let directory = tempfile::tempdir().unwrap();
        let tls = Tls::load(&TlsConfig::SelfSigned, directory.path(), listen(), &[]).unwrap();
        tls.keep().unwrap();
        std::fs::remove_file(directory.path().join(SELF_SIGNED_FILE)).unwrap();
        tls.look();
        tls.look();
        assert_eq!(tls.problem(), None);
    }

    #[test]
    fn what_is_wrong_with_files_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (one, other) = (pair(directory.path(), "one"), pair(directory.path(), "other"));
        std::fs::write(path("empty"), "").unwrap();
        let load = |certificate: &Path, key: &Path| {
            let files = TlsConfig::Files { certificate: certificate.to_owned(), key: key.to_owned() };
            Tls::load(&files, directory.path(), listen(), &[]).map(|_| ()).unwrap_err()
        };
        assert!(matches!(
            load(&path("none"), &one),
            TlsError::Unreadable { key: "operator.tls.certificate", .. }
        ));
        assert!(matches!(load(&path("empty"), &one), TlsError::NoCertificate { .. }));
        assert!(matches!(load(&one, &path("empty")), TlsError::Unreadable { key: "operator.tls.key", .. }));
        assert!(matches!(load(&one, &other), TlsError::Unusable { .. }));
    }
}
