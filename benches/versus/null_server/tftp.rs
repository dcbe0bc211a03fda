//! Answers every request with an OACK, and every ACK with the block behind it, of one file and in one block size.
//!
//! From one port, so that many clients are answered by one call; nothing is remembered of any of them.

use std::io::IoSlice;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;

use farrier::net::sys::{self, BATCH_MAX, Inbox, Pieces};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::bed::Bed;
use crate::state;
use crate::tftp::{CROWD_BLKSIZE, CROWD_SIZE};

pub const ARGUMENT: &str = "tftp";
const SLOT: usize = 600;
const QUEUE_BYTES: usize = 16 * 1024 * 1024;

pub fn run() -> ! {
    let socket = Bed::bridge().udp_socket(69).expect("port 69");
    setsockopt(&socket, sockopt::RcvBufForce, &QUEUE_BYTES).expect("we are root here");
    setsockopt(&socket, sockopt::SndBufForce, &QUEUE_BYTES).expect("we are root here");
    let content = state::content(CROWD_SIZE);
    let blksize = usize::from(CROWD_BLKSIZE);
    let option_ack = format!("\0\x06blksize\0{blksize}\0");
    let mut inbox = Inbox::new(BATCH_MAX, SLOT);
    loop {
        let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut waiting, PollTimeout::NONE);
        if sys::recv_batch(&socket, &mut inbox).is_err() {
            continue;
        }
        // Where a block begins, its header, and whose it is; `None` is the OACK.
        let mut answers: Vec<(Option<usize>, [u8; 4], SocketAddrV4)> = Vec::with_capacity(BATCH_MAX);
        for (arrival, datagram) in inbox.iter() {
            match datagram {
                [0, 1, ..] => answers.push((None, [0; 4], arrival.source)),
                [0, 4, high, low] => {
                    let acknowledged = u16::from_be_bytes([*high, *low]);
                    let start = usize::from(acknowledged) * blksize;
                    let [high, low] = acknowledged.wrapping_add(1).to_be_bytes();
                    // A file ends with a block that is not whole; the ACK of that one is the last word.
                    if start <= content.len() {
                        answers.push((Some(start), [0, 3, high, low], arrival.source));
                    }
                }
                _ => {}
            }
        }
        let slices: Vec<[IoSlice<'_>; 2]> = answers
            .iter()
            .map(|(start, header, _)| match start {
                None => [IoSlice::new(option_ack.as_bytes()), IoSlice::new(&[])],
                Some(start) => {
                    let end = content.len().min(start + blksize);
                    [IoSlice::new(header), IoSlice::new(&content[*start..end])]
                }
            })
            .collect();
        let pieces: Vec<Pieces<'_>> = answers
            .iter()
            .zip(&slices)
            .map(|((_, _, to), slices)| Pieces { slices, to: *to, from: None, cut_at: None })
            .collect();
        let mut sent = 0;
        while sent < pieces.len() {
            // What the kernel does not take is lost, as on any wire.
            sent += sys::send_pieces(&socket, &pieces[sent..]).unwrap_or(1).max(1);
        }
    }
}
