//! Who is served when more ask than can be.
//!
//! Every message that waits in the kernel's queue keeps another out of it, and an offer whose REQUEST is lost there is work
//! for nothing. So under overload as many exchanges are begun as are being finished, and a few more, should there be room;
//! strangers left out ask again in seconds. Known nodes are not counted.

/// Full turns in a row that are an overload and no burst: a rack switched on is fewer messages.
const OVERLOAD_TURNS: u32 = 16;
/// Exchanges begun beyond those that finish, in a turn.
const MORE: usize = 4;

/// A turn is all that is taken from a socket's queue before anything else has its turn, in one or several batches.
#[derive(Debug, Default)]
pub struct Overload {
    /// In a row, up to now: turns whose first batch was as long as a batch can be.
    full_turns: u32,
}

impl Overload {
    /// The first batch of a turn has come, and is full or not.
    pub fn turn_begins(&mut self, full: bool) {
        self.full_turns = if full { self.full_turns.saturating_add(1) } else { 0 };
    }

    /// How many strangers of this batch of the turn, counted from 0, are offered an address; `None` if all are.
    /// `finishing` tells how many of its messages do not begin an exchange.
    pub fn room_for_strangers(&self, batch: u32, finishing: impl FnOnce() -> usize) -> Option<usize> {
        let more = if batch == 0 { MORE } else { 0 };
        (self.full_turns >= OVERLOAD_TURNS).then(|| finishing() + more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(full: &[bool]) -> Overload {
        let mut overload = Overload::default();
        full.iter().for_each(|full| overload.turn_begins(*full));
        overload
    }

    #[test]
    fn a_burst_is_served_whole() {
        let burst = after(&[true; OVERLOAD_TURNS as usize - 1]);
        assert_eq!(burst.room_for_strangers(0, || 10), None);
    }

    #[test]
    fn under_overload_as_many_begin_as_finish_and_a_few_more_in_each_turn() {
        let overload = after(&[true; OVERLOAD_TURNS as usize]);
        assert_eq!(overload.room_for_strangers(0, || 10), Some(10 + MORE));
        assert_eq!(overload.room_for_strangers(1, || 10), Some(10));
        // Else a queue full of DISCOVERs would never be answered again.
        assert_eq!(overload.room_for_strangers(0, || 0), Some(MORE));
    }

    #[test]
    fn one_turn_that_empties_the_queue_ends_it() {
        let mut over = after(&[true; 100]);
        over.turn_begins(false);
        assert_eq!(over.room_for_strangers(0, || 0), None);
    }
}
