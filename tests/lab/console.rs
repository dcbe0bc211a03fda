//! A machine's serial console that a test types at, by way of QEMU's socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use farrier::lab::process;
use farrier::lab::state::connect;

pub struct Console {
    stream: UnixStream,
    said: String,
    /// What an earlier [`Console::await_text`] has found.
    read: usize,
}

impl Console {
    /// Connects once QEMU is there.
    pub fn connect(socket: &Path, within: Duration) -> Console {
        let until = Instant::now() + within;
        loop {
            match connect(socket) {
                Ok(stream) => return Console { stream, said: String::new(), read: 0 },
                Err(error) => assert!(Instant::now() < until, "{}: {error}", socket.display()),
            }
            process::look_again();
        }
    }

    /// Waits until the machine says this, after what was awaited before; gives all it said up to there.
    #[track_caller]
    pub fn await_text(&mut self, wanted: &str, within: Duration) -> String {
        let until = Instant::now() + within;
        let mut piece = [0; 4096];
        loop {
            if let Some(at) = self.said[self.read..].find(wanted) {
                let end = self.read + at + wanted.len();
                let found = self.said[self.read..end].to_owned();
                self.read = end;
                return found;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "`{wanted}` not within {within:?}; it said: {}",
                &self.said[self.read..]
            );
            self.stream.set_read_timeout(Some(left)).unwrap();
            match self.stream.read(&mut piece) {
                Ok(0) => panic!("the machine ended before it said `{wanted}`: {}", &self.said[self.read..]),
                Ok(count) => self.said.push_str(&String::from_utf8_lossy(&piece[..count])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("console: {error}"),
            }
        }
    }

    /// Reads on until the machine ends, and forgets it: QEMU waits for whoever reads too little, after some 300 bytes.
    pub fn leave(mut self) {
        std::thread::spawn(move || {
            let _ = self.stream.set_read_timeout(None);
            io::copy(&mut self.stream, &mut io::sink())
        });
    }

    pub fn type_line(&mut self, line: &str) {
        self.stream.write_all(format!("{line}\r").as_bytes()).unwrap();
    }

    /// Types a line and waits for what follows it.
    #[track_caller]
    pub fn ask(&mut self, line: &str, answer: &str, within: Duration) -> String {
        self.type_line(line);
        self.await_text(answer, within)
    }
}
