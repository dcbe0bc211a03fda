//! The same content as TFTP asks for it.

use std::net::SocketAddrV4;

use crate::boot::namespace;
use crate::bootplane::content::{BootContent, Ticket, Unserved, printable};
use crate::net::MacAddr;
use crate::node::timeline::{Stage, TftpFacts, Transport};
use crate::tftp::{FileSource, NotServed, Opened, TransferReport};

/// TFTP hands back a number: the MAC in the low 48 bits, the stage above it. Nothing is remembered, so no transfer
/// that is never reported can leave anything behind.
fn pack_ticket(ticket: &Ticket) -> u64 {
    let mac = ticket.mac.0.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    let stage = match ticket.stage {
        Stage::Dhcp => 0_u64,
        Stage::Loader => 1,
        Stage::Script => 2,
        Stage::Kernel => 3,
        Stage::Ramdisk => 4,
        Stage::Agent => 5,
        Stage::Enrolled => 6,
    };
    stage << 48 | mac
}

fn unpack_ticket(ticket: u64) -> Option<(MacAddr, Stage)> {
    let stage = match ticket >> 48 {
        1 => Stage::Loader,
        2 => Stage::Script,
        3 => Stage::Kernel,
        4 => Stage::Ramdisk,
        // No file belongs to the others.
        _ => return None,
    };
    let [_, _, mac @ ..] = ticket.to_be_bytes();
    Some((MacAddr(mac), stage))
}

impl FileSource for BootContent {
    fn open(&self, peer: SocketAddrV4, name: &[u8]) -> Result<Opened, NotServed> {
        let now = self.clock.now();
        match BootContent::open(self, *peer.ip(), name, Transport::Tftp, now) {
            Ok(served) => {
                self.began(&served.ticket, now);
                let ticket = pack_ticket(&served.ticket);
                Ok(Opened { ticket, bytes: served.bytes, restraint: served.restraint })
            }
            Err(Unserved::UnknownPeer | Unserved::BadName(_)) => Err(NotServed::Refused),
            Err(Unserved::NotYet) => Err(NotServed::NotYet),
            Err(
                Unserved::NoSuchName
                | Unserved::NotInstalled
                | Unserved::ForeignMac
                | Unserved::NoToken
                | Unserved::NotAssigned,
            ) => Err(NotServed::NotFound),
        }
    }

    fn finished(&self, report: TransferReport) {
        let Some((mac, stage)) = unpack_ticket(report.ticket) else { return };
        let name = namespace::canonical(report.name.as_bytes())
            .unwrap_or_else(|_| printable(report.name.as_bytes()));
        let (transport, size) = (Transport::Tftp, report.size);
        let ticket = Ticket {
            mac,
            transport,
            stage,
            name,
            size,
            plan: None,
            token_issued_at: None,
            profile: Vec::new(),
        };
        let TransferReport { blksize, windowsize, retransmissions, .. } = report;
        let facts = TftpFacts { blksize, windowsize, resent: retransmissions };
        self.conclude(&ticket, report.sent, report.took, report.outcome, Some(facts), self.clock.now());
    }
}
