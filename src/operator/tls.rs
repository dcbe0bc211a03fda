//! TLS of the operator plane: the operator's own certificate, or one we made for ourselves.
//!
//! A self-signed certificate proves nothing but that it is the same as yesterday. Its SHA-256 fingerprint is
//! therefore printed at every start and in the status, for people to compare with what their browser shows; it is
//! made once, kept in the state directory with its key (mode 0600), and used until that file is removed.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// A certificate ready to serve with.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    fingerprint: String,
    is_self_signed: bool,
    /// Made just now, to be written once the state directory is ours.
    unsaved: Option<(PathBuf, String)>,
}

impl Tls {
    /// Reads what the configuration names, or what was made before; else makes a certificate for these names.
    pub fn load(
        config: &TlsConfig,
        state: &Path,
        listen: SocketAddr,
        names: &[String],
    ) -> Result<Tls, TlsError> {
        match config {
            TlsConfig::Files { certificate, key } => {
                let certificates = read_certificates(certificate)?;
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|source| unreadable("operator.tls.key", key, source))?;
                Tls::new(certificates, key, certificate, false)
            }
            TlsConfig::SelfSigned => {
                let path = state.join(SELF_SIGNED_FILE);
                if !path.exists() {
                    return Tls::make(path, listen, names);
                }
                let certificates = read_certificates(&path)?;
                let key = PrivateKeyDer::from_pem_file(&path)
                    .map_err(|source| unreadable("operator.tls.self_signed", &path, source))?;
                Tls::new(certificates, key, &path, true)
            }
        }
    }

    fn make(path: PathBuf, listen: SocketAddr, names: &[String]) -> Result<Tls, TlsError> {
        let key = KeyPair::generate().map_err(TlsError::NotMade)?;
        let mut names: Vec<String> = names.to_vec();
        names.extend([
            listen.ip().to_string(),
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ]);
        names.sort();
        names.dedup();
        let mut parameters = CertificateParams::new(names).map_err(TlsError::NotMade)?;
        parameters.distinguished_name.push(DnType::CommonName, "farrier");
        let certificate = parameters.self_signed(&key).map_err(TlsError::NotMade)?;
        let text = format!("{}{}", certificate.pem(), key.serialize_pem());
        let private = PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|source| unreadable("operator.tls.self_signed", &path, source))?;
        let made = Tls::new(vec![certificate.der().clone()], private, &path, true)?;
        Ok(Tls { unsaved: Some((path, text)), ..made })
    }

    fn new(
        certificates: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        path: &Path,
        is_self_signed: bool,
    ) -> Result<Tls, TlsError> {
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
        Ok(Tls { config: Arc::new(config), fingerprint, is_self_signed, unsaved: None })
    }

    /// Writes a certificate that was made just now. The state directory must be there.
    pub fn keep(&mut self) -> Result<(), TlsError> {
        let Some((path, text)) = self.unsaved.take() else { return Ok(()) };
        let mut temporary = path.clone().into_os_string();
        temporary.push(".new");
        let write = || -> io::Result<()> {
            let _ = std::fs::remove_file(&temporary);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)
        };
        write().map_err(|source| TlsError::NotKept { path: path.display().to_string(), source })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// SHA-256 of the certificate, as browsers show it: pairs of upper-case digits.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub fn is_self_signed(&self) -> bool {
        self.is_self_signed
    }
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
        let mut made = load().unwrap();
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

    #[test]
    fn what_is_wrong_with_files_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let pair = |name: &str| {
            let state = directory.path().join(name);
            std::fs::create_dir(&state).unwrap();
            Tls::load(&TlsConfig::SelfSigned, &state, listen(), &[]).unwrap().keep().unwrap();
            state.join(SELF_SIGNED_FILE)
        };
        let (one, other) = (pair("one"), pair("other"));
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
