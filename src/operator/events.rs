//! `GET /api/v1/events`: the timeline as it happens, as server-sent events, and what happens to the bridge.
//!
//! Each is a `timeline` or a `bridge` event with the id `<run>-<number>`: the run is when the appliance started, the number counts
//! up by one. The last [`KEPT`] are kept, so that who comes back with `Last-Event-ID` misses nothing; who comes back
//! from further behind, or from another run, is told so by a `gap` event, and reads the timelines instead.
//!
//! An event is encoded once, when the first watcher wants it, and all watchers send the same bytes. Each has a short
//! queue of its own; one that reads too slowly is told how many it lost (`lagged`), and holds up nobody. A stream ends
//! with the token it was opened with: before the next event, or within [`KEEP_ALIVE_EVERY`].

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::access::Principal;
use super::api::{EventMessage, GapMessage, GapReason, LaggedMessage};
use super::asked::{Asked, reference};
use super::nodes::found;
use super::problem::{Problem, ProblemKind};
use super::routes::Shared;
use super::{OperatorParts, answer, views};
use crate::bridge_log::event::BridgeEvent;
use crate::node::NodeId;
use crate::node::timeline::{Happening, Stage, TimelineEvent};

/// Most of what a listener serves at once, so that watchers cannot lock operators out.
pub(super) const WATCHERS_MAX: usize = super::socket::CONNECTIONS_MAX - super::socket::CONNECTIONS_MAX / 8;
/// Events kept for who comes back: a boot of a hundred machines.
const KEPT: usize = 4096;
/// Events a watcher may fall behind before it loses the oldest.
const BEHIND_MAX: usize = 1024;
/// Events handed to a watcher's connection ahead of what it has read.
const AHEAD: usize = 4;
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// What a browser waits before it comes back.
const RETRY_MILLIS: u32 = 2000;

/// What is told.
#[derive(Clone)]
enum Told {
    Timeline(Arc<TimelineEvent>),
    Bridge(Arc<BridgeEvent>),
}

/// One event, shared by all who watch.
struct Frame {
    number: u64,
    event: Told,
    encoded: OnceLock<Bytes>,
}

/// The events of this run, and who watches them.
struct Hub {
    run: String,
    recent: Mutex<Recent>,
    happened: broadcast::Sender<Arc<Frame>>,
}

#[derive(Default)]
struct Recent {
    frames: VecDeque<Arc<Frame>>,
    /// Of the newest event; 0 before the first.
    last: u64,
}

#[derive(Clone)]
pub(super) struct Watchers {
    places: Arc<Semaphore>,
    hub: Arc<Hub>,
    stopped: watch::Receiver<bool>,
}

