use super::*;
use crate::clock::Timestamp;

fn hub() -> Hub {
    Hub { run: "r".to_owned(), recent: Mutex::default(), happened: broadcast::channel(BEHIND_MAX).0 }
}

fn event() -> Told {
    let node = NodeId(uuid::Uuid::nil());
    let happening = Happening::Registered;
    Told::Timeline(Arc::new(TimelineEvent {
        node,
        boot: 0,
        sequence: 0,
        at: Timestamp::default(),
        happening,
    }))
}

fn numbers(joined: &Joined) -> Vec<u64> {
    joined.missed.iter().map(|frame| frame.number).collect()
}

#[test]
fn who_comes_back_gets_what_it_missed_or_is_told_of_the_gap() {
    let hub = hub();
    (0..KEPT + 10).for_each(|_| hub.add(event()));
    let last = (KEPT + 10) as u64;
    assert!(hub.recent.lock().unwrap().frames.len() == KEPT);
    let joined = hub.join(Some(&format!("r-{}", last - 2)));
    assert_eq!((joined.gap, joined.at, numbers(&joined)), (None, last - 2, vec![last - 1, last]));
    assert_eq!(hub.join(Some("r-10")).gap, None);
    let too_old = hub.join(Some("r-9"));
    assert_eq!((too_old.gap, too_old.missed.len()), (Some(GapReason::TooOld), KEPT));
    for other in ["s-1", "r", "", "r-x", &format!("r-{}", last + 1)] {
        let joined = hub.join(Some(other));
        assert_eq!(
            (joined.gap, joined.at, joined.missed.len()),
            (Some(GapReason::Restarted), last, 0),
            "{other}"
        );
    }
    let fresh = hub.join(None);
    assert_eq!((fresh.gap, fresh.at, fresh.missed.len()), (None, last, 0));
}

#[test]
fn what_could_not_be_gathered_is_a_gap() {
    let hub = hub();
    hub.add(event());
    hub.skip(5);
    hub.add(event());
    assert_eq!(hub.join(Some("r-1")).gap, Some(GapReason::TooOld));
    assert_eq!(hub.join(Some("r-6")).gap, None);
}
