//! Who may download when all want to: a bounded number of large files at once, and the queue before them.
//!
//! What a client makes of having to wait decides how it is made to wait:
//! - iPXE honours `503` with `Retry-After` and comes back as often as it is told to. It is refused, but not before it has
//!   stood behind all others for a moment: when a thousand machines ask within a second, places change hands faster than
//!   it could come back.
//! - UEFI and GRUB give their boot up on any error, and on an answer whose first byte comes too late: they are queued.
//!   Whoever is closest to its time-out goes first, and when half of its patience is gone it need not wait for a place:
//!   a reserve is kept for those. Anybody unknown counts as the most impatient of them.
//!
//! An answer's bytes in flight are those the kernel holds until the peer has them; a place bounds them as well.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::bootplane::connection::UNSENT_BYTES_MAX;
use crate::bootplane::limits::Limits;
use crate::telemetry::{Level, Taken, Tally};

/// How a client takes waiting, as its `User-Agent` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Comes back when told to, after waiting for a moment.
    Returns,
    /// Gives up if an answer has not begun within this time.
    Waits(Duration),
}

impl Patience {
    /// edk2's `PcdHttpIoTimeout`.
    const UEFI: Duration = Duration::from_secs(5);
    /// GRUB's grub-core/net/http.c polls a hundred times for 300 ms.
    const GRUB: Duration = Duration::from_secs(30);

    pub fn of(user_agent: &[u8]) -> Patience {
        if user_agent.starts_with(b"iPXE/") {
            Patience::Returns
        } else if user_agent.starts_with(b"GRUB ") {
            Patience::Waits(Patience::GRUB)
        } else {
            Patience::Waits(Patience::UEFI)
        }
    }
}

/// Longer than anybody's patience.
const BEHIND_OTHERS: Duration = Duration::from_secs(3600);

/// The places, and who waits for one.
#[derive(Debug)]
pub struct Downloads {
    places: usize,
    reserve: usize,
    state: Mutex<State>,
    running: Arc<Level>,
    waiting: Arc<Level>,
    in_flight: Arc<Level>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    /// By the moment from which the reserve is open to them, which is the order of their time-outs. As many at most as
    /// there are connections.
    queue: BTreeMap<Turn, Waiting>,
    /// Tells apart who came in the same instant.
    arrivals: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    urgent_from: Instant,
    arrival: u64,
}

#[derive(Debug)]
struct Waiting {
    bytes: u64,
    grant: oneshot::Sender<Place>,
}

/// The right to send one large file; given back when dropped.
#[derive(Debug)]
pub struct Place {
    downloads: Arc<Downloads>,
    _running: Taken,
    _in_flight: Taken,
}

/// Its connection may end while it waits.
struct InQueue<'a> {
    downloads: &'a Downloads,
    turn: Turn,
    _waiting: Taken,
}

impl Downloads {
    pub fn new(limits: &Limits, tally: &Tally) -> Arc<Downloads> {
        let most = (limits.bulk_transfers + limits.bulk_reserve) as u64;
        Arc::new(Downloads {
            places: limits.bulk_transfers,
            reserve: limits.bulk_reserve,
            state: Mutex::default(),
            running: tally.level("http", "downloads", most),
            waiting: tally.level("http", "waiting-downloads", limits.connections as u64),
            in_flight: tally.level("http", "bytes-in-flight", most * u64::from(UNSENT_BYTES_MAX)),
        })
    }

    /// A place, if one is free and nobody waits for it.
    pub fn try_enter(self: &Arc<Downloads>, bytes: u64) -> Option<Place> {
        let mut state = self.lock();
        let free = state.queue.is_empty() && state.running < self.places;
        free.then(|| self.place(&mut state, bytes))
    }