impl Watchers {
    /// Gathers events from now on; must be called inside a runtime.
    pub(super) fn start(parts: &Shared, stopped: watch::Receiver<bool>) -> Watchers {
        let hub = Arc::new(Hub {
            run: format!("{:x}", parts.started_at.as_millis()),
            recent: Mutex::default(),
            happened: broadcast::channel(BEHIND_MAX).0,
        });
        let (mut happened, mut on_bridge) = (parts.registry.subscribe(), parts.bridge_log.subscribe());
        let (gathered, mut until) = (Arc::clone(&hub), stopped.clone());
        tokio::spawn(async move {
            loop {
                let received = tokio::select! {
                    received = happened.recv() => received.map(Told::Timeline),
                    received = on_bridge.recv() => received.map(Told::Bridge),
                    _ = until.wait_for(|stop| *stop) => return,
                };
                match received {
                    Ok(event) => gathered.add(event),
                    Err(RecvError::Lagged(left_out)) => gathered.skip(left_out),
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Watchers { places: Arc::new(Semaphore::new(WATCHERS_MAX)), hub, stopped }
    }
}

impl Hub {
    fn add(&self, event: Told) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.last += 1;
        let frame = Arc::new(Frame { number: recent.last, event, encoded: OnceLock::new() });
        if recent.frames.len() == KEPT {
            recent.frames.pop_front();
        }
        recent.frames.push_back(Arc::clone(&frame));
        // Told with the book closed to others, so that nobody subscribes between the two. No watcher is no mistake.
        let _ = self.happened.send(frame);
    }

    /// More happened than could be gathered: their numbers stay unused, and nothing older can be resumed from.
    fn skip(&self, left_out: u64) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.last += left_out;
        recent.frames.clear();
    }

    /// What is to be told first, and everything from then on.
    fn join(&self, last_seen: Option<&str>) -> Joined {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let happened = self.happened.subscribe();
        let seen = last_seen.map(|id| {
            let (run, number) = id.trim().rsplit_once('-').unwrap_or_default();
            (run == self.run)
                .then(|| number.parse::<u64>().ok().filter(|number| *number <= recent.last))
                .flatten()
        });
        let oldest = recent.frames.front().map_or(recent.last + 1, |frame| frame.number);
        let (gap, missed) = match seen {
            None => (None, Vec::new()),
            Some(None) => (Some(GapReason::Restarted), Vec::new()),
            Some(Some(seen)) => {
                let missed = recent.frames.iter().filter(|frame| frame.number > seen).cloned().collect();
                ((seen + 1 < oldest).then_some(GapReason::TooOld), missed)
            }
        };
        // Where the watcher stands before anything has happened, so that it can come back to here.
        let at = missed.first().map_or(recent.last, |frame: &Arc<Frame>| frame.number - 1);
        Joined { gap, at, missed, happened }
    }
}

struct Joined {
    gap: Option<GapReason>,
    at: u64,
    missed: Vec<Arc<Frame>>,
    happened: broadcast::Receiver<Arc<Frame>>,
}

/// Which events a watcher wants.
#[derive(Clone, Copy)]
struct Wanted {
    node: Option<NodeId>,
    stage: Option<Stage>,
}

impl Wanted {
    fn wants(&self, event: &Told) -> bool {
        match event {
            Told::Timeline(event) => {
                self.node.is_none_or(|node| event.node == node)
                    && self.stage.is_none_or(|stage| event.happening.stage() == Some(stage))
            }
            // No node's, and no boot's.
            Told::Bridge(_) => self.node.is_none() && self.stage.is_none(),
        }
    }
}

pub(super) async fn stream(
    State(parts): State<Shared>,
    Extension(watchers): Extension<Watchers>,
    principal: Principal,
    headers: HeaderMap,
    mut asked: Asked,
) -> Result<Response, Problem> {
    let node = asked.text("node")?.map(|text| reference(&text)).transpose()?;
    let node = node.map(|node| found(&parts, &node)).transpose()?.map(|node| node.id);
    let wanted = Wanted { node, stage: asked.word("stage")? };
    asked.finish()?;
    let Ok(place) = watchers.places.try_acquire_owned() else {
        let detail = format!("{WATCHERS_MAX} watchers are connected already");
        return Err(Problem::new(ProblemKind::Unavailable, detail).way_out("end another `farrier watch`"));
    };
    let last_seen = headers.get("last-event-id").map(|id| id.to_str().unwrap_or_default());
    let joined = watchers.hub.join(last_seen);
    let (sender, receiver) = mpsc::channel(AHEAD);
    let watcher = Watcher {
        parts,
        principal,
        hub: watchers.hub,
        wanted,
        sender,
        stopped: watchers.stopped,
        _place: place,
    };
    tokio::spawn(watcher.follow(joined));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    Ok((headers, Body::from_stream(ReceiverStream::new(receiver))).into_response())
}

/// `GET /api/v1/bridge/events`; the cursor is the number of the last one shown.
pub(super) async fn of_bridge(State(parts): State<Shared>, mut asked: Asked) -> Result<Response, Problem> {
    let paging = asked.paging::<u64>()?;
    asked.finish()?;
    let events = parts.bridge_log.events().into_iter();
    let wanted = events.filter(|event| paging.after.is_none_or(|after| event.sequence > after));
    let page = views::page(wanted, paging.limit, |event| event.sequence.to_string());
    Ok(answer::listed(&asked, page.map(|event| (*event).clone())))
}

/// One connection.
struct Watcher {
    parts: Shared,
    principal: Principal,
    hub: Arc<Hub>,
    wanted: Wanted,
    sender: mpsc::Sender<Result<Bytes, Infallible>>,
    stopped: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

/// The connection is gone, the token behind it is, or the appliance stops.
struct Over;

impl Watcher {
    async fn follow(mut self, joined: Joined) {
        let Joined { gap, at, missed, mut happened } = joined;
        // An id without data is no event, but the place to come back to.
        let greeting = format!("retry: {RETRY_MILLIS}\nid: {}-{at}\n\n", self.hub.run);
        let first = gap.map(|reason| block("gap", None, &GapMessage { reason }));
        for bytes in std::iter::once(greeting.into()).chain(first) {
            if self.send(bytes).await.is_err() {
                return;
            }
        }
        for frame in missed {
            if self.tell(&frame).await.is_err() {
                return;
            }
        }
        loop {
            let received = tokio::select! {
                received = tokio::time::timeout(KEEP_ALIVE_EVERY, happened.recv()) => received,
                _ = self.stopped.wait_for(|stop| *stop) => return,
                () = self.sender.closed() => return,
            };
            let told = match received {
                Ok(Ok(frame)) => self.tell(&frame).await,
                Ok(Err(RecvError::Lagged(left_out))) => {
                    self.send(block("lagged", None, &LaggedMessage { left_out })).await
                }
                Ok(Err(RecvError::Closed)) => return,
                Err(_) => self.send(Bytes::from_static(b":\n\n")).await,
            };
            if told.is_err() {
                return;
            }
        }
    }

    async fn tell(&mut self, frame: &Frame) -> Result<(), Over> {
        if !self.wanted.wants(&frame.event) {
            return Ok(());
        }
        let bytes = frame.encoded.get_or_init(|| encoded(&self.parts, &self.hub.run, frame)).clone();
        self.send(bytes).await
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), Over> {
        if !self.principal.still_may(&self.parts.access.tokens, self.parts.clock.now()) {
            return Err(Over);
        }
        // A watcher that reads slowly must not hold up the stop.
        tokio::select! {
            sent = self.sender.send(Ok(bytes)) => sent.map_err(|_| Over),
            _ = self.stopped.wait_for(|stop| *stop) => Err(Over),
        }
    }
}

fn encoded(parts: &OperatorParts, run: &str, frame: &Frame) -> Bytes {
    let id = format!("{run}-{}", frame.number);
    let event = match &frame.event {
        Told::Timeline(event) => event,
        Told::Bridge(event) => return block("bridge", Some(&id), &**event),
    };
    let (node_name, node_mac) = match &event.happening {
        // Nobody else knows it any more.
        Happening::Removed { name, port } => (name.clone(), *port),
        _ => {
            let of = parts.registry.look(event.node, |view| {
                (view.node.name.clone(), view.node.ports.first().map(|port| port.mac))
            });
            of.unwrap_or_default()
        }
    };
    let message = EventMessage { node_name, node_mac, event: (**event).clone() };
    block("timeline", Some(&id), &message)
}

/// JSON text has no raw line ends, so one data line always holds it.
fn block(kind: &str, id: Option<&str>, document: &impl Serialize) -> Bytes {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    let data = serde_json::to_string(document).unwrap_or_default();
    format!("event: {kind}\n{id}data: {data}\n\n").into()
}

#[cfg(test)]
mod tests;
