//! Who may read what, and when: the whole rule, and nothing else. Pure.
//!
//! | part | an installer is at work | awaits its first boot | active | any other state |
//! |---|---|---|---|---|
//! | public: instance id, host name, public keys, network | yes | yes | yes | 404 |
//! | secret: user data, vendor data, the token | once, then 410 | once, then 410 | 410 | 404 |
//! | secret: an installer's answers | once, then 410 | 410 | 410 | 404 |
//!
//! and for every machine but the node itself: 404, whatever the state.
//!
//! # What is one read
//! Clients ask again for what they were just given: cloud-init goes over the tree once more when a version of it fails, and
//! repeats a request whose answer broke off. So the first read of a secret opens a window of [`READ_WINDOW`] for its
//! *reader*: the holder of one session token, or where a client has none, the other end of one connection. Neither can be
//! taken over by asking: whoever comes later with the same MAC and address, even in the same minute, gets a token or a
//! connection of its own, and 410, and the node's timeline says that somebody asked. The window does not grow with
//! repeated reads.
//!
//! Each of the [`Secret`]s is read by itself, though three of them carry the token: they are what different programs
//! read (cloud-init its vendor data, a first boot of ours the meta-data, an installer its answers), and each is given
//! to one reader at most.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::metadata::document::Document;
use crate::metadata::ssh_key::SshKey;
use crate::net::MacAddr;
use crate::node::install::intent::IntentId;

/// A crawl takes seconds; a client that gives up on an answer does so within this.
pub const READ_WINDOW: Duration = Duration::from_secs(60);

/// What of a node is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Public,
    Secret(Secret),
}

/// Each is given to one reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Secret {
    UserData,
    /// Has cloud-init phone home, with the token.
    VendorData,
    /// In the NoCloud meta-data, which is served without it afterwards.
    Token,
    /// Preseed, kickstart or autoinstall: a node runs one of them.
    Installer,
}

impl Secret {
    pub const ALL: [Secret; 4] = [Secret::UserData, Secret::VendorData, Secret::Token, Secret::Installer];

    pub fn as_str(self) -> &'static str {
        match self {
            Secret::UserData => "user-data",
            Secret::VendorData => "vendor-data",
            Secret::Token => "token",
            Secret::Installer => "installer",
        }
    }
}

/// What a node's state means for its metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// From when a distribution's installer is started until it says that it is done.
    Installing,
    /// From when the disk is written until the first boot phones home.
    AwaitingFirstBoot,
    Active,
    None,
}

/// What the registry knows of one node at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub intent: IntentId,
    /// The node's own.
    pub ports: Vec<MacAddr>,
    pub phase: Phase,
    /// Of this intent; a new one begins with none.
    pub reads: Reads,
}

/// What has been read of an intent's secrets; to be kept with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Reads(BTreeMap<Secret, Read>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    at: Timestamp,
    reader: Reader,
}

/// One session or one connection; a hash, from which neither can be made.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Reader([u8; 16]);

impl Reads {
    /// Whether somebody was given this secret.
    pub fn has(&self, secret: Secret) -> bool {
        self.0.contains_key(&secret)
    }
}