    /// A place, in the order of time-outs.
    pub async fn enter(self: &Arc<Downloads>, bytes: u64, patience: Duration) -> Place {
        // The other half is for the way there, and for a first byte that has to be sent again.
        let (queued, mut granted) = match self.line_up(bytes, patience / 2) {
            Ok(place) => return place,
            Err(waiting) => waiting,
        };
        tokio::select! {
            biased;
            Ok(place) = &mut granted => return place,
            () = sleep_until(queued.turn.urgent_from) => {}
        }
        {
            let mut state = self.lock();
            // Whoever is not in the queue any more has been given a place this moment.
            if state.running < self.places + self.reserve && state.queue.remove(&queued.turn).is_some() {
                return self.place(&mut state, bytes);
            }
        }
        // Even the reserve is taken. It is by now among the first in the queue.
        match granted.await {
            Ok(place) => place,
            // Nobody drops a sender that is still in the queue, and only places take one out.
            Err(_) => self.place(&mut self.lock(), bytes),
        }
    }

    /// A place that comes free within this time and that nobody else waits for; never one of the reserve.
    pub async fn enter_within(self: &Arc<Downloads>, bytes: u64, wait: Duration) -> Option<Place> {
        let until = Instant::now() + wait;
        let (queued, mut granted) = match self.line_up(bytes, BEHIND_OTHERS) {
            Ok(place) => return Some(place),
            Err(waiting) => waiting,
        };
        tokio::select! {
            biased;
            Ok(place) = &mut granted => return Some(place),
            () = sleep_until(until) => {}
        }
        drop(queued);
        // Given in this moment, before it had left the queue.
        granted.try_recv().ok()
    }

    /// A place if there is one, or else one in the queue: that of somebody to whom the reserve is open after this time.
    fn line_up(
        self: &Arc<Downloads>,
        bytes: u64,
        urgent_after: Duration,
    ) -> Result<Place, (InQueue<'_>, oneshot::Receiver<Place>)> {
        let mut state = self.lock();
        if state.queue.is_empty() && state.running < self.places {
            return Ok(self.place(&mut state, bytes));
        }
        let (grant, granted) = oneshot::channel();
        state.arrivals += 1;
        let turn = Turn { urgent_from: Instant::now() + urgent_after, arrival: state.arrivals };
        state.queue.insert(turn, Waiting { bytes, grant });
        Err((InQueue { downloads: self, turn, _waiting: self.waiting.take(1) }, granted))
    }

