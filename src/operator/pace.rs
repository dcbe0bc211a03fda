//! How much of the processors the operator plane may take: a share, so that no amount of asking slows a boot.
//!
//! Reading the fleet is worth much less than an ACK, and both want the same few processors. Giving our threads less
//! priority does not help: a request also makes the kernel work, for the network and in our name, and the disk's own
//! threads wait behind it. So each request is charged for the time its handler ran and for what the kernel does about
//! it, and the next ones wait, in the order they came, until the account is even again. A person, or a page that asks for
//! several things at once, stays within [`AHEAD`] and never waits.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use tokio::time::{Instant, sleep_until};

/// For each second of work three of rest: a quarter of one processor.
const SECONDS_PER_WORKED: u32 = 4;
/// What a request costs besides its handler: reading, writing, waking.
const AROUND_A_REQUEST: Duration = Duration::from_micros(40);
/// How far the account may be overdrawn before anybody waits.
const AHEAD: Duration = Duration::from_millis(50);

/// When what was worked so far has been rested for.
#[derive(Clone, Copy, Debug)]
struct Account {
    even_at: Instant,
}

impl Account {
    fn charge(&mut self, worked: Duration, now: Instant) {
        self.even_at = self.even_at.max(now) + worked * SECONDS_PER_WORKED;
    }

    /// When the next request may begin.
    fn next_at(&self, now: Instant) -> Instant {
        self.even_at.checked_sub(AHEAD).map_or(now, |at| at.max(now))
    }
}

#[derive(Debug)]
struct Pace {
    /// Who waits for the account stands here, first come first served.
    queue: tokio::sync::Mutex<()>,
    account: Mutex<Account>,
}

impl Pace {
    fn new() -> Pace {
        let account = Mutex::new(Account { even_at: Instant::now() });
        Pace { queue: tokio::sync::Mutex::new(()), account }
    }

    async fn turn(&self) {
        let _first = self.queue.lock().await;
        loop {
            let now = Instant::now();
            let next_at = self.lock().next_at(now);
            if next_at == now {
                break;
            }
            sleep_until(next_at).await;
        }
        self.charge(AROUND_A_REQUEST);
    }

    fn charge(&self, worked: Duration) {
        self.lock().charge(worked, Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has every request of the router, refused ones included, wait its turn.
pub(super) fn paced(router: Router) -> Router {
    router.layer(middleware::from_fn_with_state(Arc::new(Pace::new()), pass))
}

async fn pass(State(pace): State<Arc<Pace>>, request: Request, next: Next) -> Response {
    pace.turn().await;
    let mut answering = pin!(next.run(request));
    poll_fn(|context| {
        let began = Instant::now();
        let polled = answering.as_mut().poll(context);
        pace.charge(began.elapsed());
        polled
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_requests_pass_at_once_and_a_flood_gets_its_share() {
        let began = Instant::now();
        let (mut now, mut account) = (began, Account { even_at: began });
        let work = Duration::from_millis(1);
        let mut request = || {
            now = account.next_at(now);
            account.charge(work, now);
            now - began
        };
        for _ in 0..10 {
            assert_eq!(request(), Duration::ZERO, "nobody waits");
        }
        let passed = (0..1000).map(|_| request()).last().unwrap();
        let share = work * 1010 * SECONDS_PER_WORKED;
        assert!((share - AHEAD - 2 * work * SECONDS_PER_WORKED..=share).contains(&passed), "{passed:?}");
    }

    #[test]
    fn who_was_quiet_has_saved_nothing_up() {
        let began = Instant::now();
        let mut account = Account { even_at: began };
        let later = began + Duration::from_secs(100);
        account.charge(AHEAD, later);
        assert_eq!(account.next_at(later), later + AHEAD * SECONDS_PER_WORKED - AHEAD);
    }

    #[tokio::test]
    async fn who_waits_is_served_in_turn() {
        let pace = Arc::new(Pace::new());
        pace.charge(Duration::from_millis(50));
        let served = Arc::new(Mutex::new(Vec::new()));
        let waiting: Vec<_> = (0..20)
            .map(|number| {
                let (pace, served) = (Arc::clone(&pace), Arc::clone(&served));
                tokio::spawn(async move {
                    pace.turn().await;
                    served.lock().unwrap().push(number);
                })
            })
            .collect();
        for task in waiting {
            task.await.unwrap();
        }
        assert_eq!(*served.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }
}
