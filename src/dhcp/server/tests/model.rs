//! Random conversations against a model that knows one rule: what one client was promised, no other gets.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Discover { wanted: Option<u8> },
    Select,
    SelectAny { wanted: u8 },
    InitReboot { wanted: u8 },
    Renew,
    Rebind { wanted: u8 },
    ElsewhereSelected,
    Release,
    Decline,
    CommitFails,
    Pass { secs: u64 },
    Restart,
    Reserve { wanted: u8 },
}

const FIRST: u8 = 50;
const LAST: u8 = 57;

fn step() -> impl Strategy<Value = Step> {
    let wanted = FIRST - 2..=LAST + 2;
    prop_oneof![
        6 => proptest::option::of(wanted.clone()).prop_map(|wanted| Step::Discover { wanted }),
        6 => Just(Step::Select),
        1 => wanted.clone().prop_map(|wanted| Step::SelectAny { wanted }),
        1 => wanted.clone().prop_map(|wanted| Step::InitReboot { wanted }),
        2 => Just(Step::Renew),
        1 => wanted.clone().prop_map(|wanted| Step::Rebind { wanted }),
        1 => Just(Step::ElsewhereSelected),
        1 => Just(Step::Release),
        1 => Just(Step::Decline),
        1 => Just(Step::CommitFails),
        3 => (0..5000u64).prop_map(|secs| Step::Pass { secs }),
        1 => Just(Step::Restart),
        1 => wanted.prop_map(|wanted| Step::Reserve { wanted }),
    ]
}

/// What clients believe, and what the disk holds.
#[derive(Default)]
struct Model {
    /// Address → who may use it, until when, by an ACK it received.
    leased: BTreeMap<Ipv4Addr, (MacAddr, Timestamp)>,
    /// Address → whom it was last offered to, until when.
    offered: BTreeMap<Ipv4Addr, (MacAddr, Timestamp)>,
    disk: BTreeMap<Ipv4Addr, Binding>,
    /// Clients of which the server may remember less than the disk: it gave their ended lease away, or moved them, and
    /// could not store that.
    forgotten: BTreeSet<MacAddr>,
}

impl Model {
    fn current(&self, mac: MacAddr, now: Timestamp) -> Option<Ipv4Addr> {
        let live = self.leased.iter().find(|(_, (owner, until))| *owner == mac && *until > now);
        live.map(|(address, _)| *address)
    }

    /// Whether the server remembers a lease of its. An address it declined is none.
    fn is_known(&self, mac: MacAddr) -> bool {
        let its_lease = |binding: &Binding| binding.mac == mac && binding.state == BindingState::Bound;
        self.disk.values().any(its_lease) && !self.forgotten.contains(&mac)
    }

    fn check(
        &mut self,
        outcome: &Outcome,
        mac: MacAddr,
        now: Timestamp,
        durable: bool,
    ) -> Result<(), TestCaseError> {
        if durable {
            self.store(&outcome.changes);
        } else {
            self.miss(&outcome.changes);
        }
        let Answer::Reply(reply) = &outcome.answer else { return Ok(()) };
        let Some(address) = reply.address else {
            prop_assert!(outcome.changes.is_empty());
            return Ok(());
        };
        for (name, promises) in [("lease", &self.leased), ("offer", &self.offered)] {
            let another = promises.get(&address).is_some_and(|(owner, until)| *owner != mac && *until > now);
            prop_assert!(!another, "{} is another's by {}", address, name);
        }
        match reply.kind {
            ReplyKind::Offer => {
                prop_assert!(outcome.changes.is_empty());
                self.offered.retain(|_, (owner, _)| *owner != mac);
                // What a newcomer is offered makes room for others that ask.
                let holds = if self.is_known(mac) { OFFER_HOLD } else { OFFER_HOLD_MIN };
                self.offered.insert(address, (mac, now.plus(holds)));
            }
            ReplyKind::Ack => {
                let rests_on = |change: &Change| matches!(change, Change::PutBinding(it) if it.address == address && it.mac == mac);
                prop_assert!(outcome.changes.iter().any(rests_on), "an ACK rests on a durable binding");
                self.offered.retain(|_, (owner, _)| *owner != mac);
                if durable {
                    self.leased.retain(|_, (owner, _)| *owner != mac);
                    self.leased.insert(address, (mac, now.plus(LEASE)));
                }
            }
            ReplyKind::Nak | ReplyKind::Bootp => prop_assert!(false, "it grants no lease"),
        }
        Ok(())
    }

    fn miss(&mut self, changes: &[Change]) {
        for change in changes {
            if let Change::PutBinding(binding) = change {
                self.forgotten.insert(binding.mac);
                self.forgotten.extend(self.disk.get(&binding.address).map(|earlier| earlier.mac));
            }
        }
    }

    fn store(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::PutBinding(binding) => {
                    self.forgotten.remove(&binding.mac);
                    self.disk.insert(binding.address, binding.clone());
                }
                Change::DropBinding { address } => drop(self.disk.remove(address)),
                other => panic!("not a change of DHCP: {other:?}"),
            }
        }
    }
}

