//! The end of an install, prepared in memory: what makes the disk bootable is changed here and then committed.
//!
//! Partition tables and seed are worked on as on a disk: reads go to the disk where nothing was changed, writes stay
//! here. [`Overlay::commit`] puts them on the disk in an order in which no power cut leaves a disk that boots and is
//! not complete: everything but the partition tables at either end, verified, then the end, then the start.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::agent::install::meter::Meter;
use crate::agent::install::signatures::ENDS;
use crate::agent::install::target::{ALIGNMENT, Aligned, Disk};
use crate::agent::install::{Fault, Halt};

const BLOCK: u64 = ALIGNMENT as u64;

pub struct Overlay<'a> {
    disk: &'a dyn Disk,
    position: u64,
    /// By number; a block at the disk's end may be shorter on the disk.
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl fmt::Debug for Overlay<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "Overlay({} of {} bytes changed)",
            self.blocks.len() as u64 * BLOCK,
            self.disk.bytes()
        )
    }
}

impl<'a> Overlay<'a> {
    pub fn new(disk: &'a dyn Disk) -> Overlay<'a> {
        Overlay { disk, position: 0, blocks: BTreeMap::new() }
    }

    pub fn size(&self) -> u64 {
        self.disk.bytes()
    }

    fn block_length(&self, number: u64) -> usize {
        BLOCK.min(self.disk.bytes() - number * BLOCK) as usize
    }

    fn read_block(&self, number: u64) -> io::Result<Vec<u8>> {
        if let Some(block) = self.blocks.get(&number) {
            return Ok(block.clone());
        }
        let mut block = Aligned::zeroed(self.block_length(number));
        self.disk.read(number * BLOCK, &mut block)?;
        Ok(block.to_vec())
    }

    /// The block at the position, and what of it can be had in one go.
    fn here(&self, wanted: usize) -> Option<(u64, std::ops::Range<usize>)> {
        if self.position >= self.disk.bytes() || wanted == 0 {
            return None;
        }
        let number = self.position / BLOCK;
        let from = (self.position % BLOCK) as usize;
        Some((number, from..self.block_length(number).min(from + wanted)))
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.seek(SeekFrom::Start(at))?;
        self.write_all(bytes)
    }

    /// Puts everything on the disk; the order is the point.
    pub fn commit(self, meter: &Meter) -> Result<(), Halt> {
        let runs = self.runs();
        let (head, tail) = (ENDS, self.disk.bytes().saturating_sub(ENDS));
        let is_head = |run: &&(u64, Aligned)| run.0 < head;
        let is_tail = |run: &&(u64, Aligned)| run.0 >= tail.max(head);
        let body: Vec<_> = runs.iter().filter(|run| !is_head(run) && !is_tail(run)).collect();
        self.put_on_disk(&body, meter)?;
        self.put_on_disk(
            &runs.iter().filter(is_tail).filter(|run| !is_head(run)).collect::<Vec<_>>(),
            meter,
        )?;
        self.put_on_disk(&runs.iter().filter(is_head).collect::<Vec<_>>(), meter)
    }

    fn put_on_disk(&self, runs: &[&(u64, Aligned)], meter: &Meter) -> Result<(), Halt> {
        for (at, bytes) in runs {
            meter.go_on()?;
            self.disk.write(*at, bytes).map_err(|error| Fault::disk("writing", *at, &error))?;
            meter.wrote(bytes.len() as u64);
        }
        self.disk.sync().map_err(|error| Fault::disk("flushing", 0, &error))?;
        for (at, bytes) in runs {
            let mut back = Aligned::zeroed(bytes.len());
            self.disk.read(*at, &mut back).map_err(|error| Fault::disk("reading", *at, &error))?;
            if back[..] != bytes[..] {
                return Err(Fault::Finishing { start: *at }.into());
            }
        }
        Ok(())
    }

    /// Neighbouring blocks together, cut where the ends begin.
    fn runs(&self) -> Vec<(u64, Aligned)> {
        let tail = self.disk.bytes().saturating_sub(ENDS).div_ceil(BLOCK);
        let mut runs: Vec<(u64, Vec<&[u8]>)> = Vec::new();
        let mut next = None;
        for (number, block) in &self.blocks {
            let cut = *number == ENDS / BLOCK || *number == tail;
            match runs.last_mut() {
                Some((_, blocks)) if next == Some(*number) && !cut => blocks.push(block),
                _ => runs.push((number * BLOCK, vec![block])),
            }
            next = Some(number + 1);
        }
        runs.into_iter()
            .map(|(at, blocks)| {
                let mut run = Aligned::zeroed(blocks.iter().map(|block| block.len()).sum());
                let mut rest = &mut run[..];
                for block in blocks {
                    let (here, behind) = rest.split_at_mut(block.len());
                    here.copy_from_slice(block);
                    rest = behind;
                }
                (at, run)
            })
            .collect()
    }
}

impl Read for Overlay<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some((number, part)) = self.here(into.len()) else { return Ok(0) };
        let count = part.len();
        into[..count].copy_from_slice(&self.read_block(number)?[part]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Overlay<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some((number, part)) = self.here(bytes.len()) else { return Ok(0) };
        let count = part.len();
        let mut block =
            if count == self.block_length(number) { vec![0; count] } else { self.read_block(number)? };
        block[part].copy_from_slice(&bytes[..count]);
        self.blocks.insert(number, block);
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Overlay<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = sought(to, self.position, self.disk.bytes())?;
        Ok(self.position)
    }
}

/// A part of an overlay as a device of its own: a partition.
pub struct Window<'a, 'b> {
    overlay: &'a mut Overlay<'b>,
    start: u64,
    length: u64,
    position: u64,
}

impl<'a, 'b> Window<'a, 'b> {
    pub fn new(overlay: &'a mut Overlay<'b>, start: u64, length: u64) -> Window<'a, 'b> {
        let length = length.min(overlay.size().saturating_sub(start));
        Window { overlay, start, length, position: 0 }
    }

    fn room(&mut self, wanted: usize) -> io::Result<usize> {
        self.overlay.seek(SeekFrom::Start(self.start + self.position))?;
        Ok(usize::try_from(self.length.saturating_sub(self.position)).unwrap_or(usize::MAX).min(wanted))
    }
}

impl Read for Window<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let room = self.room(into.len())?;
        let count = self.overlay.read(&mut into[..room])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Window<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room(bytes.len())?;
        let count = self.overlay.write(&bytes[..room])?;
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window<'_, '_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = sought(to, self.position, self.length)?;
        Ok(self.position)
    }
}

fn sought(to: SeekFrom, position: u64, end: u64) -> io::Result<u64> {
    let place = match to {
        SeekFrom::Start(place) => Some(place),
        SeekFrom::End(offset) => end.checked_add_signed(offset),
        SeekFrom::Current(offset) => position.checked_add_signed(offset),
    };
    place.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}
