//! Other DHCP servers on the bridge, by what they were heard to say: for a proxy the ones that give the addresses.
//!
//! Only where we are not the server there ourselves (`dhcp.mode`); a bounded table, in memory.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::dhcp::wire::{Message, MessageType, OptionCode};
use crate::net::MacAddr;

/// One is usual, two are a mistake; a flood of made-up ones pushes out its own, for who was heard most stays.
const SERVERS_MAX: usize = 16;

/// A server and what it did so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OtherServer {
    /// By its server identifier, or where it has none by the address it sent from.
    #[schema(value_type = String, format = "ipv4")]
    pub address: Ipv4Addr,
    pub mac: MacAddr,
    pub offers: u64,
    pub acks: u64,
    pub naks: u64,
    pub last_heard_at: Timestamp,
}

/// One reply of another server, in the words of the timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherReply {
    /// Whom it is for.
    pub client: MacAddr,
    pub server: Ipv4Addr,
    pub server_mac: MacAddr,
    pub message: &'static str,
    pub xid: u32,
    pub address: Option<Ipv4Addr>,
    pub boot_file: Option<String>,
}

impl OtherReply {
    /// `None` for what is no reply of a DHCP server to an Ethernet station.
    pub fn read(bytes: &[u8], source: Ipv4Addr, server_mac: MacAddr) -> Option<OtherReply> {
        let message = Message::parse(bytes).ok().filter(Message::is_reply)?;
        let client = MacAddr(<[u8; 6]>::try_from(message.chaddr()).ok()?);
        let word = match message.message_type()? {
            MessageType::Offer => "offer",
            MessageType::Ack => "ack",
            MessageType::Nak => "nak",
            _ => return None,
        };
        let server = message.options().address(OptionCode::ServerIdentifier).unwrap_or(source);
        let file = message.options().bytes(OptionCode::BootfileName).unwrap_or(message.file());
        let file = file.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(OtherReply {
            client,
            server,
            server_mac,
            message: word,
            xid: message.xid(),
            address: Some(message.yiaddr()).filter(|address| !address.is_unspecified()),
            boot_file: (!file.is_empty()).then(|| file.escape_ascii().to_string()),
        })
    }
}

#[derive(Debug, Default)]
pub struct Rivals {
    servers: Vec<OtherServer>,
}

impl Rivals {
    /// Takes note; true if this server is new.
    pub fn note(&mut self, reply: &OtherReply, now: Timestamp) -> bool {
        let known = self
            .servers
            .iter_mut()
            .find(|server| server.address == reply.server && server.mac == reply.server_mac);
        let is_new = known.is_none();
        let server = match known {
            Some(server) => server,
            None => {
                self.make_room();
                self.servers.push(OtherServer {
                    address: reply.server,
                    mac: reply.server_mac,
                    offers: 0,
                    acks: 0,
                    naks: 0,
                    last_heard_at: now,
                });
                let last = self.servers.len() - 1;
                &mut self.servers[last]
            }
        };
        server.last_heard_at = now;
        match reply.message {
            "offer" => server.offers += 1,
            "ack" => server.acks += 1,
            _ => server.naks += 1,
        }
        is_new
    }

    fn make_room(&mut self) {
        if self.servers.len() < SERVERS_MAX {
            return;
        }
        let said = |server: &OtherServer| server.offers + server.acks + server.naks;
        let least = self.servers.iter().enumerate().min_by_key(|(_, server)| said(server));
        if let Some((index, _)) = least {
            self.servers.remove(index);
        }
    }

    pub fn servers(&self) -> &[OtherServer] {
        &self.servers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::testing::{ClientMessage, World, address, mac, reply, settings};

    fn said(server: u8) -> OtherReply {
        OtherReply {
            client: mac(1),
            server: address(server),
            server_mac: mac(server),
            message: "offer",
            xid: 7,
            address: None,
            boot_file: None,
        }
    }

    #[test]
    fn a_reply_is_read_and_a_request_is_not() {
        let mut world = World::new(settings());
        let discover = ClientMessage::discover(mac(1)).uefi();
        let offer = world.send(&discover);
        let read = OtherReply::read(&reply(&offer).bytes, address(9), mac(9)).unwrap();
        assert_eq!((read.client, read.message, read.address), (mac(1), "offer", Some(address(50))));
        assert_eq!(
            read.server,
            crate::dhcp::testing::SERVER,
            "by its own word, not by where it was sent from"
        );
        assert_eq!(read.boot_file.as_deref(), Some("uefi-x64/shimx64.efi"));
        assert_eq!(OtherReply::read(&discover.bytes(), address(9), mac(9)), None);
        assert_eq!(OtherReply::read(b"", address(9), mac(9)), None);
    }

    #[test]
    fn made_up_servers_do_not_push_out_a_real_one() {
        let mut rivals = Rivals::default();
        let now = Timestamp::from_millis(1);
        assert!(rivals.note(&said(1), now) && !rivals.note(&said(1), now));
        for made_up in 2..=255 {
            assert!(rivals.note(&said(made_up), now));
        }
        assert_eq!(rivals.servers().len(), SERVERS_MAX);
        assert_eq!((rivals.servers()[0].address, rivals.servers()[0].offers), (address(1), 2));
    }
}
