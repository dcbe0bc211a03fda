//! What a look at the bridge shows that the last one did not; and when it was out, told from the events alone.

use std::collections::BTreeMap;

use crate::bridge_log::event::{BridgeEvent, BridgeFault, BridgeHappening};
use crate::clock::Timestamp;
use crate::net::ports::{BridgePort, PortState};

/// One look at the bridge.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Why it cannot be served, if it cannot.
    pub fault: Option<BridgeFault>,
    pub ports: Vec<BridgePort>,
    /// The host's default route by way of it, unless somebody allowed that.
    pub default_route: Option<String>,
}

/// What was so at the last look.
#[derive(Debug, Default)]
pub struct Observer {
    out: Option<(BridgeFault, Timestamp)>,
    held: BTreeMap<String, Timestamp>,
    default_route: Option<String>,
}

impl Observer {
    /// Goes on from where an earlier run ended: what was out then may be back by now.
    pub fn from_events<'e>(events: impl Iterator<Item = &'e BridgeEvent>) -> Observer {
        let mut observer = Observer::default();
        for BridgeEvent { at, happening, .. } in events {
            match happening {
                BridgeHappening::BridgeOut { fault } => observer.out = Some((*fault, *at)),
                BridgeHappening::BridgeBack { .. } => observer.out = None,
                BridgeHappening::PortHeld { port, .. } => drop(observer.held.insert(port.clone(), *at)),
                BridgeHappening::PortBack { port, .. } => drop(observer.held.remove(port)),
                BridgeHappening::DefaultRoute { route } => observer.default_route = Some(route.clone()),
                BridgeHappening::DefaultRouteGone { .. } => observer.default_route = None,
                BridgeHappening::RivalAppeared { .. } | BridgeHappening::RivalGone { .. } => {}
            }
        }
        observer
    }

    /// What has changed since the last look.
    pub fn look(&mut self, look: Look, now: Timestamp) -> Vec<BridgeHappening> {
        let mut news = Vec::new();
        match (look.fault, self.out) {
            (Some(fault), None) => {
                self.out = Some((fault, now));
                news.push(BridgeHappening::BridgeOut { fault });
            }
            (None, Some((fault, out_since))) => {
                self.out = None;
                news.push(BridgeHappening::BridgeBack { fault, out_since });
            }
            // Down, then gone: one outage.
            (Some(_), Some(_)) | (None, None) => {}
        }
        // While the bridge is out its ports are as well, and that is told already.
        if look.fault.is_none() {
            self.look_at_ports(&look.ports, now, &mut news);
        }
        if self.default_route != look.default_route {
            let gone = std::mem::replace(&mut self.default_route, look.default_route.clone());
            news.extend(gone.map(|route| BridgeHappening::DefaultRouteGone { route }));
            news.extend(look.default_route.map(|route| BridgeHappening::DefaultRoute { route }));
        }
        news
    }

    fn look_at_ports(&mut self, ports: &[BridgePort], now: Timestamp, news: &mut Vec<BridgeHappening>) {
        // Without a carrier nobody is there to be kept waiting.
        let is_held = |port: &&BridgePort| port.carrier && port.state != PortState::Forwarding;
        let held: BTreeMap<&str, PortState> =
            ports.iter().filter(is_held).map(|port| (port.name.as_str(), port.state)).collect();
        self.held.retain(|port, held_since| {
            let still = held.contains_key(port.as_str());
            if !still {
                let (port, held_since) = (port.clone(), *held_since);
                news.push(BridgeHappening::PortBack { port, held_since });
            }
            still
        });
        for (port, state) in held {
            if !self.held.contains_key(port) {
                self.held.insert(port.to_owned(), now);
                news.push(BridgeHappening::PortHeld { port: port.to_owned(), state });
            }
        }
    }
}

/// When nothing got through, or nothing by way of one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    pub of: OutageOf,
    pub from: Timestamp,
    /// Absent while it lasts.
    pub to: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutageOf {
    Bridge(BridgeFault),
    Port { name: String, state: PortState },
}

/// Oldest first.
pub fn of_events<'e>(events: impl Iterator<Item = &'e BridgeEvent>) -> Vec<Outage> {
    let mut outages: Vec<Outage> = Vec::new();
    for BridgeEvent { at, happening, .. } in events {
        let mut end = |is_it: &dyn Fn(&OutageOf) -> bool| {
            let open = outages.iter_mut().rev().find(|outage| outage.to.is_none() && is_it(&outage.of));
            if let Some(outage) = open {
                outage.to = Some(*at);
            }
        };
        match happening {
            BridgeHappening::BridgeBack { .. } => end(&|of| matches!(of, OutageOf::Bridge(_))),
            BridgeHappening::PortBack { port, .. } => {
                end(&|of| matches!(of, OutageOf::Port { name, .. } if name == port));
            }
            BridgeHappening::BridgeOut { fault } => {
                outages.push(Outage { of: OutageOf::Bridge(*fault), from: *at, to: None });
            }
            BridgeHappening::PortHeld { port, state } => {
                let of = OutageOf::Port { name: port.clone(), state: *state };
                outages.push(Outage { of, from: *at, to: None });
            }
            BridgeHappening::RivalAppeared { .. }
            | BridgeHappening::RivalGone { .. }
            | BridgeHappening::DefaultRoute { .. }
            | BridgeHappening::DefaultRouteGone { .. } => {}
        }
    }
    outages
}
