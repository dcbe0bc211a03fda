//! The NoCloud files (`meta-data`, `user-data`, `vendor-data`, `network-config`) and our own small document.
//!
//! All of it is JSON, which is YAML that nobody can break out of: no value is ever put into a text by hand.

use serde_json::{Value, json};

use crate::metadata::document::{Addressing, Document, Network, SSH_KEYS_MAX};
use crate::node::install::task::{Seed, SeedFile};

/// How often cloud-init tries to phone home, ten seconds apart at most: an appliance restarts in less.
const PHONE_HOME_TRIES: u32 = 30;

/// Whether what is rendered proves who it was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    Included,
    LeftOut,
}

impl Document {
    /// What the agent puts on the disk it has written.
    pub fn seed(&self) -> Seed {
        let file = |name: &str, text: String| SeedFile { name: name.to_owned(), text };
        Seed {
            files: vec![
                file("meta-data", self.meta_data(Secrets::Included)),
                file("user-data", self.user_data_text().to_owned()),
                file("vendor-data", self.vendor_data_text()),
                file("network-config", self.network_config()),
            ],
        }
    }

    pub fn meta_data(&self, secrets: Secrets) -> String {
        let mut farrier = json!({ "phone_home": self.phone_home.url() });
        if secrets == Secrets::Included {
            farrier["token"] = self.phone_home.token.as_str().into();
        }
        text_of(&json!({
            "instance-id": self.instance.to_string(),
            "local-hostname": self.host_name.as_str(),
            "public-keys": self.key_lines(),
            "farrier": farrier,
        }))
    }

    /// As the operator gave it. cloud-init wants the file to be there, even if nothing is wanted of it.
    pub fn user_data_text(&self) -> &str {
        self.user_data.as_ref().map_or("#cloud-config\n{}\n", |data| data.as_str())
    }

    /// Has cloud-init phone home, and the operator's vendor data beside that.
    pub fn vendor_data_text(&self) -> String {
        // cloud-init posts a form and has no place for a token but the address.
        let phone_home = json!({
            "phone_home": {
                "url": format!("{}/{}", self.phone_home.url(), self.phone_home.token.as_str()),
                "post": ["instance_id", "hostname", "pub_key_rsa", "pub_key_ecdsa", "pub_key_ed25519"],
                "tries": PHONE_HOME_TRIES,
            }
        });
        match &self.vendor_data {
            None => format!("#cloud-config\n{}", text_of(&phone_home)),
            Some(data) => {
                let ours = json!({ "type": "text/cloud-config", "content": format!("#cloud-config\n{phone_home}\n") });
                // Its first line says what it is.
                let theirs = json!({ "content": data.as_str() });
                format!("#cloud-config-archive\n{}", text_of(&json!([ours, theirs])))
            }
        }
    }

    pub fn network_config(&self) -> String {
        text_of(&self.network.version_2())
    }

    /// Our own: what is public of it, in one piece.
    pub fn node_json(&self) -> Value {
        json!({
            "instance_id": self.instance.to_string(),
            "host_name": self.host_name.as_str(),
            "ssh_keys": self.key_lines(),
            "network": self.network.version_2(),
            "phone_home": self.phone_home.url(),
        })
    }

    /// As `authorized_keys` has them.
    pub fn authorized_keys(&self) -> String {
        self.key_lines().iter().map(|line| format!("{line}\n")).collect()
    }

    pub(super) fn key_lines(&self) -> Vec<String> {
        self.ssh_keys.iter().take(SSH_KEYS_MAX).map(ToString::to_string).collect()
    }
}

impl Network {
    /// Network configuration version 2 of cloud-init, which is netplan's.
    fn version_2(&self) -> Value {
        let port = |(index, port): (usize, &crate::metadata::document::NetworkPort)| {
            let mut entry = json!({ "match": { "macaddress": port.mac.to_string() } });
            match &port.addressing {
                Addressing::Dhcp => entry["dhcp4"] = true.into(),
                Addressing::Fixed { address, gateway, dns } => {
                    entry["addresses"] = json!([address.to_string()]);
                    if let Some(gateway) = gateway {
                        entry["routes"] = json!([{ "to": "0.0.0.0/0", "via": gateway.to_string() }]);
                    }
                    if !dns.is_empty() {
                        let addresses: Vec<String> = dns.iter().map(ToString::to_string).collect();
                        entry["nameservers"] = json!({ "addresses": addresses });
                    }
                }
            }
            (format!("port{index}"), entry)
        };
        let ports: serde_json::Map<String, Value> = self.ports.iter().enumerate().map(port).collect();
        json!({ "version": 2, "ethernets": ports })
    }
}

