//! `GET /api/v1/events`: the timeline as it happens, as server-sent events.
//!
//! Each is a `timeline` event whose id is `<node>/<boot>/<sequence>`. A watcher that falls behind is told how many
//! events it lost (`lagged`) and goes on from there; the whole timeline can be read at any time, so nothing is
//! replayed. A comment every 15 s keeps the connection known to be alive.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, KeepAliveStream, Sse};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::OperatorParts;
use super::api::{EventMessage, LaggedMessage};
use super::problem::{Problem, ProblemKind};
use super::routes::Shared;
use crate::node::registry::NodeRef;
use crate::node::timeline::{Happening, TimelineEvent};

/// Half of what the socket serves at once, so that watchers cannot lock operators out.
const WATCHERS_MAX: usize = super::socket::CONNECTIONS_MAX / 2;
/// Events rendered ahead of a watcher's connection; the registry's own backlog holds the rest.
const RENDERED_AHEAD: usize = 16;
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);

#[derive(Clone)]
pub(super) struct Watchers {
    places: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
}

impl Watchers {
    pub(super) fn new(stopped: watch::Receiver<bool>) -> Watchers {
        Watchers { places: Arc::new(Semaphore::new(WATCHERS_MAX)), stopped }
    }
}

pub(super) async fn stream(
    State(parts): State<Shared>,
    axum::Extension(watchers): axum::Extension<Watchers>,
) -> Result<Sse<KeepAliveStream<ReceiverStream<Result<Event, Infallible>>>>, Problem> {
    let Ok(place) = watchers.places.try_acquire_owned() else {
        let detail = format!("{WATCHERS_MAX} watchers are connected already");
        return Err(Problem::new(ProblemKind::Unavailable, detail).way_out("end another `farrier watch`"));
    };
    let (sender, receiver) = mpsc::channel(RENDERED_AHEAD);
    let mut happened = parts.registry.subscribe();
    let mut stopped = watchers.stopped;
    tokio::spawn(async move {
        let _place = place;
        loop {
            let event = tokio::select! {
                received = happened.recv() => match received {
                    Ok(event) => rendered(&parts, &event),
                    Err(RecvError::Lagged(left_out)) => lagged(left_out),
                    Err(RecvError::Closed) => return,
                },
                _ = stopped.wait_for(|stop| *stop) => return,
                () = sender.closed() => return,
            };
            // A watcher that reads slowly must not hold up the stop.
            tokio::select! {
                sent = sender.send(Ok(event)) => if sent.is_err() { return },
                _ = stopped.wait_for(|stop| *stop) => return,
            }
        }
    });
    Ok(Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_EVERY)))
}

fn rendered(parts: &OperatorParts, event: &TimelineEvent) -> Event {
    let (node_name, node_mac) = match &event.happening {
        // Nobody else knows it any more.
        Happening::Removed { name, port } => (name.clone(), *port),
        _ => {
            let node = parts.registry.find(&NodeRef::Id(event.node));
            let node_mac = node.as_ref().and_then(|node| node.ports.first()).map(|port| port.mac);
            (node.and_then(|node| node.name), node_mac)
        }
    };
    let message = EventMessage { node_name, node_mac, event: event.clone() };
    let id = format!("{}/{}/{}", event.node, event.boot, event.sequence);
    with_json(Event::default().event("timeline").id(id), &message)
}

fn lagged(left_out: u64) -> Event {
    with_json(Event::default().event("lagged"), &LaggedMessage { left_out })
}

/// JSON text has no raw line ends, so one data line always holds it.
fn with_json(event: Event, document: &impl serde::Serialize) -> Event {
    event.data(serde_json::to_string(document).unwrap_or_default())
}
