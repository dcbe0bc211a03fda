//! Why a datagram got no answer: the same word in log, counter, timeline and test.

use std::fmt;

macro_rules! silences {
    ($($(#[$doc:meta])* $name:ident => $word:literal,)*) => {
        /// Every reason for which a datagram ends without a reply.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Silence {
            $($(#[$doc])* $name,)*
        }

        impl Silence {
            pub const ALL: &'static [Silence] = &[$(Silence::$name,)*];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Silence::$name => $word,)*
                }
            }
        }
    };
}

silences! {
    /// Shorter than the fixed part of a message.
    Truncated => "truncated",
    /// `op` is neither request nor reply.
    BadOperation => "bad-operation",
    /// Not an Ethernet address one machine can own.
    BadHardwareAddress => "bad-hardware-address",
    /// No message type, and an empty vendor field or one that is not ours to read: BOOTP (RFC 951), and `dhcp.bootp` is
    /// off or the field another vendor's.
    Bootp => "bootp",
    /// A BOOTP client that has no fixed address, or nobody approved: without one it could only keep one of the pool's.
    BootpWithoutAddress => "bootp-without-address",
    /// An OFFER, ACK or NAK: another server is at work on this bridge.
    ReplyFromAnotherServer => "reply-from-another-server",
    /// A message type servers do not handle, or not this one.
    UnknownMessage => "unknown-message",
    /// RFC 1542 §4.1.1.
    TooManyHops => "too-many-hops",
    /// Came through a relay agent from a link that is not ours.
    Relayed => "relayed",
    /// A DISCOVER that names a server is a contradiction.
    DiscoverNamesServer => "discover-names-server",
    /// Meant for another server.
    OtherServer => "other-server",
    /// Another server answers on the bridge, and `dhcp.on_rival = "hold"`.
    RivalOnBridge => "rival-on-bridge",
    /// `dhcp.unknown = "ignore"` and nobody registered this MAC.
    UnknownMac => "unknown-mac",
    /// `dhcp.mode` is not "server", and this is between the client and the server that gives the addresses.
    AddressElsewhere => "address-elsewhere",
    /// `dhcp.mode = "proxy"`: it wants an address, and nothing to boot.
    NotABootClient => "not-a-boot-client",
    /// It remembers an address we have no record of, and we are not authoritative.
    UnknownClient => "unknown-client",
    /// No address is free.
    PoolExhausted => "pool-exhausted",
    /// Strangers hold as many offers as they may.
    OfferLimit => "offer-limit",
    /// Whether somebody uses the address is being asked; the answer follows within the wait.
    Probing => "probing",
    /// Strangers hold as many addresses as they may (`dhcp.strangers.share`).
    StrangerLimit => "stranger-limit",
    /// Strangers behind its port of the bridge hold as many as they may (`dhcp.strangers.per_port`).
    PortLimit => "port-limit",
    /// Strangers ask more often than is answered (`dhcp.strangers.per_second`).
    StrangerRate => "stranger-rate",
    /// This stranger asks over and over.
    AsksTooOften => "asks-too-often",
    /// It declines what it gets.
    TooManyDeclines => "too-many-declines",
    /// A DECLINE was heeded; none is ever answered.
    Declined => "declined",
    /// A DECLINE of a stranger, of whom so many were heeded already that this address is not withheld.
    DeclineLimit => "decline-limit",
    /// A DECLINE of an address that is not the client's.
    DeclineUnfounded => "decline-unfounded",
    /// A RELEASE was heeded; none is ever answered.
    Released => "released",
    /// A RELEASE of an address that is not the client's.
    ReleaseUnfounded => "release-unfounded",
    /// An INFORM that says nowhere to answer to.
    InformWithoutAddress => "inform-without-address",
    /// The answer would go to an address off this network.
    OffNetwork => "off-network",
    /// Port 4011 was asked by something that is not a boot ROM, or in a message it does not take.
    NotABootRequest => "not-a-boot-request",
    /// Port 4011, or in proxy mode port 67, was asked for a boot file and there is none for this client.
    NothingToBoot => "nothing-to-boot",
    /// Port 4011 was asked for signed boot items (PXE 2.1, BIS), which nobody signs.
    BisRefused => "bis-refused",
}

impl fmt::Display for Silence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
