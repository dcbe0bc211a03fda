//! Rules of `[operator]`: who may reach the operator plane, and under what names.

use std::net::{IpAddr, SocketAddr};

use super::check::{Check, network_text, quoted};
use super::error::ConfigError;
use super::file::{OperatorSection, TlsSection};
use super::{NetworkConfig, OperatorConfig, TlsConfig};

/// `sun_path` without the final NUL (unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// RFC 1035 §2.3.4
const HOST_NAME_MAX: usize = 253;
/// A host has a few names; each is compared with every request's.
const NAMES_MAX: usize = 16;
/// useradd and groupadd take no longer ones.
const ACCOUNT_NAME_MAX: usize = 32;

const SOCKET_DEFAULT: &str = "/run/farrier/operator.sock";
const LISTEN_DEFAULT: &str = "127.0.0.1:8067";

impl Check<'_> {
    pub(super) fn operator(
        &self,
        section: OperatorSection,
        network: &NetworkConfig,
    ) -> Result<OperatorConfig, ConfigError> {
        let socket = self.absolute("operator.socket", section.socket, SOCKET_DEFAULT)?;
        let socket_text = socket.to_string_lossy();
        if socket_text.len() > SOCKET_PATH_MAX {
            let rule = format!("a Unix socket's path has at most {SOCKET_PATH_MAX} bytes");
            let shorter = "choose a shorter path, such as /run/farrier/operator.sock";
            return Err(self.refuse("operator.socket", quoted(&socket_text), rule, shorter));
        }
        let group = section.group.map(|name| self.account("operator.group", "group", name)).transpose()?;
        let tls = self.tls(section.tls)?;
        let text = section.listen.unwrap_or_else(|| LISTEN_DEFAULT.to_owned());
        let listen = match text.as_str() {
            "off" => None,
            _ => Some(self.listen(&text, network, tls.is_some())?),
        };
        let names = self.names(section.names)?;
        let metrics_open = section.metrics_open.unwrap_or(false);
        let consoles = section
            .consoles
            .map(|text| self.absolute("operator.consoles", Some(text), "/var/log/farrier/consoles"));
        let consoles = consoles.transpose()?;
        Ok(OperatorConfig { socket, group, listen, names, tls, metrics_open, consoles })
    }

    /// The name or number of a user or a group, `kind` says which.
    pub(super) fn account(&self, key: &str, kind: &str, name: String) -> Result<String, ConfigError> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=ACCOUNT_NAME_MAX).contains(&name.len()) && name.bytes().all(legal) && !name.starts_with('-') {
            return Ok(name);
        }
        let rule = format!(
            "a {kind} is named by its number, or by 1 to {ACCOUNT_NAME_MAX} letters, digits, `.`, `_`, `-`"
        );
        let file = if kind == "user" { "/etc/passwd" } else { "/etc/group" };
        let way_out = format!("write the {kind} as {file} has it, or leave the key out");
        Err(self.refuse(key, quoted(&name), rule, way_out))
    }

    fn listen(&self, text: &str, network: &NetworkConfig, tls: bool) -> Result<SocketAddr, ConfigError> {
        let refuse =
            |rule: String, way_out: &str| Err(self.refuse("operator.listen", quoted(text), rule, way_out));
        let Ok(listen) = text.parse::<SocketAddr>() else {
            let rule = "an address with a port is wanted, not a name".to_owned();
            return refuse(rule, "write \"127.0.0.1:8067\" or \"[::1]:8067\", or \"off\"");
        };
        let address = listen.ip().to_canonical();
        if address.is_loopback() {
            return Ok(listen);
        }
        if address.is_unspecified() {
            let rule =
                "one address is wanted: listening on all of them would include the bridge's".to_owned();
            return refuse(rule, "write the address operators use, or \"127.0.0.1:8067\", which is loopback");
        }
        if matches!(address, IpAddr::V4(address) if network.address.contains(address)) {
            let net = network_text(network.address);
            let rule = format!("operators are not served on the bridge, and {net} is the bridge's");
            return refuse(rule, "write an address of another interface, or \"127.0.0.1:8067\"");
        }
        if !tls {
            let rule =
                "tokens travel in every request, so an address that is not loopback takes TLS".to_owned();
            let way_out = "add [operator.tls] with self_signed = true, or certificate and key; or write \"127.0.0.1:8067\"";
            return refuse(rule, way_out);
        }
        Ok(listen)
    }

    fn tls(&self, section: TlsSection) -> Result<Option<TlsConfig>, ConfigError> {
        let one = "write self_signed = true, or both certificate and key, or none of them";
        let (key, rule) = match (section.self_signed.unwrap_or(false), section.certificate, section.key) {
            (false, None, None) => return Ok(None),
            (true, None, None) => return Ok(Some(TlsConfig::SelfSigned)),
            (false, Some(certificate), Some(key)) => {
                let example = "/etc/farrier/operator.pem";
                let certificate = self.absolute("operator.tls.certificate", Some(certificate), example)?;
                let key = self.absolute("operator.tls.key", Some(key), example)?;
                return Ok(Some(TlsConfig::Files { certificate, key }));
            }
            (true, _, _) => {
                ("operator.tls.self_signed", "a certificate is either made by us or given in files")
            }
            (false, Some(_), None) => ("operator.tls.key", "a certificate takes its private key"),
            (false, None, Some(_)) => ("operator.tls.certificate", "a private key takes its certificate"),
        };
        let value = if section.self_signed == Some(true) { "true" } else { "" };
        Err(self.refuse(key, value, rule, one))
    }

    fn names(&self, names: Vec<String>) -> Result<Vec<String>, ConfigError> {
        if names.len() > NAMES_MAX {
            let rule = format!("at most {NAMES_MAX} names");
            return Err(self.refuse("operator.names", format!("{} names", names.len()), rule, "remove some"));
        }
        for (index, name) in names.iter().enumerate() {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
            let is_host = (1..=HOST_NAME_MAX).contains(&name.len()) && name.bytes().all(legal);
            if !is_host && name.parse::<IpAddr>().is_err() {
                let rule = "each is a host name or an address, without port or scheme";
                let way_out = "write names = [\"boot.example.org\"]";
                return Err(self.refuse(&format!("operator.names[{index}]"), quoted(name), rule, way_out));
            }
        }
        Ok(names)
    }
}
