//! A word of a profile's kernel command line: literal text and values of the node that boots, told apart when the profile
//! is added.
//!
//! ```text
//! hostname={node.name}   ip={node.address}   url=http://{server}/x   {metadata}   rack={node.label.rack}
//! ```
//! What is literal is inert in every loader's grammar, or the word is refused when it is added. What a value makes of it is
//! checked once more when it is filled in: a word that is not inert then is not rendered, and neither is the boot.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::boot::script::KernelArgument;
use crate::metadata::installer::Kind;
use crate::net::MacAddr;
use crate::node::NodeName;
use crate::node::labels::{LabelKey, Labels};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProfileArgument(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Value(Placeholder),
}

/// What of the node, or of us, stands in the word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placeholder {
    NodeName,
    NodeMac,
    NodeAddress,
    NodeUuid,
    NodeLabel(LabelKey),
    /// Our address on the bridge.
    Server,
    /// `http://<server>/metadata/v1`.
    Metadata,
    /// The URL of the node's answers for an installer: nothing in it is secret, and nobody else is answered there.
    Answers(Kind),
}

const KNOWN: &str = "{node.name}, {node.mac}, {node.address}, {node.uuid}, {node.label.KEY}, {server}, {metadata}, {preseed}, {kickstart} and {autoinstall}";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseArgumentError {
    #[error("`{text}`: `{{{name}}}` is no value of a node; known are {KNOWN}")]
    Unknown { text: String, name: String },
    #[error("`{text}`: a brace is opened or closed and not the other")]
    Braces { text: String },
    #[error(
        "`{text}` is not a kernel argument: one word of printable ASCII without quotes, `$`, `\\`, `;`, `&`, `|`, `<`, `>`, `(`, `)`, `#` or backquote is wanted, at most {} bytes; values stand in braces: {KNOWN}",
        KernelArgument::LEN_MAX
    )]
    NotInert { text: String },
}

/// Why a word cannot be made for this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentRefusal {
    #[error("{0} is wanted, and the node has none")]
    Missing(Placeholder),
    #[error("with this node's values argument {number} is no plain word any more, or too long")]
    NotInert { number: usize },
}

impl ArgumentRefusal {
    /// For the timeline and counters.
    pub fn as_str(&self) -> &'static str {
        match self {
            ArgumentRefusal::Missing(_) => "value-missing",
            ArgumentRefusal::NotInert { .. } => "value-not-inert",
        }
    }
}

/// The values of one boot.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    pub server: Ipv4Addr,
    pub mac: MacAddr,
    pub address: Option<Ipv4Addr>,
    pub name: Option<&'a NodeName>,
    pub uuid: Option<Uuid>,
    pub labels: &'a Labels,
}

impl Placeholder {
    fn value(&self, values: &Values<'_>) -> Option<String> {
        match self {
            Placeholder::NodeName => values.name.map(NodeName::to_string),
            Placeholder::NodeMac => Some(values.mac.to_string()),
            Placeholder::NodeAddress => values.address.map(|address| address.to_string()),
            Placeholder::NodeUuid => values.uuid.map(|uuid| uuid.to_string()),
            Placeholder::NodeLabel(key) => values.labels.get(key).map(|value| value.to_string()),
            Placeholder::Server => Some(values.server.to_string()),
            Placeholder::Metadata => Some(format!("http://{}/metadata/v1", values.server)),
            Placeholder::Answers(kind) => {
                Some(format!("http://{}/metadata/v1/{}", values.server, kind.path()))
            }
        }
    }
}

impl FromStr for Placeholder {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text {
            "node.name" => Placeholder::NodeName,
            "node.mac" => Placeholder::NodeMac,
            "node.address" => Placeholder::NodeAddress,
            "node.uuid" => Placeholder::NodeUuid,
            "server" => Placeholder::Server,
            "metadata" => Placeholder::Metadata,
            "preseed" => Placeholder::Answers(Kind::Preseed),
            "kickstart" => Placeholder::Answers(Kind::Kickstart),
            "autoinstall" => Placeholder::Answers(Kind::Autoinstall),
            other => {
                let key = other.strip_prefix("node.label.").ok_or(())?;
                Placeholder::NodeLabel(key.parse().map_err(|_| ())?)
            }
        })
    }
}

