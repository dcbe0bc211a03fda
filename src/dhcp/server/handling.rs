//! What each message type gets (RFC 2131 §4.3.1 to §4.3.5), given who sends it.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::boot::decision::{self, BootPlan, Standing};
use crate::clock::Timestamp;
use crate::dhcp::lease::table::Availability;
use crate::dhcp::lease::{Binding, BindingState, ClientKey};
use crate::dhcp::reply::{self, Draft, Hearing};
use crate::dhcp::request::{MessageKind, Request, RequestState};
use crate::dhcp::server::probes::{self, Clearance};
use crate::dhcp::server::strangers::{Strangers, is_stranger, offered_max};
use crate::dhcp::server::{Destination, DhcpServer, Directory, Received, Reply, ReplyKind, Service, Silence};
use crate::store::Change;

/// One request with all that is known about its sender.
pub(super) struct Visit<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) received: &'a Received<'a>,
    pub(super) standing: &'a Standing,
    pub(super) plan: BootPlan,
    pub(super) key: ClientKey,
    pub(super) directory: &'a dyn Directory,
    pub(super) now: Timestamp,
}

impl Visit<'_> {
    fn reserved(&self) -> Option<Ipv4Addr> {
        match self.standing {
            Standing::Stranger => None,
            Standing::Known(node) => node.reserved,
        }
    }

    /// How this client hears what it has no address for.
    fn hearing(&self) -> Hearing {
        match self.standing {
            Standing::Known(node) if node.quirks.broadcast_replies => Hearing::BroadcastOnly,
            Standing::Known(_) | Standing::Stranger => Hearing::AsItSays,
        }
    }

    /// Where an answer of this kind goes that grants this address.
    pub(super) fn destination(&self, kind: ReplyKind, granted: Option<Ipv4Addr>) -> Destination {
        reply::destination_of(self.request, kind, granted, self.received.source, self.hearing())
    }
}

impl DhcpServer {
    pub(super) fn discover(&mut self, visit: &Visit<'_>, ask: &mut Vec<Ipv4Addr>) -> Result<Reply, Silence> {
        if visit.request.server.is_some() {
            return Err(Silence::DiscoverNamesServer);
        }
        let newcomer =
            matches!(visit.standing, Standing::Stranger) && self.table.binding(&visit.key).is_none();
        // One that has its lease costs nobody anything by asking again.
        if is_stranger(visit.standing) && self.table.live_binding(&visit.key, visit.now).is_none() {
            self.strangers.may_ask(visit.request.mac, &self.settings.strangers, visit.now)?;
        }
        let address = self.choose(visit, newcomer)?;
        self.table.offer(address, &visit.key, visit.request.mac, newcomer, visit.now);
        self.note_holder(visit, address);
        self.clear(visit, address, ask)?;
        Ok(self.grant(visit, ReplyKind::Offer, address))
    }

    /// Whether nobody uses this address without a lease, as far as the wire can be asked; else the client waits.
    ///
    /// Not asked for: what the client had before (a netbooted system answers for its own address before it asks for
    /// it), what an operator fixed for it, and what is behind a relay, where ARP does not reach.
    fn clear(
        &mut self,
        visit: &Visit<'_>,
        address: Ipv4Addr,
        ask: &mut Vec<Ipv4Addr>,
    ) -> Result<(), Silence> {
        let recorded = self.table.binding(&visit.key).is_some_and(|binding| binding.address == address);
        let exempt = recorded || visit.reserved() == Some(address) || visit.request.relay.is_some();
        if exempt || !self.probes.is_enabled() {
            return Ok(());
        }
        let (key, mac, now) = (&visit.key, visit.request.mac, visit.now);
        match self.probes.clearance(address, now) {
            Clearance::Clear => {
                if self.probes.uses_one() {
                    self.ask_ahead(visit, ask);
                }
                Ok(())
            }
            Clearance::Awaited => {
                self.probes.wait_for(address, key.clone(), mac);
                Err(Silence::Probing)
            }
            Clearance::Unknown if self.probes.ask(address, Some((key.clone(), mac)), now) => {
                ask.push(address);
                self.ask_ahead(visit, ask);
                Err(Silence::Probing)
            }
            // More are asked for than the wire should bear.
            Clearance::Unknown => Ok(()),
        }
    }