fn message_of(step: &Step, mac: MacAddr, model: &Model, now: Timestamp) -> Option<ClientMessage> {
    let current = || model.current(mac, now);
    let offered = || model.offered.iter().find(|(_, (owner, _))| *owner == mac).map(|(address, _)| *address);
    Some(match step {
        Step::Discover { wanted: None } => ClientMessage::discover(mac),
        Step::Discover { wanted: Some(wanted) } => {
            ClientMessage::discover(mac).option(50, &address(*wanted).octets())
        }
        Step::Select | Step::CommitFails => ClientMessage::selecting(mac, offered()?),
        Step::SelectAny { wanted } => ClientMessage::selecting(mac, address(*wanted)),
        Step::InitReboot { wanted } => ClientMessage::init_reboot(mac, address(*wanted)),
        Step::Renew => ClientMessage::renewing(mac, current()?),
        Step::Rebind { wanted } => ClientMessage::rebinding(mac, address(*wanted)),
        Step::ElsewhereSelected => {
            ClientMessage::new(3, mac).option(54, &[192, 168, 2, 99]).option(50, &address(FIRST).octets())
        }
        Step::Release => ClientMessage::release(mac, current()?),
        Step::Decline => ClientMessage::decline(mac, current()?),
        Step::Pass { .. } | Step::Restart | Step::Reserve { .. } => return None,
    })
}

fn run(steps: &[(u8, Step)]) -> Result<(), TestCaseError> {
    let pool = PoolRange { first: address(FIRST), last: address(LAST) };
    let settings = Settings { pool, ..settings() };
    let mut world = World::new(settings.clone());
    let mut model = Model::default();
    for (who, step) in steps {
        let mac = mac(*who);
        match step {
            Step::Pass { secs } => world.pass(Duration::from_secs(*secs)),
            Step::Restart => {
                let bindings = model.disk.values().cloned().collect();
                world.server = DhcpServer::restarted(settings.clone(), bindings, world.now);
                model.offered.clear();
                model.forgotten.clear();
            }
            Step::Reserve { wanted } => {
                if !world.nodes.reserved.contains_key(&address(*wanted)) {
                    world.nodes.reserved.retain(|_, owner| *owner != mac);
                    world.nodes.reserve(mac, address(*wanted));
                }
            }
            _ => {
                let Some(message) = message_of(step, mac, &model, world.now) else { continue };
                let outcome = world.send(&message);
                let durable = !matches!(step, Step::CommitFails);
                model.check(&outcome, mac, world.now, durable)?;
                if !durable {
                    world.server.forget(&outcome.changes, world.now);
                }
                match step {
                    // From here on the client does not use the address any more.
                    // An offer of the same address, had it asked anew, is let go with it.
                    Step::Release | Step::Decline => {
                        model.leased.retain(|_, (owner, _)| *owner != mac);
                        model.offered.retain(|_, (owner, _)| *owner != mac);
                    }
                    Step::ElsewhereSelected => model.offered.retain(|_, (owner, _)| *owner != mac),
                    _ => {}
                }
            }
        }
        let usage = world.server.pool_use();
        prop_assert!(usage.bound + usage.offered + usage.quarantined <= usage.size, "{:?}", usage);
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_address_is_ever_promised_to_two_clients(
        steps in proptest::collection::vec((1u8..14, step()), 1..120),
    ) {
        run(&steps)?;
    }

    #[test]
    fn any_bytes_get_an_outcome(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        boot_server in any::<bool>(),
    ) {
        let mut world = World::new(settings());
        let service = if boot_server { Service::BootServer } else { Service::Dhcp };
        let source = SocketAddrV4::new(address(9), 68);
        let received = Received { bytes: &bytes, source, destination: SERVER, service };
        world.server.handle(&received, &world.nodes, world.now);
    }

    #[test]
    fn any_options_get_an_outcome_and_every_reply_is_well_formed(
        kind in 0u8..20,
        options in proptest::collection::vec(
            (1u8..255, proptest::collection::vec(any::<u8>(), 0..40)), 0..12),
        fixed in proptest::collection::vec((0usize..236, any::<u8>()), 0..6),
        dress in 0u8..4,
    ) {
        let mut world = World::new(settings());
        let mut message = ClientMessage::new(kind, mac(1));
        message = match dress {
            0 => message.uefi(),
            1 => message.uefi_http(),
            2 => message.ipxe(),
            _ => message,
        };
        for (code, data) in options {
            message = message.option(code, &data);
        }
        for (offset, value) in fixed {
            message = message.byte(offset, value);
        }
        if let Answer::Reply(reply) = world.send(&message).answer {
            prop_assert!((300..=1472).contains(&reply.bytes.len()));
            let codes = codes_of(&reply.bytes);
            prop_assert!(codes.starts_with(&[53, 54]));
            let distinct: std::collections::BTreeSet<_> = codes.iter().collect();
            prop_assert_eq!(distinct.len(), codes.len(), "no option twice");
        }
    }
}
