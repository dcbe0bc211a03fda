//! Many DHCP clients behind one relay agent, at a steady rate, each exchange timed.
//!
//! perfdhcp tells averages and extremes; service levels are percentiles. Open loop: a slow answer delays no request. The
//! acceptance checks that are about rates use it as well.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use farrier::net::MacAddr;
use farrier::net::sys::{self, Inbox, Outgoing};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The first MAC of perfdhcp's clients; they count up from here.
pub const FIRST_MAC: u64 = 0x000c_0102_0304;
/// Answers later than this count as lost: firmware would have asked again.
pub const LOST_AFTER: Duration = Duration::from_secs(1);
/// The server answers within milliseconds; who has heard nothing for so long has heard all.
const SILENCE: Duration = Duration::from_millis(50);

pub fn client_mac(number: u64) -> MacAddr {
    let bytes = (FIRST_MAC + number).to_be_bytes();
    MacAddr([bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]])
}

#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub rate: f64,
    pub duration: Duration,
    pub clients: u64,
}

#[derive(Debug, Default)]
pub struct Answers {
    /// Milliseconds from DISCOVER to OFFER and from REQUEST to ACK.
    pub offers: Vec<f64>,
    pub acks: Vec<f64>,
    pub started: u64,
}

impl Answers {
    pub fn lost(&self) -> u64 {
        self.started - self.acks.len() as u64
    }
}

#[derive(Clone, Copy)]
struct Exchange {
    asked: Instant,
    /// Set while the REQUEST is under way.
    offered: Option<Ipv4Addr>,
    over: bool,
}

/// The relay agent: at the address that its socket is bound to.
pub struct Agent {
    socket: UdpSocket,
    address: Ipv4Addr,
    server: SocketAddrV4,
}

impl Agent {
    /// `socket` is bound to the agent's address, port 67, and does not block.
    pub fn new(socket: UdpSocket, server: Ipv4Addr) -> Agent {
        let address = match socket.local_addr() {
            Ok(SocketAddr::V4(address)) => *address.ip(),
            other => panic!("the agent's socket is bound to an address: {other:?}"),
        };
        Agent { socket, address, server: SocketAddrV4::new(server, 67) }
    }

    pub fn run(&self, load: Load) -> Answers {
        let mut inbox = Inbox::new(sys::BATCH_MAX, 1500);
        let mut answers = Answers::default();
        let mut exchanges: Vec<Exchange> =
            Vec::with_capacity((load.rate * load.duration.as_secs_f64()) as usize + 1);
        let began = Instant::now();
        loop {
            let now = Instant::now();
            let since = now - began;
            if since >= load.duration + LOST_AFTER {
                return answers;
            }
            let due = (since.min(load.duration).as_secs_f64() * load.rate) as usize;
            while exchanges.len() < due {
                let number = exchanges.len();
                let message = compose(self, number as u32, number as u64 % load.clients, None);
                self.send(&message);
                exchanges.push(Exchange { asked: Instant::now(), offered: None, over: false });
                answers.started += 1;
            }
            if since >= load.duration && answers.lost() == 0 {
                return answers;
            }
            // Waking a little late is corrected by the schedule above.
            self.wait();
            while sys::recv_batch(&self.socket, &mut inbox).is_ok_and(|count| count > 0) {
                let now = Instant::now();
                for (_, bytes) in inbox.iter() {
                    handle(bytes, now, &mut exchanges, &mut answers, |number, client, address| {
                        let client = client % load.clients;
                        self.send(&compose(self, number, client, Some(address)));
                    });
                }
            }
        }
    }

    /// Asks until the server answers; when it first did. Returns when it has answered all it was asked: those questions
    /// fill its queue, and are not to cost the load behind them its first requests.
    pub fn first_answer(&self) -> Instant {
        let mut inbox = Inbox::new(1, 1500);
        let message = compose(self, 1, 1, None);
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            self.send(&message);
            self.wait();
            if sys::recv_batch(&self.socket, &mut inbox).is_ok_and(|count| count > 0) {
                let answered = Instant::now();
                self.await_silence();
                return answered;
            }
        }
        panic!("the server did not answer within a minute");
    }

    /// Until nothing has come for a while.
    fn await_silence(&self) {
        let mut inbox = Inbox::new(sys::BATCH_MAX, 1500);
        let mut heard_at = Instant::now();
        while heard_at.elapsed() < SILENCE {
            self.wait();
            if sys::recv_batch(&self.socket, &mut inbox).is_ok_and(|count| count > 0) {
                heard_at = Instant::now();
            }
        }
    }

    fn wait(&self) {
        let mut waiting = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut waiting, PollTimeout::from(1_u8));
    }

    fn send(&self, message: &[u8]) {
        // Index 0: whatever interface the address is on. A full queue is a lost request, as on any wire.
        let outgoing = Outgoing { payload: message, to: self.server, from: (self.address, 0) };
        sys::send_batch(&self.socket, &[outgoing]);
    }
}

fn handle(
    bytes: &[u8],
    now: Instant,
    exchanges: &mut [Exchange],
    answers: &mut Answers,
    request: impl Fn(u32, u64, Ipv4Addr),
) {
    let (Some(xid), Some(kind)) = (bytes.get(4..8), bytes.get(242)) else { return };
    let xid = u32::from_be_bytes([xid[0], xid[1], xid[2], xid[3]]);
    let Some(exchange) = exchanges.get_mut(xid as usize).filter(|exchange| !exchange.over) else { return };
    let took = now - exchange.asked;
    if took > LOST_AFTER {
        exchange.over = true;
        return;
    }
    let millis = took.as_secs_f64() * 1000.0;
    match (kind, exchange.offered) {
        (2, None) => {
            answers.offers.push(millis);
            let address = Ipv4Addr::new(bytes[16], bytes[17], bytes[18], bytes[19]);
            request(xid, u64::from(xid), address);
            exchange.offered = Some(address);
            exchange.asked = Instant::now();
        }
        (5, Some(_)) => {
            answers.acks.push(millis);
            exchange.over = true;
        }
        _ => {}
    }
}

/// DISCOVER, or the REQUEST for `address`.
fn compose(agent: &Agent, xid: u32, client: u64, address: Option<Ipv4Addr>) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..4].copy_from_slice(&[1, 1, 6, 1]);
    bytes[4..8].copy_from_slice(&xid.to_be_bytes());
    bytes[24..28].copy_from_slice(&agent.address.octets());
    bytes[28..34].copy_from_slice(&client_mac(client).0);
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend_from_slice(&[53, 1, if address.is_some() { 3 } else { 1 }]);
    if let Some(address) = address {
        bytes.extend_from_slice(&[54, 4]);
        bytes.extend_from_slice(&agent.server.ip().octets());
        bytes.extend_from_slice(&[50, 4]);
        bytes.extend_from_slice(&address.octets());
    }
    bytes.extend_from_slice(&[55, 7, 1, 28, 2, 3, 15, 6, 12, 255]);
    bytes
}