    /// Asks for the addresses that the next clients will be offered, so that those need not wait.
    fn ask_ahead(&mut self, visit: &Visit<'_>, ask: &mut Vec<Ipv4Addr>) {
        let now = visit.now;
        let next: Vec<Ipv4Addr> = self.table.next_free(probes::AHEAD).collect();
        let offerable = next.into_iter().filter(|address| {
            self.settings.is_host(*address) && visit.directory.reserved_for(*address).is_none()
        });
        for address in offerable {
            if self.probes.clearance(address, now) == Clearance::Unknown
                && self.probes.ask(address, None, now)
            {
                ask.push(address);
            }
        }
    }

    /// RFC 2131 §4.3.1: the client's current address, its previous one, the one it asks for, a free one. A reservation
    /// comes before all of them.
    fn choose(&mut self, visit: &Visit<'_>, newcomer: bool) -> Result<Ipv4Addr, Silence> {
        let (key, now) = (&visit.key, visit.now);
        let recorded = self.table.binding(key).map(|binding| binding.address);
        let live = self.table.live_binding(key, now).map(|binding| binding.address);
        let known = [visit.reserved(), live, self.table.offered(key, now), recorded];
        if let Some(address) = known.into_iter().flatten().find(|address| self.may_have(visit, *address)) {
            return Ok(address);
        }
        if self.declines.too_many(visit.request.mac) {
            return Err(Silence::TooManyDeclines);
        }
        if let Err(refused) = self.check_share(visit) {
            if !self.recall_for(visit, refused) {
                return Err(refused);
            }
            self.check_share(visit)?;
        }
        let full = newcomer && self.table.newcomers() >= self.stranger_offers_max();
        if full && !self.recall(now, |_, _| true) {
            return Err(Silence::OfferLimit);
        }
        if let Some(requested) = visit.request.requested.filter(|address| self.may_have(visit, *address)) {
            return Ok(requested);
        }
        let settings = &self.settings;
        self.table
            .find_free(now, |address| {
                settings.is_host(address) && visit.directory.reserved_for(address).is_none()
            })
            .ok_or(Silence::PoolExhausted)
    }

    /// Takes back an offer that nobody came for, if that helps a stranger who is refused for this.
    fn recall_for(&mut self, visit: &Visit<'_>, refused: Silence) -> bool {
        if refused == Silence::PortLimit {
            let port = visit.directory.behind(visit.request.mac);
            return self.recall(visit.now, |strangers, address| strangers.holds_behind(address, port));
        }
        self.recall(visit.now, |strangers, address| strangers.holds(address))
    }

    /// Takes back the oldest offer of a wanted address that nobody came for.
    fn recall(&mut self, now: Timestamp, wanted: impl Fn(&Strangers, Ipv4Addr) -> bool) -> bool {
        let strangers = &self.strangers;
        let recalled = self.table.recall_newcomer(now, |address| wanted(strangers, address));
        if let Some(address) = recalled {
            self.strangers.left(address);
        }
        recalled.is_some()
    }

    /// Whether the strangers have an address left for one more of them; who is none is not asked.
    fn check_share(&mut self, visit: &Visit<'_>) -> Result<(), Silence> {
        if !is_stranger(visit.standing) {
            return Ok(());
        }
        let (table, now) = (&self.table, visit.now);
        let in_use = || table.in_use(now);
        let asker = (visit.request.mac, table.pool_use().size);
        self.strangers.may_have(asker, &self.settings.strangers, in_use, visit.directory, now)
    }

    fn note_holder(&mut self, visit: &Visit<'_>, address: Ipv4Addr) {
        match is_stranger(visit.standing) {
            true => {
                let limits = &self.settings.strangers;
                self.strangers.took(address, visit.request.mac, limits, visit.directory);
            }
            false => self.strangers.left(address),
        }
    }

    fn stranger_offers_max(&self) -> u32 {
        offered_max(&self.settings.strangers, self.table.pool_use().size)
    }