impl Reader {
    pub fn from_bytes(bytes: [u8; 16]) -> Reader {
        Reader(bytes)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Reader({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// Allowed once it is on disk that this reader has it.
    Record,
    /// Was there, and has been given to somebody.
    Gone,
    NotFound,
}

/// May `asker` have this part of the node that `grant` is about?
pub fn decide(asker: MacAddr, grant: &Grant, part: Part, reader: Reader, now: Timestamp) -> Decision {
    if !grant.ports.contains(&asker) {
        return Decision::NotFound;
    }
    match (grant.phase, part) {
        (Phase::None, Part::Public | Part::Secret(_)) => Decision::NotFound,
        (Phase::Installing | Phase::AwaitingFirstBoot | Phase::Active, Part::Public) => Decision::Allow,
        (Phase::Active, Part::Secret(_)) | (Phase::AwaitingFirstBoot, Part::Secret(Secret::Installer)) => {
            Decision::Gone
        }
        (Phase::Installing | Phase::AwaitingFirstBoot, Part::Secret(secret)) => {
            match grant.reads.0.get(&secret) {
                None => Decision::Record,
                // A clock that was set back between two starts closes no window; but no reader outlives a start.
                Some(read) if read.reader == reader && now.since(read.at) < READ_WINDOW => Decision::Allow,
                Some(_) => Decision::Gone,
            }
        }
    }
}

/// Why a secret was not given, decided where nobody can come between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadRefusal {
    #[error("there is nothing for this machine")]
    NotFound,
    #[error("it has been read")]
    Gone,
    /// It could not be written down, so it was not given.
    #[error("the appliance's disk does not take the note that this was read; try again")]
    NotDurable,
}

impl Grant {
    /// The reads after this one; `None` if it is one that was noted before. To be called under the registry's lock, and to
    /// be on disk before the secret leaves.
    pub fn read(
        &self,
        asker: MacAddr,
        secret: Secret,
        reader: Reader,
        now: Timestamp,
    ) -> Result<Option<Reads>, ReadRefusal> {
        match decide(asker, self, Part::Secret(secret), reader, now) {
            Decision::Allow => Ok(None),
            Decision::Record => {
                let mut reads = self.reads.clone();
                reads.0.insert(secret, Read { at: now, reader });
                Ok(Some(reads))
            }
            Decision::Gone => Err(ReadRefusal::Gone),
            Decision::NotFound => Err(ReadRefusal::NotFound),
        }
    }
}

/// What an installed system says when it has come up.
#[derive(Clone, PartialEq, Eq)]
pub struct PhoneCall {
    /// As it read it: the intent's id.
    pub instance_id: String,
    pub token: String,
    /// What it calls itself.
    pub host_name: Option<String>,
    pub ssh_host_keys: Vec<SshKey>,
}

impl fmt::Debug for PhoneCall {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PhoneCall")
            .field("instance_id", &self.instance_id)
            .field("ssh_host_keys", &self.ssh_host_keys.len())
            .finish_non_exhaustive()
    }
}

/// A call that was taken, by a first boot or an installer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// The node becomes active; or its first boot is awaited.
    First,
    /// It had called before: its answer was lost, or it booted again.
    Again,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PhoneRefusal {
    #[error("nobody waits for this call of this machine")]
    NotAwaited,
    #[error("this is not the instance that was installed last")]
    WrongInstance,
    #[error("the token is not this instance's")]
    WrongToken,
    #[error("the appliance's disk does not take the note of this call; try again")]
    NotDurable,
}

impl PhoneRefusal {
    pub fn as_str(self) -> &'static str {
        match self {
            PhoneRefusal::NotAwaited => "not-awaited",
            PhoneRefusal::WrongInstance => "wrong-instance",
            PhoneRefusal::WrongToken => "wrong-token",
            PhoneRefusal::NotDurable => "not-durable",
        }
    }
}

/// May this call make the node active?
pub fn phone_home(
    asker: MacAddr,
    document: &Document,
    grant: &Grant,
    call: &PhoneCall,
) -> Result<Answered, PhoneRefusal> {
    let answered = match grant.phase {
        // Its installer comes first, and calls elsewhere.
        Phase::None | Phase::Installing => return Err(PhoneRefusal::NotAwaited),
        Phase::AwaitingFirstBoot => Answered::First,
        Phase::Active => Answered::Again,
    };
    recognise(asker, document, grant, call).map(|()| answered)
}

/// May this call say that the disk is written?
pub fn installer_done(
    asker: MacAddr,
    document: &Document,
    grant: &Grant,
    call: &PhoneCall,
) -> Result<Answered, PhoneRefusal> {
    let answered = match grant.phase {
        Phase::None => return Err(PhoneRefusal::NotAwaited),
        Phase::Installing => Answered::First,
        Phase::AwaitingFirstBoot | Phase::Active => Answered::Again,
    };
    recognise(asker, document, grant, call).map(|()| answered)
}

