//! Packet sockets that hear some frames of one link, and the filters (classic BPF) by which the kernel chooses them.
//!
//! A filter is a list of tests, all of which must hold; the kernel runs it before a frame is queued, so that what
//! does not pass costs its sender's moment and nothing of ours.

use std::io;

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::net::sys;

/// Octets of an Ethernet header; offsets below count from its beginning.
const ETHERNET: u32 = 14;
const ETHERTYPE_AT: u32 = 12;
const IPV4_FRAGMENT_AT: u32 = ETHERNET + 6;
const IPV4_PROTOCOL_AT: u32 = ETHERNET + 9;
const IPV4_SOURCE_AT: u32 = ETHERNET + 12;
/// Of an IPv6 header without extensions, and of what is behind it.
const IPV6_NEXT_HEADER_AT: u32 = ETHERNET + 6;
const ICMPV6_TYPE_AT: u32 = ETHERNET + 40;
/// Bits of the fragment's offset: a later fragment has no UDP header.
const FRAGMENT_OFFSET: u32 = 0x1fff;

/// Whose frames are heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those sent to us or to everybody.
    Ours,
    /// Those between two others on the link as well: it is promiscuous for it.
    Everything,
}

/// A socket of this link that hears frames of this kind which pass the filter; it does not block.
pub fn open(
    interface: u32,
    ethertype: libc::c_int,
    filter: &[SockFilter],
    reach: Reach,
) -> io::Result<Socket> {
    // Protocol 0 until the filter stands: nothing of another link, or of another kind, is ever queued.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.attach_filter(filter)?;
    socket.set_nonblocking(true)?;
    sys::bind_to_link(&socket, interface, u16::try_from(ethertype).map_err(io::Error::other)?)?;
    match reach {
        Reach::Ours => {}
        Reach::Everything => sys::hear_every_frame(&socket, interface)?,
    }
    Ok(socket)
}

/// Something that must hold of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test<'a> {
    /// UDP in IPv4, and the fragment with its header.
    Udp,
    /// … of one of these ports.
    UdpFrom(&'a [u16]),
    UdpTo(&'a [u16]),
    /// Octet of a UDP datagram's payload.
    UdpPayload {
        at: u32,
        is: u8,
    },
    /// An IPv4 packet of anybody but this sender.
    Ipv4NotFrom(std::net::Ipv4Addr),
    /// An ICMPv6 message of this type, without extension headers before it.
    Icmpv6(u8),
}

/// What stands at a place of the program, before jumps are resolved.
enum Step {
    Load {
        code: u16,
        at: u32,
    },
    /// Refuses unless what was loaded is this.
    Must(u32),
    /// Refuses if it is.
    MustNot(u32),
    /// Refuses if one of these bits is set.
    MustHaveNone(u32),
    /// Goes on behind the next `over` steps if it is.
    Enough {
        is: u32,
        over: u8,
    },
}

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
/// Behind the IPv4 header, whose length [`LOAD_HEADER_LENGTH`] has put into the index.
const LOAD_HALF_BEHIND: u16 = 0x48;
const LOAD_BYTE_BEHIND: u16 = 0x50;
const LOAD_HEADER_LENGTH: u16 = 0xb1;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// One instruction (linux/filter.h, `struct sock_filter`).
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u16,
    /// Instructions to leave out if a comparison holds, and if it does not.
    yes: u8,
    no: u8,
    value: u32,
}