    /// Whether nothing stands against this client having this address: it is one of ours to give, meant for no other
    /// client, and no other client has it.
    fn may_have(&self, visit: &Visit<'_>, address: Ipv4Addr) -> bool {
        let ours_to_give = self.settings.is_host(address)
            && match visit.directory.reserved_for(address) {
                Some(owner) => owner == visit.request.mac,
                None => self.table.in_pool(address) || visit.reserved() == Some(address),
            };
        ours_to_give
            && match self.table.availability(address, &visit.key, visit.now) {
                Availability::Own | Availability::Free => true,
                Availability::Taken | Availability::Quarantined => false,
            }
    }

    /// Whether the client should let go of this address and come back for the one reserved for it.
    fn belongs_elsewhere(&self, visit: &Visit<'_>, address: Ipv4Addr) -> bool {
        visit.reserved().is_some_and(|reserved| reserved != address && self.may_have(visit, reserved))
    }

    /// RFC 2131 §4.3.2.
    pub(super) fn request(&mut self, visit: &Visit<'_>, changes: &mut Vec<Change>) -> Result<Reply, Silence> {
        if visit.request.server.is_some_and(|server| server != self.settings.server()) {
            self.table.withdraw_offer(&visit.key, visit.now);
            return Err(Silence::OtherServer);
        }
        let verdict = match visit.request.state(visit.received.destination) {
            RequestState::Selecting { address } => self.selecting(visit, address),
            RequestState::InitReboot { address } => self.init_reboot(visit, address),
            RequestState::Renewing { address } => match self.keeps(visit, address) {
                true => Verdict::Grant(address),
                false => Verdict::Refuse("this is not your address"),
            },
            RequestState::Rebinding { address } => self.rebinding(visit, address),
            RequestState::Bare => {
                let live = self.table.live_binding(&visit.key, visit.now).map(|binding| binding.address);
                match live.or_else(|| self.table.offered(&visit.key, visit.now)) {
                    Some(address) => Verdict::Grant(address),
                    None => Verdict::Refuse("no address was offered to you"),
                }
            }
        };
        match verdict {
            Verdict::Grant(address) => {
                if self.table.availability(address, &visit.key, visit.now) == Availability::Free {
                    // Nothing was promised: it remembers the address, and takes one more.
                    self.check_share(visit)?;
                }
                self.note_holder(visit, address);
                changes.extend(self.table.bind(self.binding(visit, address), visit.now));
                Ok(self.grant(visit, ReplyKind::Ack, address))
            }
            Verdict::Refuse(reason) => Ok(self.nak(visit, reason)),
            Verdict::Ignore(silence) => Err(silence),
        }
    }

    fn selecting(&self, visit: &Visit<'_>, address: Ipv4Addr) -> Verdict {
        // An offer that stands is kept whatever changed meanwhile: a NAK here ends a UEFI boot.
        if self.table.offered(&visit.key, visit.now) == Some(address) {
            return Verdict::Grant(address);
        }
        // Without an offer: it has lapsed, or we were restarted since. If the address is still free, all is well.
        if !self.may_have(visit, address) {
            return Verdict::Refuse("the address is not available");
        }
        match self.table.availability(address, &visit.key, visit.now) {
            Availability::Free if self.declines.too_many(visit.request.mac) => {
                Verdict::Ignore(Silence::TooManyDeclines)
            }
            Availability::Free | Availability::Own => Verdict::Grant(address),
            Availability::Taken | Availability::Quarantined => {
                Verdict::Refuse("the address is not available")
            }
        }
    }

    fn init_reboot(&self, visit: &Visit<'_>, address: Ipv4Addr) -> Verdict {
        if !self.settings.network.contains(address) {
            return Verdict::Refuse("the address is not on this network");
        }
        if self.keeps(visit, address) {
            return Verdict::Grant(address);
        }
        self.remembered(visit, address)
    }

    fn rebinding(&self, visit: &Visit<'_>, address: Ipv4Addr) -> Verdict {
        if self.keeps(visit, address) {
            return Verdict::Grant(address);
        }
        self.remembered(visit, address)
    }