fn recognise(
    asker: MacAddr,
    document: &Document,
    grant: &Grant,
    call: &PhoneCall,
) -> Result<(), PhoneRefusal> {
    if !grant.ports.contains(&asker) {
        return Err(PhoneRefusal::NotAwaited);
    }
    if call.instance_id != grant.intent.to_string() {
        return Err(PhoneRefusal::WrongInstance);
    }
    if document.phone_home.token.is(&call.token) { Ok(()) } else { Err(PhoneRefusal::WrongToken) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metadata::testing::{MAC, OTHER_MAC, document, grant};

    const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);
    const PHASES: [Phase; 4] = [Phase::Installing, Phase::AwaitingFirstBoot, Phase::Active, Phase::None];

    fn reader(number: u8) -> Reader {
        Reader::from_bytes([number; 16])
    }

    fn parts() -> impl Iterator<Item = Part> {
        Secret::ALL.map(Part::Secret).into_iter().chain([Part::Public])
    }

    #[test]
    fn the_table_is_what_the_top_of_the_file_says() {
        for phase in PHASES {
            let grant = Grant { phase, ..grant() };
            for part in parts() {
                let wanted = match (phase, part) {
                    (Phase::None, _) => Decision::NotFound,
                    (_, Part::Public) => Decision::Allow,
                    (Phase::AwaitingFirstBoot, Part::Secret(Secret::Installer)) => Decision::Gone,
                    (Phase::Installing | Phase::AwaitingFirstBoot, Part::Secret(_)) => Decision::Record,
                    (Phase::Active, Part::Secret(_)) => Decision::Gone,
                };
                assert_eq!(decide(MAC, &grant, part, reader(1), NOW), wanted, "{phase:?} {part:?}");
                assert_eq!(decide(OTHER_MAC, &grant, part, reader(1), NOW), Decision::NotFound);
            }
        }
    }

    #[test]
    fn a_secret_is_one_readers_for_a_minute_and_then_nobodys() {
        let mut grant = grant();
        grant.reads = grant.read(MAC, Secret::UserData, reader(1), NOW).unwrap().expect("to be noted");
        let at = |after: Duration, reader| grant.read(MAC, Secret::UserData, reader, NOW.plus(after));
        let last = READ_WINDOW - Duration::from_millis(1);
        assert_eq!(at(Duration::ZERO, reader(1)), Ok(None));
        assert_eq!(at(last, reader(1)), Ok(None));
        assert_eq!(at(READ_WINDOW, reader(1)), Err(ReadRefusal::Gone));
        assert_eq!(at(Duration::ZERO, reader(2)), Err(ReadRefusal::Gone));
        // The others are not concerned.
        assert!(matches!(grant.read(MAC, Secret::Token, reader(2), NOW), Ok(Some(_))));
    }

    #[test]
    fn only_the_instance_that_was_installed_makes_a_node_active() {
        let (document, mut grant) = (document(), grant());
        let good = PhoneCall {
            instance_id: document.instance.to_string(),
            token: document.phone_home.token.as_str().to_owned(),
            host_name: None,
            ssh_host_keys: Vec::new(),
        };
        assert!(!format!("{good:?}").contains(&good.token));
        assert_eq!(phone_home(MAC, &document, &grant, &good), Ok(Answered::First));
        assert_eq!(phone_home(OTHER_MAC, &document, &grant, &good), Err(PhoneRefusal::NotAwaited));
        let wrong = PhoneCall { token: good.token.replace(char::is_numeric, "0"), ..good.clone() };
        assert_eq!(phone_home(MAC, &document, &grant, &wrong), Err(PhoneRefusal::WrongToken));
        let earlier =
            PhoneCall { instance_id: "00000000-0000-0000-0000-000000000000".to_owned(), ..good.clone() };
        assert_eq!(phone_home(MAC, &document, &grant, &earlier), Err(PhoneRefusal::WrongInstance));
        // What an installer says, and what its system says, in each phase.
        let not = Err(PhoneRefusal::NotAwaited);
        for (phase, home, done) in [
            (Phase::Installing, not, Ok(Answered::First)),
            (Phase::AwaitingFirstBoot, Ok(Answered::First), Ok(Answered::Again)),
            (Phase::Active, Ok(Answered::Again), Ok(Answered::Again)),
            (Phase::None, not, not),
        ] {
            grant.phase = phase;
            assert_eq!(phone_home(MAC, &document, &grant, &good), home, "{phase:?}");
            assert_eq!(installer_done(MAC, &document, &grant, &good), done, "{phase:?}");
            assert_eq!(installer_done(OTHER_MAC, &document, &grant, &good), not);
            for refused in [&wrong, &earlier] {
                assert!(installer_done(MAC, &document, &grant, refused).is_err(), "{phase:?}");
            }
        }
    }

    #[test]
    fn reads_survive_a_restart() {
        let grant = Grant { phase: Phase::Installing, ..grant() };
        let reads = grant.read(MAC, Secret::Installer, reader(3), NOW).unwrap().unwrap();
        assert!(reads.has(Secret::Installer) && !reads.has(Secret::Token));
        let text = serde_json::to_string(&reads).unwrap();
        assert_eq!(serde_json::from_str::<Reads>(&text).unwrap(), reads);
    }

    proptest! {
        /// Whoever asks for what in whatever order: no secret ever goes to two readers, or to one after its minute.
        #[test]
        fn no_secret_goes_to_two_readers(
            asked in proptest::collection::vec((0usize..4, 0u8..3, 0u64..50_000, any::<bool>()), 0..60),
        ) {
            let (mut grant, mut now) = (Grant { phase: Phase::Installing, ..grant() }, NOW);
            let mut given: BTreeMap<Secret, (Reader, Timestamp)> = BTreeMap::new();
            for (secret, number, later, own) in asked {
                now = now.plus(Duration::from_millis(later));
                let (secret, reader) = (Secret::ALL[secret], reader(number));
                let asker = if own { MAC } else { OTHER_MAC };
                if let Ok(noted) = grant.read(asker, secret, reader, now) {
                    prop_assert!(own);
                    let (first, since) = *given.entry(secret).or_insert((reader, now));
                    prop_assert!(first == reader && now.since(since) < READ_WINDOW);
                    if let Some(reads) = noted {
                        grant.reads = reads;
                    }
                }
            }
        }
    }
}
