//! Seeded randomness: one seed for the storm, one stream per machine, so that a storm can be had again.

/// SplitMix64: eight lines, passes BigCrush, and any seed is a good one.
#[derive(Clone, Debug)]
pub struct Stream(u64);

impl Stream {
    /// Streams of one seed do not influence each other: a machine behaves the same in a storm of 10 or 10 000.
    pub fn new(seed: u64, number: u64) -> Stream {
        let mut mixer = Stream(seed);
        let seed = mixer.next_u64();
        Stream(seed ^ number.wrapping_mul(0xd605_bbb5_8c8a_bc43))
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.unit() < probability
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_machine_others() {
        let numbers = |seed, machine| {
            let mut stream = Stream::new(seed, machine);
            [stream.next_u64(), stream.next_u64(), stream.next_u64()]
        };
        assert_eq!(numbers(1, 7), numbers(1, 7));
        assert_ne!(numbers(1, 7), numbers(1, 8));
        assert_ne!(numbers(1, 7), numbers(2, 7));
    }

    #[test]
    fn a_chance_comes_as_often_as_it_says() {
        let mut stream = Stream::new(1, 1);
        let hits = (0..100_000).filter(|_| stream.chance(0.05)).count();
        assert!((4500..5500).contains(&hits), "{hits}");
        assert!(!(0..1000).any(|_| stream.chance(0.0)));
    }
}