    /// Whether the address is the one on record for this client, and may stay so.
    fn keeps(&self, visit: &Visit<'_>, address: Ipv4Addr) -> bool {
        let recorded = self.table.binding(&visit.key).is_some_and(|binding| binding.address == address);
        (recorded || visit.reserved() == Some(address))
            && self.may_have(visit, address)
            && !self.belongs_elsewhere(visit, address)
    }

    /// A client names an address that is not on record as its own.
    fn remembered(&self, visit: &Visit<'_>, address: Ipv4Addr) -> Verdict {
        let has_record = self.table.binding(&visit.key).is_some() || visit.reserved().is_some();
        if has_record {
            return Verdict::Refuse("another address is on record for you");
        }
        match self.table.availability(address, &visit.key, visit.now) {
            Availability::Taken => return Verdict::Refuse("the address is another client's"),
            Availability::Quarantined => return Verdict::Refuse("the address is withheld"),
            Availability::Own | Availability::Free => {}
        }
        // RFC 2131 §4.3.2: a server without a record MUST remain silent, because another may have one. On a bridge
        // of our own there is no other: we have lost the record, and this restores it.
        if !self.settings.authoritative {
            return Verdict::Ignore(Silence::UnknownClient);
        }
        if !self.may_have(visit, address) {
            return Verdict::Refuse("the address is not available");
        }
        if self.declines.too_many(visit.request.mac) {
            return Verdict::Ignore(Silence::TooManyDeclines);
        }
        Verdict::Grant(address)
    }

    /// RFC 2131 §4.3.3.
    pub(super) fn decline(&mut self, visit: &Visit<'_>, changes: &mut Vec<Change>) -> Silence {
        if visit.request.server.is_some_and(|server| server != self.settings.server()) {
            return Silence::OtherServer;
        }
        let Some(address) = visit.request.requested else { return Silence::DeclineUnfounded };
        // Only what is its own at this moment: else anybody could empty the pool.
        if self.table.availability(address, &visit.key, visit.now) != Availability::Own {
            return Silence::DeclineUnfounded;
        }
        self.strangers.left(address);
        let stranger = is_stranger(visit.standing);
        if stranger && self.declines.strangers_are_done() {
            self.table.withdraw_offer(&visit.key, visit.now);
            // Not remembered as its own: else it were offered the same address again, would decline it again, and so on.
            changes.extend(self.table.part(&visit.key, address, visit.now));
            return Silence::DeclineLimit;
        }
        changes.push(self.table.quarantine(address, &visit.key, visit.request.mac, visit.now));
        self.declines.note(visit.request.mac, stranger, visit.now);
        Silence::Declined
    }

    /// RFC 2131 §4.3.4.
    pub(super) fn release(&mut self, visit: &Visit<'_>, changes: &mut Vec<Change>) -> Silence {
        if visit.request.server.is_some_and(|server| server != self.settings.server()) {
            return Silence::OtherServer;
        }
        let live = self.table.live_binding(&visit.key, visit.now).map(|binding| binding.address);
        if live.is_none() || live != visit.request.current {
            return Silence::ReleaseUnfounded;
        }
        // It may have asked anew before it went, and be offered what it now gives back.
        if self.table.offered(&visit.key, visit.now) == live {
            self.table.withdraw_offer(&visit.key, visit.now);
        }
        changes.extend(self.table.release(&visit.key, visit.now));
        live.into_iter().for_each(|address| self.strangers.left(address));
        Silence::Released
    }

    /// RFC 2131 §4.3.5: configuration for a client that has an address from elsewhere.
    pub(super) fn inform(&self, visit: &Visit<'_>) -> Result<Reply, Silence> {
        if visit.request.relay.is_none() || visit.request.current.is_some() {
            self.reachable(visit)?;
        }
        let destination = visit.destination(ReplyKind::Ack, None);
        Ok(self.draft(visit, ReplyKind::Ack, destination).compose())
    }

    /// RFC 951, RFC 1534 §2: a client that never renews keeps what it gets, so it gets only what is fixed for it.
    pub(super) fn bootp(&self, visit: &Visit<'_>) -> Result<Reply, Silence> {
        if !self.settings.bootp {
            return Err(Silence::Bootp);
        }
        let approved = matches!(visit.standing, Standing::Known(node) if node.approved);
        let address = visit.reserved().filter(|address| approved && self.may_have(visit, *address));
        let address = address.ok_or(Silence::BootpWithoutAddress)?;
        let destination = visit.destination(ReplyKind::Bootp, Some(address));
        Ok(Draft { granted: Some(address), ..self.draft(visit, ReplyKind::Bootp, destination) }.compose())
    }