/// Without braces: it is shown by loaders as well.
impl fmt::Display for Placeholder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Placeholder::NodeName => formatter.write_str("node.name"),
            Placeholder::NodeMac => formatter.write_str("node.mac"),
            Placeholder::NodeAddress => formatter.write_str("node.address"),
            Placeholder::NodeUuid => formatter.write_str("node.uuid"),
            Placeholder::NodeLabel(key) => write!(formatter, "node.label.{key}"),
            Placeholder::Server => formatter.write_str("server"),
            Placeholder::Metadata => formatter.write_str("metadata"),
            Placeholder::Answers(Kind::Preseed) => formatter.write_str("preseed"),
            Placeholder::Answers(Kind::Kickstart) => formatter.write_str("kickstart"),
            Placeholder::Answers(Kind::Autoinstall) => formatter.write_str("autoinstall"),
        }
    }
}

impl ProfileArgument {
    /// Whether an installer that is given this word asks us for its answers.
    pub fn names_answers(&self) -> bool {
        let ours =
            |piece: &Piece| matches!(piece, Piece::Value(Placeholder::Metadata | Placeholder::Answers(_)));
        self.0.iter().any(ours)
    }

    fn fill(&self, number: usize, values: &Values<'_>) -> Result<KernelArgument, ArgumentRefusal> {
        let mut word = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(text) => word.push_str(text),
                Piece::Value(placeholder) => match placeholder.value(values) {
                    Some(value) => word.push_str(&value),
                    None => return Err(ArgumentRefusal::Missing(placeholder.clone())),
                },
            }
        }
        word.parse().map_err(|_| ArgumentRefusal::NotInert { number })
    }
}

/// Every word with the node's values, or why there is one that cannot be made.
pub fn fill(
    arguments: &[ProfileArgument],
    values: &Values<'_>,
) -> Result<Vec<KernelArgument>, ArgumentRefusal> {
    (1..).zip(arguments).map(|(number, argument)| argument.fill(number, values)).collect()
}

impl FromStr for ProfileArgument {
    type Err = ParseArgumentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let told = || text.escape_default().take(80).collect::<String>();
        let not_inert = || ParseArgumentError::NotInert { text: told() };
        if text.is_empty() || text.len() > KernelArgument::LEN_MAX {
            return Err(not_inert());
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (literal, behind) = rest.split_at(rest.find(['{', '}']).unwrap_or(rest.len()));
            if !literal.is_empty() {
                // The same alphabet as any other argument's.
                literal.parse::<KernelArgument>().map_err(|_| not_inert())?;
                pieces.push(Piece::Literal(literal.to_owned()));
            }
            rest = behind;
            if let Some(opened) = rest.strip_prefix('{') {
                let (name, behind) =
                    opened.split_once('}').ok_or_else(|| ParseArgumentError::Braces { text: told() })?;
                let value = name.parse().map_err(|()| ParseArgumentError::Unknown {
                    text: told(),
                    name: name.escape_default().take(80).collect(),
                })?;
                pieces.push(Piece::Value(value));
                rest = behind;
            } else if rest.starts_with('}') {
                return Err(ParseArgumentError::Braces { text: told() });
            }
        }
        Ok(ProfileArgument(pieces))
    }
}

