//! The document as EC2 lays it out: a tree of texts, where the name of a folder ends in a slash.
//!
//! ```text
//!  /                     versions
//!  /<version>/           meta-data/  user-data
//!  /<version>/meta-data/ instance-id  hostname  local-hostname  local-ipv4  mac  public-keys/  placement/  network/
//!  /<version>/user-data
//! ```
//! `dynamic/instance-identity` is a document that Amazon signs, and 404 here; cloud-init gets along without it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::metadata::document::Document;
use crate::net::MacAddr;

/// Those that cloud-init asks for (2009-04-04 at least, 2016-09-02, 2018-09-24, 2021-03-23), and what others pin.
const VERSIONS: [&str; 8] = [
    "2008-02-01",
    "2009-04-04",
    "2011-01-01",
    "2014-11-05",
    "2016-09-02",
    "2018-09-24",
    "2021-03-23",
    "latest",
];
/// Where session tokens are got.
pub const TOKEN_PATH: &str = "/latest/api/token";
/// A machine in a rack has neither, and some programs insist. A region is its zone without the last letter.
const ZONE: &str = "farrier-1a";
const REGION: &str = "farrier-1";

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A text, or a folder's listing.
    Text(String),
    /// The one secret of this tree, which there may be, may have been, or may never be.
    UserData,
}

/// Whether a path is one of this tree's, or would be of another version's.
pub fn takes(path: &str) -> bool {
    let first = segments(path).next().unwrap_or_default();
    VERSIONS.contains(&first) || first.len() == 10 && first.starts_with("20") && first.as_bytes()[4] == b'-'
}