    /// PXE 2.1 §2.2.4: a boot ROM that has its address asks which file to fetch.
    pub(super) fn boot_server(&self, visit: &Visit<'_>) -> Result<Reply, Silence> {
        /// Top bit of the layer: the client wants the item's signature (Boot Integrity Services).
        const BIS: u8 = 0x80;
        let request = visit.request;
        match request.kind {
            MessageKind::Request | MessageKind::Inform if request.class.wants_boot() => {}
            MessageKind::Request
            | MessageKind::Inform
            | MessageKind::Discover
            | MessageKind::Decline
            | MessageKind::Release
            | MessageKind::Bootp => return Err(Silence::NotABootRequest),
        }
        let boot_item = request.boot_item();
        if boot_item.is_some_and(|[_, _, layer, _]| layer & BIS != 0) {
            return Err(Silence::BisRefused);
        }
        let source = visit.received.source;
        let to = match reply::relay_of(request, source) {
            Some(relay) => relay,
            None => {
                let port = match (visit.received.service, source.ip().is_unspecified()) {
                    (_, false) | (Service::BootServer, true) => source.port(),
                    (Service::Dhcp, true) => reply::CLIENT_PORT,
                };
                SocketAddrV4::new(self.reachable(visit)?, port)
            }
        };
        let destination = Destination::Unicast(to);
        let draft = self.draft(visit, ReplyKind::Ack, destination);
        if draft.boot_file.is_none() {
            return Err(Silence::NothingToBoot);
        }
        Ok(Draft { granted: boot_item.and(request.current), boot_item, ..draft }.compose())
    }

    /// Where a client without a lease of this exchange is to be answered, if that is on our network.
    fn reachable(&self, visit: &Visit<'_>) -> Result<Ipv4Addr, Silence> {
        let source = Some(*visit.received.source.ip()).filter(|address| !address.is_unspecified());
        let address = visit.request.current.or(source).ok_or(Silence::InformWithoutAddress)?;
        if self.settings.is_host(address) { Ok(address) } else { Err(Silence::OffNetwork) }
    }

    fn binding(&self, visit: &Visit<'_>, address: Ipv4Addr) -> Binding {
        Binding {
            address,
            key: visit.key.clone(),
            mac: visit.request.mac,
            client_id: visit.request.client_id.map(<[u8]>::to_vec),
            hostname: visit.request.hostname(),
            state: BindingState::Bound,
            granted_at: visit.now,
            expires_at: visit.now.plus(self.settings.lease),
        }
    }

    fn grant(&self, visit: &Visit<'_>, kind: ReplyKind, address: Ipv4Addr) -> Reply {
        let destination = visit.destination(kind, Some(address));
        let lease = Some(self.settings.lease);
        Draft { granted: Some(address), lease, ..self.draft(visit, kind, destination) }.compose()
    }

    fn nak(&self, visit: &Visit<'_>, reason: &'static str) -> Reply {
        let destination = visit.destination(ReplyKind::Nak, None);
        Draft { reason, boot_file: None, ..self.draft(visit, ReplyKind::Nak, destination) }.compose()
    }

    pub(super) fn draft<'a>(
        &'a self,
        visit: &'a Visit<'_>,
        kind: ReplyKind,
        destination: Destination,
    ) -> Draft<'a> {
        Draft {
            request: visit.request,
            kind,
            granted: None,
            lease: None,
            boot_file: decision::boot_file(&visit.plan, self.settings.server(), visit.request.mac),
            boot_item: None,
            reason: "",
            settings: &self.settings,
            destination,
            hearing: visit.hearing(),
        }
    }
}

/// What becomes of a REQUEST.
enum Verdict {
    Grant(Ipv4Addr),
    /// NAK, with a text for whoever reads the capture.
    Refuse(&'static str),
    Ignore(Silence),
}