impl fmt::Display for ProfileArgument {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.0 {
            match piece {
                Piece::Literal(text) => formatter.write_str(text)?,
                Piece::Value(placeholder) => write!(formatter, "{{{placeholder}}}")?,
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for ProfileArgument {
    type Error = ParseArgumentError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ProfileArgument> for String {
    fn from(argument: ProfileArgument) -> String {
        argument.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::boot::script::tests::anything;
    use crate::node::labels::parse_label;

    fn labels() -> Labels {
        ["rack=r1", "empty="].map(|text| parse_label(text).unwrap()).into_iter().collect()
    }

    fn filled(text: &str, name: Option<&str>) -> Result<String, ArgumentRefusal> {
        let (labels, name) = (labels(), name.map(|name| name.parse::<NodeName>().unwrap()));
        let values = Values {
            server: Ipv4Addr::new(192, 168, 2, 2),
            mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
            address: Some(Ipv4Addr::new(192, 168, 2, 50)),
            name: name.as_ref(),
            uuid: None,
            labels: &labels,
        };
        fill(&[text.parse().unwrap()], &values).map(|words| words[0].to_string())
    }

    #[test]
    fn values_of_the_node_stand_where_their_names_stood() {
        let anvil = Some("anvil");
        for (text, expected) in [
            ("quiet", "quiet"),
            ("hostname={node.name}", "hostname=anvil"),
            ("{node.mac}", "52:54:00:00:00:01"),
            ("ip={node.address}::{server}", "ip=192.168.2.50::192.168.2.2"),
            ("ds=nocloud-net,s={metadata}/", "ds=nocloud-net,s=http://192.168.2.2/metadata/v1/"),
            ("url={preseed}", "url=http://192.168.2.2/metadata/v1/preseed.cfg"),
            ("inst.ks={kickstart}", "inst.ks=http://192.168.2.2/metadata/v1/kickstart.cfg"),
            ("{autoinstall}", "http://192.168.2.2/metadata/v1/autoinstall/user-data"),
            ("rack={node.label.rack}", "rack=r1"),
            ("empty={node.label.empty}", "empty="),
        ] {
            assert_eq!(filled(text, anvil).as_deref(), Ok(expected), "{text}");
            assert_eq!(text.parse::<ProfileArgument>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_makes_installers_ask_us_is_a_profiles_argument_and_names_their_answers() {
        for kind in Kind::ALL {
            let words = kind.boot_arguments();
            assert!(words.iter().any(|word| word.parse::<ProfileArgument>().unwrap().names_answers()));
            for word in words {
                let filled = filled(word, None).unwrap();
                assert!(filled.parse::<KernelArgument>().is_ok(), "{filled}");
            }
            assert!(words.iter().any(|word| filled(word, None).unwrap().ends_with(kind.path())));
        }
        assert!(!"ip={node.address}".parse::<ProfileArgument>().unwrap().names_answers());
    }

    #[test]
    fn a_value_that_is_missing_or_makes_no_word_refuses_the_boot() {
        assert_eq!(filled("h={node.name}", None), Err(ArgumentRefusal::Missing(Placeholder::NodeName)));
        assert_eq!(filled("{node.uuid}", None), Err(ArgumentRefusal::Missing(Placeholder::NodeUuid)));
        let missing = filled("x={node.label.site}", None).unwrap_err();
        assert_eq!(
            (missing.as_str(), missing.to_string().contains("node.label.site")),
            ("value-missing", true)
        );
        // A word of nothing is no word.
        assert_eq!(filled("{node.label.empty}", None), Err(ArgumentRefusal::NotInert { number: 1 }));
        let long = format!("{}{{metadata}}", "a".repeat(240));
        assert_eq!(filled(&long, None).unwrap_err().as_str(), "value-not-inert");
    }

    #[test]
    fn what_is_no_value_or_not_inert_is_refused_when_it_is_added() {
        for text in ["{node.serial}", "{}", "{node.label.}", "{node.label.a b}", "x={Server}"] {
            assert!(
                matches!(text.parse::<ProfileArgument>(), Err(ParseArgumentError::Unknown { .. })),
                "{text}"
            );
        }
        for text in ["{server", "server}", "a{{server}}"] {
            assert!(text.parse::<ProfileArgument>().is_err(), "{text}");
        }
        for text in ["", "a b", "${net0/mac}", "a;b", "it's", "a#", "ü", &"a".repeat(257)] {
            assert!(
                matches!(text.parse::<ProfileArgument>(), Err(ParseArgumentError::NotInert { .. })),
                "{text}"
            );
        }
    }

    proptest! {
        /// Whatever is accepted is filled as one inert word, or not at all.
        #[test]
        fn what_is_accepted_is_filled_inert(
            text in prop_oneof![
                anything(),
                "[ -~]{0,40}|(\\{(server|node.name|node.mac|metadata)\\}|[a-z=.]{0,5}){0,5}",
                "(\\{(server|node.name|node.mac|metadata)\\}|[a-z=.]{0,5}){100,400}",
            ],
        ) {
            if let Ok(argument) = text.parse::<ProfileArgument>() {
                prop_assert_eq!(argument.to_string(), text.clone());
                if let Ok(word) = filled(&text, Some("anvil")) {
                    prop_assert!(word.parse::<KernelArgument>().is_ok());
                }
            }
        }
    }
}
