//! The port we booted from, and its address: udhcpc asks for it, a script of three lines sets it up, we read the news.
//!
//! A DHCP exchange of our own, although the loader already had an address: the appliance sees the ramdisk come alive
//! on its timeline, and the lease is renewed for as long as the machine waits for orders.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use ipnetwork::Ipv4Network;

use crate::agent::collect;
use crate::agent::{BUSYBOX, LEASE_SCRIPT};
use crate::net::MacAddr;

/// Option 60 of the ramdisk's requests; the appliance tells it from an operating system by this.
pub const VENDOR_CLASS: &str = "farrier-agent";

/// Lines of udhcpc's own talk kept for the message when no lease comes.
const TALK_LINE_MAX: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Bound or renewed; the interface is set up.
    Lease { address: Ipv4Network, lease_secs: u32 },
    /// What udhcpc said: shown when there is no lease.
    Talk(String),
    /// udhcpc is gone.
    Ended(String),
}

/// Name of the interface that has `mac`.
pub fn interface_with(root: &Path, mac: MacAddr) -> Option<String> {
    collect::nics::interfaces(root).into_iter().find(|interface| interface.mac == mac).map(|found| found.name)
}

/// udhcpc at work on one interface; it runs for as long as this value lives.
pub struct Lease {
    client: Child,
    news: Receiver<News>,
}

impl Lease {
    /// Asks once a second and never gives up: a machine whose appliance comes up later shall boot without help.
    pub fn start(interface: &str) -> std::io::Result<Self> {
        let mut client = Command::new(BUSYBOX)
            .args(["udhcpc", "-f", "-i", interface, "-V", VENDOR_CLASS, "-s", LEASE_SCRIPT])
            .args(["-t", "4", "-T", "1", "-A", "1", "-O", "router"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (sender, news) = channel();
        let streams: [Option<Box<dyn std::io::Read + Send>>; 2] = [
            client.stdout.take().map(|stream| Box::new(stream) as _),
            client.stderr.take().map(|stream| Box::new(stream) as _),
        ];
        for stream in streams.into_iter().flatten() {
            let sender = sender.clone();
            // One thread a stream: udhcpc's script writes to one, udhcpc itself to the other.
            std::thread::Builder::new().name("udhcpc".to_owned()).spawn(move || {
                for line in BufReader::new(stream).lines() {
                    let Ok(line) = line else { break };
                    if sender.send(parse_line(&line)).is_err() {
                        break;
                    }
                }
                let _ = sender.send(News::Ended("udhcpc closed its output".to_owned()));
            })?;
        }
        Ok(Lease { client, news })
    }

    /// What happened within `limit`, if anything.
    pub fn wait(&self, limit: Duration) -> Option<News> {
        match self.news.recv_timeout(limit) {
            Ok(news) => Some(news),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(News::Ended("udhcpc ended".to_owned())),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

fn parse_line(line: &str) -> News {
    let talk = || News::Talk(line.chars().take(TALK_LINE_MAX).collect());
    let mut words = line.split_ascii_whitespace();
    if words.next() != Some("farrier-lease") {
        return talk();
    }
    let address = words.next().and_then(|word| word.parse().ok());
    let lease_secs = words.nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    address.map_or_else(talk, |address| News::Lease { address, lease_secs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_line_is_told_from_udhcpcs_talk() {
        let lease = parse_line("farrier-lease 192.168.2.77/24 192.168.2.2 3600");
        let address = "192.168.2.77/24".parse().unwrap();
        assert_eq!(lease, News::Lease { address, lease_secs: 3600 });
        let without_router = parse_line("farrier-lease 10.0.0.9/8 - 0");
        assert!(matches!(without_router, News::Lease { lease_secs: 0, .. }));
        for talk in ["udhcpc: broadcasting discover", "farrier-lease", "farrier-lease nonsense", ""] {
            assert_eq!(parse_line(talk), News::Talk(talk.to_owned()));
        }
    }
}