/// Looks a path up as `mac` at `address` would see it.
pub fn look(document: &Document, mac: MacAddr, address: Ipv4Addr, path: &str) -> Option<Found> {
    let mut names = segments(path);
    let Some(version) = names.next() else {
        return Some(Found::Text(VERSIONS.join("\n")));
    };
    if !VERSIONS.contains(&version) {
        return None;
    }
    match names.next() {
        None => Some(Found::Text(
            if document.user_data.is_some() { "meta-data/\nuser-data" } else { "meta-data/" }.into(),
        )),
        Some("user-data") => names.next().is_none().then_some(Found::UserData),
        Some("meta-data") => {
            let wanted: Vec<&str> = names.collect();
            meta_data(document, mac, address, &wanted).map(Found::Text)
        }
        Some(_) => None,
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

fn meta_data(document: &Document, mac: MacAddr, address: Ipv4Addr, wanted: &[&str]) -> Option<String> {
    if wanted == ["public-keys"] && !document.ssh_keys.is_empty() {
        let names = (0..document.ssh_keys.len()).map(|index| format!("{index}=key-{index}"));
        return Some(names.collect::<Vec<_>>().join("\n"));
    }
    let leaves = leaves(document, mac, address);
    let within = |(path, _): &&(String, String)| {
        let mut path = path.split('/');
        wanted.iter().all(|name| path.next() == Some(name))
    };
    let below: Vec<&(String, String)> = leaves.iter().filter(within).collect();
    let mut listing = BTreeSet::new();
    for (path, text) in below {
        let mut rest = path.split('/').skip(wanted.len());
        match (rest.next(), rest.next()) {
            (None, _) => return Some(text.clone()),
            (Some(name), None) => listing.insert(name.to_owned()),
            (Some(name), Some(_)) => listing.insert(format!("{name}/")),
        };
    }
    (!listing.is_empty()).then(|| listing.into_iter().collect::<Vec<_>>().join("\n"))
}

fn leaves(document: &Document, mac: MacAddr, address: Ipv4Addr) -> Vec<(String, String)> {
    let host_name = document.host_name.as_str();
    let interface = format!("network/interfaces/macs/{mac}");
    let mut leaves: Vec<(String, String)> = [
        ("instance-id", document.instance.to_string()),
        ("hostname", host_name.to_owned()),
        ("local-hostname", host_name.to_owned()),
        ("local-ipv4", address.to_string()),
        ("mac", mac.to_string()),
        ("placement/availability-zone", ZONE.to_owned()),
        ("placement/region", REGION.to_owned()),
    ]
    .map(|(path, text)| (path.to_owned(), text))
    .into();
    leaves.push((format!("{interface}/device-number"), "0".to_owned()));
    leaves.push((format!("{interface}/local-hostname"), host_name.to_owned()));
    leaves.push((format!("{interface}/local-ipv4s"), address.to_string()));
    leaves.push((format!("{interface}/mac"), mac.to_string()));
    for (index, key) in document.key_lines().into_iter().enumerate() {
        leaves.push((format!("public-keys/{index}/openssh-key"), key));
    }
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::document::UserData;
    use crate::metadata::testing::{MAC, document};

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 50);

    fn text(document: &Document, path: &str) -> Option<String> {
        match look(document, MAC, ADDRESS, path)? {
            Found::Text(text) => Some(text),
            Found::UserData => Some("(user data)".to_owned()),
        }
    }

    #[test]
    fn every_version_has_the_same_tree() {
        let document = document();
        assert!(text(&document, "/").unwrap().lines().any(|version| version == "2009-04-04"));
        for version in VERSIONS {
            let at = |path: &str| text(&document, &format!("/{version}{path}"));
            assert!(takes(&format!("/{version}/x")));
            assert_eq!(at("/meta-data/instance-id"), Some(document.instance.to_string()));
            assert_eq!(at("/meta-data/local-hostname"), Some("node07.example.org".to_owned()));
            assert_eq!(at("/meta-data/local-ipv4"), Some("192.168.2.50".to_owned()));
            assert_eq!(at("/meta-data/mac"), Some(MAC.to_string()));
            assert_eq!(at("/meta-data/public-keys/"), Some("0=key-0".to_owned()));
            assert_eq!(at("/meta-data/public-keys/0/openssh-key"), Some(document.ssh_keys[0].to_string()));
            assert_eq!(at("/meta-data/public-keys/0/"), Some("openssh-key".to_owned()));
            assert_eq!(at("//meta-data//mac"), Some(MAC.to_string()));
        }
    }

    #[test]
    fn folders_are_listed_as_ec2_lists_them() {
        let mut document = document();
        for path in ["/latest/meta-data", "/latest/meta-data/"] {
            assert_eq!(
                text(&document, path).unwrap().lines().collect::<Vec<_>>(),
                [
                    "hostname",
                    "instance-id",
                    "local-hostname",
                    "local-ipv4",
                    "mac",
                    "network/",
                    "placement/",
                    "public-keys/"
                ]
            );
        }
        assert_eq!(text(&document, "/latest"), Some("meta-data/".to_owned()));
        assert_eq!(text(&document, "/latest/meta-data/network/interfaces/macs/"), Some(format!("{MAC}/")));
        document.user_data = Some(UserData::try_from("x".to_owned()).unwrap());
        assert_eq!(text(&document, "/latest/"), Some("meta-data/\nuser-data".to_owned()));
        assert_eq!(look(&document, MAC, ADDRESS, "/2021-03-23/user-data"), Some(Found::UserData));
        document.ssh_keys.clear();
        assert_eq!(text(&document, "/latest/meta-data/public-keys/"), None);
    }

    /// Walks the tree as cloud-init does, from its listings alone.
    #[test]
    fn whatever_a_listing_names_is_there() {
        let document = document();
        let mut folders = vec!["/latest/meta-data/".to_owned()];
        let mut read = 0;
        while let Some(folder) = folders.pop() {
            for name in text(&document, &folder).unwrap_or_else(|| panic!("{folder}")).lines() {
                match name.split_once('=') {
                    Some((index, _)) => folders.push(format!("{folder}{index}/")),
                    None if name.ends_with('/') => folders.push(format!("{folder}{name}")),
                    None => {
                        assert!(text(&document, &format!("{folder}{name}")).is_some(), "{folder}{name}");
                        read += 1;
                    }
                }
            }
        }
        assert_eq!(read, 12);
    }

    #[test]
    fn what_is_not_there_is_not_there() {
        let document = document();
        for path in [
            "/latest/dynamic",
            "/latest/dynamic/instance-identity/document",
            "/latest/meta-data/iam/security-credentials/",
            "/latest/meta-data/mac/x",
            "/latest/meta-data/public-keys/1/openssh-key",
            "/latest/meta-data/public-keys/0=key-0",
            "/latest/meta-data/..",
            "/1999-01-01/meta-data/mac",
            "/2022-13-45/meta-data/mac",
            "/LATEST/meta-data/mac",
        ] {
            assert_eq!(look(&document, MAC, ADDRESS, path), None, "{path}");
        }
        for path in ["/", "/boot/script.ipxe", "/2021-03-2/", "/20ü1-03-23", "/metadata/v1/x"] {
            assert!(!takes(path), "{path}");
        }
    }
}
