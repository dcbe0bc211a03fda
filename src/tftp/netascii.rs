//! netascii (RFC 764 as RFC 1350 cites it): a line feed travels as CR LF, a carriage return as CR NUL.
//!
//! Converted block by block, so that memory stays at one block whatever the size of the file. The size on the wire is
//! not known beforehand and a block cannot be made again from its number, hence no `tsize` and a window of one.

use bytes::Bytes;

/// A file being read as netascii.
#[derive(Debug)]
pub struct Netascii {
    bytes: Bytes,
    position: usize,
    /// Second byte of a pair that a block's end split.
    pending: Option<u8>,
    block: Vec<u8>,
}

impl Netascii {
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, position: 0, pending: None, block: Vec::new() }
    }

    /// The block read last.
    pub fn block(&self) -> &[u8] {
        &self.block
    }

    /// Bytes of the file read so far.
    pub fn consumed(&self) -> usize {
        self.position
    }

    /// Reads the next block: `blksize` bytes, or fewer at the end of the file.
    pub fn advance(&mut self, blksize: usize) {
        self.block.clear();
        while self.block.len() < blksize {
            if let Some(second) = self.pending.take() {
                self.block.push(second);
                continue;
            }
            let Some(&byte) = self.bytes.get(self.position) else { break };
            self.position += 1;
            match byte {
                b'\n' => {
                    self.block.push(b'\r');
                    self.pending = Some(b'\n');
                }
                b'\r' => {
                    self.block.push(b'\r');
                    self.pending = Some(0);
                }
                other => self.block.push(other),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(text: &'static [u8], blksize: usize) -> Vec<Vec<u8>> {
        let mut reader = Netascii::new(Bytes::from_static(text));
        let mut blocks = Vec::new();
        loop {
            reader.advance(blksize);
            blocks.push(reader.block().to_vec());
            if reader.block().len() < blksize {
                return blocks;
            }
        }
    }

    #[test]
    fn line_feeds_and_carriage_returns_become_pairs() {
        assert_eq!(convert(b"a\nb\rc\r\n", 512).concat(), b"a\r\nb\r\0c\r\0\r\n");
        assert_eq!(convert(b"", 512), [b""]);
    }

    #[test]
    fn a_pair_may_be_split_between_blocks() {
        for blksize in 1..9 {
            let blocks = convert(b"\n\r\nxy\r", blksize);
            assert_eq!(blocks.concat(), b"\r\n\r\0\r\nxy\r\0", "blksize {blksize}");
            let (last, full) = blocks.split_last().unwrap();
            assert!(full.iter().all(|block| block.len() == blksize) && last.len() < blksize, "{blocks:?}");
        }
    }
}