    fn place(self: &Arc<Downloads>, state: &mut State, bytes: u64) -> Place {
        state.running += 1;
        Place {
            downloads: Arc::clone(self),
            _running: self.running.take(1),
            _in_flight: self.in_flight.take(bytes.min(u64::from(UNSENT_BYTES_MAX))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let next = {
            let mut state = self.downloads.lock();
            state.running -= 1;
            let first = state.queue.first_key_value().map(|(turn, _)| *turn);
            let urgent = first.is_some_and(|first| first.urgent_from <= Instant::now());
            let places = self.downloads.places + if urgent { self.downloads.reserve } else { 0 };
            let next = if state.running < places { state.queue.pop_first() } else { None };
            next.map(|(_, Waiting { bytes, grant })| (grant, self.downloads.place(&mut state, bytes)))
        };
        // A waiting client that has just gone hands its place back, and this is called again for the next.
        if let Some((grant, place)) = next {
            let _ = grant.send(place);
        }
    }
}

impl Drop for InQueue<'_> {
    fn drop(&mut self) {
        self.downloads.lock().queue.remove(&self.turn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn downloads(places: usize, reserve: usize) -> (Arc<Downloads>, Tally) {
        let tally = Tally::default();
        let limits = Limits { bulk_transfers: places, bulk_reserve: reserve, ..Limits::default() };
        (Downloads::new(&limits, &tally), tally)
    }

    /// `patience` in milliseconds.
    fn enter(downloads: &Arc<Downloads>, patience: u64) -> tokio::task::JoinHandle<Place> {
        let downloads = Arc::clone(downloads);
        tokio::spawn(async move { downloads.enter(1 << 30, Duration::from_millis(patience)).await })
    }

    /// Lets every task go as far as it can.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_user_agent_tells_how_its_client_takes_waiting() {
        for (agent, patience) in [
            (&b"iPXE/1.21.1+git"[..], Patience::Returns),
            (b"UefiHttpBoot/1.0", Patience::Waits(Duration::from_secs(5))),
            (b"GRUB 2.12", Patience::Waits(Duration::from_secs(30))),
            (b"", Patience::Waits(Duration::from_secs(5))),
            (b"not iPXE/1.0", Patience::Waits(Duration::from_secs(5))),
        ] {
            assert_eq!(Patience::of(agent), patience, "{}", agent.escape_ascii());
        }
    }

    #[tokio::test]
    async fn a_free_place_goes_to_whoever_is_closest_to_its_time_out() {
        let (downloads, tally) = downloads(1, 0);
        let running = downloads.try_enter(1 << 30).unwrap();
        assert!(downloads.try_enter(1).is_none());
        let grub = enter(&downloads, 30_000);
        settle().await;
        let uefi = enter(&downloads, 5000);
        settle().await;
        assert_eq!(tally.levels_of("http", "waiting-downloads"), Some((2, 8192)));
        drop(running);
        settle().await;
        assert!(uefi.is_finished() && !grub.is_finished());
        assert!(downloads.try_enter(1).is_none(), "nobody overtakes the queue");
        drop(uefi.await.unwrap());
        drop(grub.await.unwrap());
        assert_eq!(tally.levels_of("http", "waiting-downloads"), Some((0, 8192)));
        assert_eq!(tally.levels_of("http", "downloads"), Some((0, 1)));
        assert!(downloads.try_enter(1).is_some());
    }

    #[tokio::test]
    async fn half_way_to_its_time_out_a_client_takes_of_the_reserve_and_never_more() {
        let (downloads, tally) = downloads(1, 1);
        let running = downloads.try_enter(1 << 30).unwrap();
        let began = Instant::now();
        let (first, second) = (enter(&downloads, 400), enter(&downloads, 5000));
        let first = first.await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
        settle().await;
        assert!(!second.is_finished(), "the reserve has one place");
        let most = 2 * u64::from(UNSENT_BYTES_MAX);
        assert_eq!(tally.levels_of("http", "bytes-in-flight"), Some((most, most)));
        drop(first);
        assert!(!second.is_finished(), "the reserve is for those in a hurry");
        drop(running);
        second.await.unwrap();
    }

    #[tokio::test]
    async fn who_would_come_back_waits_for_a_moment_behind_all_others_and_takes_nothing_of_the_reserve() {
        let (downloads, tally) = downloads(1, 1);
        let running = downloads.try_enter(7).unwrap();
        assert!(downloads.enter_within(7, Duration::from_millis(20)).await.is_none());
        assert_eq!(tally.levels_of("http", "waiting-downloads"), Some((0, 8192)));
        let returns = tokio::spawn({
            let downloads = Arc::clone(&downloads);
            async move { downloads.enter_within(7, Duration::from_secs(60)).await }
        });
        settle().await;
        let grub = enter(&downloads, 3_600_000);
        settle().await;
        drop(running);
        settle().await;
        assert!(grub.is_finished() && !returns.is_finished());
        drop(grub.await.unwrap());
        assert!(returns.await.unwrap().is_some());
        assert_eq!(tally.levels_of("http", "downloads"), Some((0, 2)));
    }

    #[tokio::test]
    async fn a_client_that_goes_while_it_waits_leaves_no_trace() {
        let (downloads, tally) = downloads(1, 0);
        let running = downloads.try_enter(7).unwrap();
        assert_eq!(tally.levels_of("http", "bytes-in-flight").unwrap().0, 7);
        let (gone, stays) = (enter(&downloads, 5000), enter(&downloads, 30_000));
        settle().await;
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        drop(running);
        drop(stays.await.unwrap());
        assert_eq!(tally.levels_of("http", "downloads"), Some((0, 1)));
        assert!(downloads.lock().queue.is_empty());
    }

    #[tokio::test]
    async fn a_place_given_to_a_client_that_has_just_gone_goes_to_the_next() {
        let (downloads, _) = downloads(1, 0);
        let running = downloads.try_enter(7).unwrap();
        let (gone, stays) = (enter(&downloads, 5000), enter(&downloads, 30_000));
        settle().await;
        // The place is on its way to a task that never runs again.
        drop(running);
        gone.abort();
        drop(gone.await);
        stays.await.unwrap();
    }
}
