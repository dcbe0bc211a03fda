//! A machine's serial console on this terminal.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{self, SetArg, Termios};

use crate::lab::state::{MachineDir, connect};

/// Ctrl-], as in telnet and `virsh console`.
const LEAVE: u8 = 0x1d;

/// Lines of what the machine said before we came.
const LINES_SHOWN: usize = 20;

/// Connects this terminal with the machine until Ctrl-], the end of our input, or the end of the machine.
pub fn attach(machine: &MachineDir, name: &str) -> anyhow::Result<()> {
    let socket = connect(&machine.console_socket())
        .with_context(|| format!("machine `{name}` has no console: it is not running"))?;
    let stdin = io::stdin();
    let raw = RawTerminal::enter(stdin.as_fd())?;
    let mut stdout = io::stdout().lock();
    if raw.is_some() {
        write!(stdout, "console of {name}; Ctrl-] leaves it\r\n")?;
    }
    let said = fs::read(machine.serial_log()).unwrap_or_default();
    stdout.write_all(last_lines(&said))?;
    stdout.flush()?;
    copy_both_ways(stdin.as_fd(), &socket, &mut stdout)?;
    if raw.is_some() {
        write!(stdout, "\r\nleft the console of {name}\r\n")?;
    }
    Ok(())
}

fn last_lines(text: &[u8]) -> &[u8] {
    let ends = text.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let start = ends.map(|(index, _)| index + 1).nth(LINES_SHOWN).unwrap_or(0);
    &text[start..]
}

fn copy_both_ways(stdin: BorrowedFd<'_>, socket: &UnixStream, stdout: &mut impl Write) -> anyhow::Result<()> {
    let mut bytes = [0; 4096];
    loop {
        let mut waiting =
            [PollFd::new(stdin, PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => bail!("the terminal cannot be waited for: {errno}"),
        }
        let [typed, said] = waiting.map(|fd| fd.any().unwrap_or(true));
        if said {
            match (&*socket).read(&mut bytes)? {
                0 => return Ok(()),
                count => stdout.write_all(&bytes[..count])?,
            }
            stdout.flush()?;
        }
        if typed {
            let count = nix::unistd::read(stdin, &mut bytes)?;
            let typed = &bytes[..count];
            let keep = typed.iter().position(|byte| *byte == LEAVE);
            let mut writer = socket;
            writer.write_all(&typed[..keep.unwrap_or(count)])?;
            if count == 0 || keep.is_some() {
                return Ok(());
            }
        }
    }
}

/// Keys go to the machine one by one, Ctrl-C included; the terminal is put back on drop.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter(stdin: BorrowedFd<'_>) -> anyhow::Result<Option<RawTerminal>> {
        let Ok(before) = termios::tcgetattr(stdin) else { return Ok(None) };
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin, SetArg::TCSANOW, &raw).context("the terminal does not go raw")?;
        Ok(Some(RawTerminal { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_are_shown() {
        let text: String = (0..100).map(|number| format!("line {number}\n")).collect();
        let shown = last_lines(text.as_bytes());
        assert!(shown.starts_with(b"line 80\n") && shown.ends_with(b"line 99\n"));
        assert_eq!(last_lines(b"short"), b"short");
        assert_eq!(last_lines(b""), b"");
    }

    #[test]
    fn what_is_typed_goes_to_the_machine_until_the_leave_key() {
        let (machine, ours) = UnixStream::pair().unwrap();
        let (typist, keyboard) = UnixStream::pair().unwrap();
        (&machine).write_all(b"login: ").unwrap();
        (&typist).write_all(b"root\r\x1dnot this").unwrap();
        let mut shown = Vec::new();
        copy_both_ways(keyboard.as_fd(), &ours, &mut shown).unwrap();
        assert_eq!(shown, b"login: ");
        drop(ours);
        let mut got = String::new();
        (&machine).read_to_string(&mut got).unwrap();
        assert_eq!(got, "root\r");
    }
}