/// The program that lets pass what all tests hold of.
pub fn filter(ethertype: libc::c_int, tests: &[Test<'_>]) -> Vec<SockFilter> {
    let program = program(ethertype, tests).into_iter();
    program.map(|it| SockFilter::new(it.code, it.yes, it.no, it.value)).collect()
}

fn program(ethertype: libc::c_int, tests: &[Test<'_>]) -> Vec<Instruction> {
    let instruction = |code, yes, no, value| Instruction { code, yes, no, value };
    let mut steps = vec![
        Step::Load { code: LOAD_HALF, at: ETHERTYPE_AT },
        Step::Must(u32::try_from(ethertype).unwrap_or_default()),
    ];
    for test in tests {
        test.write(&mut steps);
    }
    // Behind the steps: pass, refuse.
    let refuse = steps.len() + 1;
    let to_refuse = |place: usize| u8::try_from(refuse - place - 1).unwrap_or(u8::MAX);
    let mut program: Vec<Instruction> = steps
        .iter()
        .enumerate()
        .map(|(place, step)| match *step {
            Step::Load { code, at } => instruction(code, 0, 0, at),
            Step::Must(value) => instruction(JUMP_EQUAL, 0, to_refuse(place), value),
            Step::MustNot(value) => instruction(JUMP_EQUAL, to_refuse(place), 0, value),
            Step::MustHaveNone(bits) => instruction(JUMP_SET, to_refuse(place), 0, bits),
            Step::Enough { is, over } => instruction(JUMP_EQUAL, over, 0, is),
        })
        .collect();
    program.push(instruction(RETURN, 0, 0, u32::MAX));
    program.push(instruction(RETURN, 0, 0, 0));
    program
}

impl Test<'_> {
    fn write(&self, steps: &mut Vec<Step>) {
        let load = |code, at| Step::Load { code, at };
        match *self {
            Test::Udp => steps.extend([
                load(LOAD_BYTE, IPV4_PROTOCOL_AT),
                Step::Must(libc::IPPROTO_UDP as u32),
                load(LOAD_HALF, IPV4_FRAGMENT_AT),
                Step::MustHaveNone(FRAGMENT_OFFSET),
                load(LOAD_HEADER_LENGTH, ETHERNET),
            ]),
            Test::UdpFrom(ports) => one_of(ports, ETHERNET, steps),
            Test::UdpTo(ports) => one_of(ports, ETHERNET + 2, steps),
            Test::UdpPayload { at, is } => {
                steps.extend([load(LOAD_BYTE_BEHIND, ETHERNET + 8 + at), Step::Must(is.into())]);
            }
            Test::Ipv4NotFrom(address) => {
                steps.extend([load(LOAD_WORD, IPV4_SOURCE_AT), Step::MustNot(address.into())]);
            }
            Test::Icmpv6(kind) => steps.extend([
                load(LOAD_BYTE, IPV6_NEXT_HEADER_AT),
                Step::Must(libc::IPPROTO_ICMPV6 as u32),
                load(LOAD_BYTE, ICMPV6_TYPE_AT),
                Step::Must(kind.into()),
            ]),
        }
    }
}

/// A port of the UDP header is one of these.
fn one_of(ports: &[u16], at: u32, steps: &mut Vec<Step>) {
    steps.push(Step::Load { code: LOAD_HALF_BEHIND, at });
    let Some((last, others)) = ports.split_last() else { return };
    for (place, port) in others.iter().enumerate() {
        let over = u8::try_from(others.len() - place).unwrap_or(u8::MAX);
        steps.push(Step::Enough { is: (*port).into(), over });
    }
    steps.push(Step::Must((*last).into()));
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// The kernel's interpreter, as far as our programs use it (linux/filter.h).
    fn passes(program: &[Instruction], frame: &[u8]) -> bool {
        let (mut a, mut x, mut at) = (0_u32, 0_u32, 0_usize);
        let read = |from: u32, length: usize| {
            let from = from as usize;
            let bytes = frame.get(from..from + length)?;
            Some(bytes.iter().fold(0_u32, |value, byte| value << 8 | u32::from(*byte)))
        };
        loop {
            let Instruction { code, yes, no, value: k } = program[at];
            at += 1;
            let loaded = match code {
                LOAD_WORD => read(k, 4),
                LOAD_HALF => read(k, 2),
                LOAD_BYTE => read(k, 1),
                LOAD_HALF_BEHIND => read(x + k, 2),
                LOAD_BYTE_BEHIND => read(x + k, 1),
                LOAD_HEADER_LENGTH => {
                    let Some(first) = read(k, 1) else { return false };
                    x = (first & 15) * 4;
                    continue;
                }
                JUMP_EQUAL | JUMP_SET => {
                    let holds = if code == JUMP_EQUAL { a == k } else { a & k != 0 };
                    at += usize::from(if holds { yes } else { no });
                    continue;
                }
                RETURN => return k != 0,
                other => panic!("{other:#x} is no code of ours"),
            };
            // The kernel refuses a frame that is too short.
            let Some(loaded) = loaded else { return false };
            a = loaded;
        }
    }

    fn udp(options: usize, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 14 + 20 + options];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x40 | (5 + options / 4) as u8;
        frame[23] = 17;
        frame[26..30].copy_from_slice(&[192, 168, 2, 9]);
        frame.extend_from_slice(&from.to_be_bytes());
        frame.extend_from_slice(&to.to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn udp_is_told_by_its_ports_wherever_its_header_begins() {
        let from = program(libc::ETH_P_IP, &[Test::Udp, Test::UdpFrom(&[67, 4011])]);
        let to = program(libc::ETH_P_IP, &[Test::Udp, Test::UdpTo(&[68])]);
        for options in [0, 4, 40] {
            for (source, destination, expected) in [
                (67, 68, (true, true)),
                (4011, 9, (true, false)),
                (9, 68, (false, true)),
                (68, 67, (false, false)),
            ] {
                let frame = udp(options, source, destination, &[]);
                assert_eq!((passes(&from, &frame), passes(&to, &frame)), expected, "{source} {destination}");
            }
        }
        let whole = udp(0, 67, 68, &[]);
        for (at, value) in [(12, 0x86), (23, 6), (21, 1), (20, 0x10)] {
            let mut other = whole.clone();
            other[at] = value;
            assert!(!passes(&from, &other), "octet {at}");
        }
        // The first fragment has the header.
        let mut first = whole.clone();
        first[20] = 0x20;
        assert!(passes(&from, &first));
        assert!((0..whole.len() - 4).all(|length| !passes(&to, &whole[..length])), "cut off");
    }

    #[test]
    fn senders_and_payloads_are_told_apart() {
        let not_us = |us| program(libc::ETH_P_IP, &[Test::Udp, Test::Ipv4NotFrom(us), Test::UdpFrom(&[67])]);
        let frame = udp(0, 67, 68, &[2]);
        assert!(passes(&not_us(Ipv4Addr::new(192, 168, 2, 2)), &frame));
        assert!(!passes(&not_us(Ipv4Addr::new(192, 168, 2, 9)), &frame));
        let replies =
            program(libc::ETH_P_IP, &[Test::Udp, Test::UdpFrom(&[67]), Test::UdpPayload { at: 0, is: 2 }]);
        assert!(passes(&replies, &frame) && !passes(&replies, &udp(0, 67, 67, &[1])));
        assert!(passes(&replies, &udp(8, 67, 68, &[2])) && !passes(&replies, &udp(0, 67, 68, &[])));
    }

    #[test]
    fn router_advertisements_are_icmpv6_of_their_type() {
        let routers = program(libc::ETH_P_IPV6, &[Test::Icmpv6(134)]);
        let mut frame = vec![0; 70];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        (frame[20], frame[54]) = (58, 134);
        assert!(passes(&routers, &frame));
        for (at, value) in [(12, 8), (20, 17), (54, 133)] {
            let mut other = frame.clone();
            other[at] = value;
            assert!(!passes(&routers, &other), "octet {at}");
        }
    }
}
