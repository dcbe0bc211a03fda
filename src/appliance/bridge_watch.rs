//! Looks at the bridge while it is served: whether it is there, which ports pass nothing on, whether it has become the
//! host's way to other networks. What has changed goes into the log of the bridge.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::bridge_log::BridgeLog;
use crate::bridge_log::event::{BridgeFault, BridgeHappening};
use crate::bridge_log::outages::{Look, Observer};
use crate::clock::Timestamp;
use crate::net::bridge::{Bridge, BridgeError};
use crate::net::hazards::{self, Hazard};
use crate::net::link::{Link, LinkWatch};
use crate::net::ports;

/// Looks that are left out while the kernel tells of no change; it may have had to drop what it told.
const LEFT_OUT_MAX: u32 = 10;

/// What speaks against serving the bridge, though it was not so at the start; the status tells it.
pub(super) type Objection = ArcSwapOption<String>;

pub(super) struct BridgeWatch {
    bridge: Bridge,
    log: Arc<BridgeLog>,
    links: LinkWatch,
    routes: LinkWatch,
    observer: Observer,
    /// At the last look at the routing tables, which may be long.
    default_route: Option<String>,
    objection: Arc<Objection>,
    left_out: u32,
}

impl BridgeWatch {
    pub(super) fn open(bridge: Bridge, log: Arc<BridgeLog>, objection: Arc<Objection>) -> io::Result<Self> {
        let observer = Observer::from_events(log.events().iter().map(|event| &**event));
        Ok(BridgeWatch {
            bridge,
            log,
            links: LinkWatch::open()?,
            routes: LinkWatch::of_routes()?,
            observer,
            default_route: None,
            objection,
            // The first look is due.
            left_out: LEFT_OUT_MAX,
        })
    }

    pub(super) fn look(&mut self, now: Timestamp) {
        let due = self.left_out >= LEFT_OUT_MAX;
        let (links, routes) = (self.links.clear(), self.routes.clear());
        if !(due || links || routes) {
            self.left_out += 1;
            return;
        }
        self.left_out = 0;
        let fault = fault_of(self.bridge.state().err().as_ref());
        let link = Link::find(&self.bridge.name.0).ok().flatten();
        if !self.bridge.allowed.permits(Hazard::DefaultRoute) {
            // Who cannot be asked has said nothing new.
            match link.as_ref().map_or(Ok(None), |link| hazards::default_route(link.index)) {
                Ok(route) => self.default_route = route,
                Err(error) => tracing::debug!(%error, "the routing tables cannot be read"),
            }
        }
        let ports = link.and_then(|link| ports::of_bridge(link.index, None).ok()).unwrap_or_default();
        let look = Look { fault, ports, default_route: self.default_route.clone() };
        for happening in self.observer.look(look, now) {
            self.tell(&happening);
            self.log.record(happening, now);
        }
    }

    fn tell(&self, happening: &BridgeHappening) {
        let bridge = &self.bridge.name;
        match happening {
            BridgeHappening::BridgeOut { fault } => {
                tracing::error!(%bridge, "the bridge is {}: nothing can be served", fault.words());
            }
            BridgeHappening::BridgeBack { .. } => tracing::info!(%bridge, "the bridge is back"),
            BridgeHappening::DefaultRoute { route } => {
                let name = bridge.clone();
                let objection = BridgeError::DefaultRoute { name, route: route.clone() }.to_string();
                tracing::error!("{objection}");
                self.objection.store(Some(Arc::new(objection)));
            }
            BridgeHappening::DefaultRouteGone { route } => {
                tracing::info!(%bridge, route, "the host's default route leads over the bridge no more");
                self.objection.store(None);
            }
            // A machine that is switched on does the first two of these on a bridge with spanning tree; the guard tells of
            // the others.
            BridgeHappening::PortHeld { .. }
            | BridgeHappening::PortBack { .. }
            | BridgeHappening::RivalAppeared { .. }
            | BridgeHappening::RivalGone { .. } => {}
        }
    }
}

/// Why nothing can be served; a bridge the kernel does not tell of counts as gone.
pub(super) fn fault_of(error: Option<&BridgeError>) -> Option<BridgeFault> {
    Some(match error? {
        BridgeError::Down { .. } => BridgeFault::Down,
        BridgeError::NoAddress { .. } => BridgeFault::WithoutAddress,
        BridgeError::Missing { .. }
        | BridgeError::NotABridge { .. }
        | BridgeError::DefaultRoute { .. }
        | BridgeError::Wireless { .. }
        | BridgeError::Unreadable { .. } => BridgeFault::Gone,
    })
}
