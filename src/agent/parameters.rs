//! What the boot script tells the agent through the kernel command line: where to call, as whom, with which token.

use std::net::SocketAddrV4;

use crate::net::MacAddr;

pub const SERVER: &str = "farrier.server";
pub const MAC: &str = "farrier.mac";
pub const TOKEN: &str = "farrier.token";
/// Opens a shell on the console; nobody needs to sit in front of a machine that boots well.
pub const SHELL: &str = "farrier.shell";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// `http://192.168.2.2` or with a port; no path, no trailing slash.
    pub server: String,
    pub mac: MacAddr,
    pub token: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParametersError {
    #[error("the kernel command line has no `{key}=`; the appliance's boot script puts it there")]
    Missing { key: &'static str },
    #[error(
        "`farrier.server={value}` on the kernel command line is not http://ADDRESS or http://ADDRESS:PORT"
    )]
    Server { value: String },
    #[error("`farrier.mac={value}` on the kernel command line is not a MAC address")]
    Mac { value: String },
}

impl Parameters {
    /// Reads the text of `/proc/cmdline`. A key given twice counts as its last value, as the kernel's own do.
    pub fn parse(cmdline: &str) -> Result<Self, ParametersError> {
        let value = |key: &'static str| {
            cmdline
                .split_ascii_whitespace()
                .rev()
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
                .filter(|value| !value.is_empty())
                .ok_or(ParametersError::Missing { key })
        };
        let server = value(SERVER)?.trim_end_matches('/');
        let refused = || ParametersError::Server { value: server.chars().take(128).collect() };
        let host = server.strip_prefix("http://").ok_or_else(refused)?;
        // Only an address: the ramdisk resolves no names.
        if host.parse::<SocketAddrV4>().is_err() && host.parse::<std::net::Ipv4Addr>().is_err() {
            return Err(refused());
        }
        let mac = value(MAC)?;
        Ok(Parameters {
            server: server.to_owned(),
            mac: mac.parse().map_err(|_| ParametersError::Mac { value: mac.chars().take(64).collect() })?,
            token: value(TOKEN)?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_scripts_words_are_found_among_others() {
        let text = "BOOT_IMAGE=/vmlinuz console=ttyS0 quiet farrier.server=http://192.168.2.2:8080/ \
                    farrier.mac=52-54-00-00-00-01 farrier.token=old farrier.token=abc.def initrd=initrd.img\n";
        let parameters = Parameters::parse(text).unwrap();
        assert_eq!(parameters.server, "http://192.168.2.2:8080");
        assert_eq!(parameters.mac.to_string(), "52:54:00:00:00:01");
        assert_eq!(parameters.token, "abc.def");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let missing = Parameters::parse("farrier.server=http://10.0.0.1 farrier.mac=52:54:00:00:00:01");
        assert_eq!(missing, Err(ParametersError::Missing { key: TOKEN }));
        for server in ["https://10.0.0.1", "http://appliance", "10.0.0.1", "http://10.0.0.1/path"] {
            let text = format!("farrier.server={server} farrier.mac=52:54:00:00:00:01 farrier.token=t");
            assert!(matches!(Parameters::parse(&text), Err(ParametersError::Server { .. })), "{server}");
        }
        let mac = Parameters::parse("farrier.server=http://10.0.0.1 farrier.mac=nic0 farrier.token=t");
        assert_eq!(mac, Err(ParametersError::Mac { value: "nic0".to_owned() }));
    }
}
