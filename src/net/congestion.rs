//! How TCP finds out what the link carries.
//!
//! BBR, which some systems have as their default, sends at the rate that it reckons the path to have, by a timer for
//! every connection. On a link of our own there is nothing to reckon, and the timers cost more than the sending: over a
//! virtual wire files take two to three times the processor time, and on many connections nearly twice as long (nginx both
//! ways in `benches/RESULTS.md`; a single large file may be quicker with them). There files go by Reno (RFC 5681), which
//! every Linux has and lets everybody use: it fills the link, and gives way when packets are lost. What else a system has
//! as its default stays as it is: it was chosen, or does no harm.

use socket2::Socket;

const WITHOUT_TIMERS: &str = "reno";

/// For the connections that this listener will accept. It has to come before them: a connection that began with BBR
/// keeps the timers, whatever it changes to.
pub fn choose_for(listener: &Socket) {
    if listener.tcp_congestion().is_ok_and(|by_default| paces_by_timer(&by_default)) {
        // Failing to only costs speed, which is no reason not to serve.
        let _ = listener.set_tcp_congestion(WITHOUT_TIMERS.as_bytes());
    }
}

/// Whether the algorithm of this name (padded with zeros, as the kernel has it) is of the family of BBR.
fn paces_by_timer(name: &[u8]) -> bool {
    name.starts_with(b"bbr")
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpStream};

    use socket2::{Domain, Type};

    use super::*;

    #[test]
    fn connections_are_not_paced_by_timers_whatever_the_default_is() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let by_default = listener.tcp_congestion().unwrap();
        choose_for(&listener);
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        listener.listen(1).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap().as_socket().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let chosen = accepted.tcp_congestion().unwrap();
        assert!(!paces_by_timer(&chosen), "{}", String::from_utf8_lossy(&chosen));
        if !paces_by_timer(&by_default) {
            assert_eq!(chosen, by_default);
        }
    }

    #[test]
    fn only_bbr_and_its_kin_are_replaced() {
        for (name, replaced) in
            [("bbr", true), ("bbr3", true), ("cubic", false), ("reno", false), ("dctcp", false)]
        {
            assert_eq!(paces_by_timer(name.as_bytes()), replaced, "{name}");
        }
    }
}