fn text_of(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metadata::document::{NetworkPort, UserData};
    use crate::metadata::testing::{MAC, document};
    use crate::net::MacAddr;

    /// As cloud-init reads it.
    fn yaml(text: &str) -> Value {
        serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    fn file<'a>(seed: &'a Seed, name: &str) -> &'a str {
        &seed.files.iter().find(|file| file.name == name).unwrap().text
    }

    #[test]
    fn a_seed_has_what_a_first_boot_needs() {
        let mut document = document();
        document.user_data = Some(UserData::try_from("#!/bin/sh\necho \"$HOME\"\n".to_owned()).unwrap());
        let seed = document.seed();
        let meta = yaml(file(&seed, "meta-data"));
        assert_eq!(meta["instance-id"], document.instance.to_string());
        assert_eq!(meta["local-hostname"], "node07.example.org");
        assert_eq!(meta["public-keys"][0], document.ssh_keys[0].to_string());
        assert_eq!(meta["farrier"]["phone_home"], "http://192.168.2.2/metadata/v1/phone-home");
        assert_eq!(meta["farrier"]["token"], document.phone_home.token.as_str());
        assert_eq!(file(&seed, "user-data"), "#!/bin/sh\necho \"$HOME\"\n");
        let network = yaml(file(&seed, "network-config"));
        assert_eq!(network["version"], 2);
        assert_eq!(network["ethernets"]["port0"]["match"]["macaddress"], MAC.to_string());
        assert_eq!(network["ethernets"]["port0"]["dhcp4"], true);
        let vendor = file(&seed, "vendor-data");
        assert!(vendor.starts_with("#cloud-config\n"));
        let url = format!("http://192.168.2.2/metadata/v1/phone-home/{}", document.phone_home.token.as_str());
        assert_eq!(yaml(vendor)["phone_home"]["url"], url);
    }

    #[test]
    fn what_is_public_has_no_secret() {
        let mut document = document();
        document.user_data = Some(UserData::try_from("canary".to_owned()).unwrap());
        document.vendor_data = Some(UserData::try_from("canary".to_owned()).unwrap());
        let token = document.phone_home.token.as_str().to_owned();
        for text in [
            document.meta_data(Secrets::LeftOut),
            document.network_config(),
            document.node_json().to_string(),
            document.authorized_keys(),
        ] {
            assert!(!text.contains(&token) && !text.contains("canary"), "{text}");
        }
    }

    #[test]
    fn fixed_addresses_and_more_ports_are_written() {
        let mut document = document();
        document.network.ports.push(NetworkPort {
            mac: MacAddr([0x52, 0x54, 0, 0, 0, 9]),
            addressing: Addressing::Fixed {
                address: "10.0.0.7/24".parse().unwrap(),
                gateway: Some("10.0.0.1".parse().unwrap()),
                dns: vec!["10.0.0.3".parse().unwrap()],
            },
        });
        let port = &yaml(&document.network_config())["ethernets"]["port1"];
        assert_eq!(port["addresses"], json!(["10.0.0.7/24"]));
        assert_eq!(port["routes"], json!([{ "to": "0.0.0.0/0", "via": "10.0.0.1" }]));
        assert_eq!(port["nameservers"]["addresses"], json!(["10.0.0.3"]));
        assert!(port.get("dhcp4").is_none());
    }

    proptest! {
        #[test]
        fn vendor_data_of_any_text_comes_back_and_ours_stays(text in "\\PC{0,80}|[ -~\n\t\"'\\\\{}\\[\\]]{0,80}") {
            let mut document = document();
            document.vendor_data = Some(UserData::try_from(text.clone()).unwrap());
            let rendered = document.vendor_data_text();
            let parts: Value = serde_json::from_str(rendered.strip_prefix("#cloud-config-archive\n").unwrap()).unwrap();
            prop_assert_eq!(parts.as_array().unwrap().len(), 2);
            prop_assert_eq!(parts[1]["content"].as_str().unwrap(), text);
            let ours = parts[0]["content"].as_str().unwrap().strip_prefix("#cloud-config\n").unwrap();
            let ours: Value = serde_json::from_str(ours).unwrap();
            prop_assert!(ours["phone_home"]["url"].as_str().unwrap().ends_with(document.phone_home.token.as_str()));
        }

        #[test]
        fn comments_of_keys_come_back_from_json_and_from_yaml(comment in "[ -~]{0,60}|\\PC{0,30}") {
            let mut document = document();
            let line = format!("{} {comment}", document.ssh_keys[0].bare());
            let Ok(key) = line.parse::<crate::metadata::ssh_key::SshKey>() else { return Ok(()) };
            document.ssh_keys = vec![key.clone()];
            let text = document.meta_data(Secrets::Included);
            let json: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(json["public-keys"][0].as_str().unwrap(), key.to_string());
            prop_assert_eq!(yaml(&text), json);
            prop_assert_eq!(document.authorized_keys().lines().count(), 1);
        }
    }
}
