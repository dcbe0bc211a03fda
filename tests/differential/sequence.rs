//! What clients do, as words: a seed gives two machines and what they send one after the other. The words name no
//! address; the player puts in what the server at hand has said.

use farrier::storm::random::Stream;

/// Messages of one sequence.
const STEPS: (u64, u64) = (3, 8);

/// An address, by what it is to the client that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Nothing,
    /// What it was offered last.
    Offer,
    /// What it was acknowledged.
    Lease,
    /// What it had before it gave it back, declined it, or was refused.
    Former,
    /// An address of the pool that no other sequence ever names: two of them.
    Free(u8),
    /// What the other machine has, or was offered.
    Theirs,
    /// What the other machine had before; only ever found to be so.
    TheirFormer,
    /// On the subnet, and not the server's to give.
    OutsideThePool,
    OtherSubnet,
    TheServers,
}

impl Place {
    pub fn tag(self) -> &'static str {
        match self {
            Place::Nothing => "no address",
            Place::Offer => "its offer",
            Place::Lease => "its lease",
            Place::Former => "its former",
            Place::Free(_) => "free address",
            Place::Theirs => "another's",
            Place::TheirFormer => "another's former",
            Place::OutsideThePool => "outside the pool",
            Place::OtherSubnet => "other subnet",
            Place::TheServers => "the server's own",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    Nobody,
    Ours,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Discover,
    Request,
    Decline,
    Release,
    Inform,
    /// No option 53 at all.
    Bootp,
    /// A message type that is none, or that only servers send.
    Type(u8),
}

/// What is unusual about one message; at most one thing, so that a difference has one cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oddity {
    None,
    Hops(u8),
    Secs(u16),
    /// Flags that must be zero are not.
    ReservedFlags,
    /// Not 68.
    SourcePort,
    /// RFC 1542 §2.1 asks for 300 bytes.
    Unpadded,
    /// PAD between the options.
    Pads,
    NoEnd,
    BehindEnd,
    /// The last option is longer than the message.
    CutOption,
    /// Options in `file` and `sname` (option 52).
    Overloaded,
    /// One option in two pieces (RFC 3396).
    Split,
    /// Option 53 twice.
    TwoTypes,
    /// An option that has to have four bytes has none.
    EmptyWish,
    EmptyHostName,
    ZeroInList,
    /// `sname` and `file` are full, without NUL.
    FullNames,
    /// Option 82 from the client itself.
    OwnAgentInformation,
    OperationReply,
    HardwareType(u8),
    HardwareLength(u8),
    NoCookie,
    WrongCookie,
    /// The fixed part is not whole.
    CutFixed,
}

impl Oddity {
    pub fn tag(self) -> &'static str {
        match self {
            Oddity::None => "plain",
            Oddity::Hops(0..=16) => "few hops",
            Oddity::Hops(_) => "too many hops",
            Oddity::Secs(_) => "secs",
            Oddity::ReservedFlags => "reserved flags",
            Oddity::SourcePort => "other source port",
            Oddity::Unpadded => "short message",
            Oddity::Pads => "pads",
            Oddity::NoEnd => "no end",
            Oddity::BehindEnd => "bytes behind end",
            Oddity::CutOption => "option cut off",
            Oddity::Overloaded => "overloaded",
            Oddity::Split => "split option",
            Oddity::TwoTypes => "two types",
            Oddity::EmptyWish => "empty option 50",
            Oddity::EmptyHostName => "empty option 12",
            Oddity::ZeroInList => "zero in list",
            Oddity::FullNames => "full names",
            Oddity::OwnAgentInformation => "option 82 without an agent",
            Oddity::OperationReply => "op reply",
            Oddity::HardwareType(_) => "other hardware type",
            Oddity::HardwareLength(0) => "no hardware address",
            Oddity::HardwareLength(1..=16) => "other hardware length",
            Oddity::HardwareLength(_) => "hardware length over 16",
            Oddity::NoCookie => "no cookie",
            Oddity::WrongCookie => "wrong cookie",
            Oddity::CutFixed => "fixed part cut off",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identifier {
    None,
    /// 1 and the MAC, as iPXE and udhcpc send it.
    OfMac,
    /// RFC 4361.
    Duid,
    /// One byte; RFC 2132 §9.14 wants two.
    Short,
    Long,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    System,
    Bios,
    UefiX64,
    UefiHttp,
    Ipxe,
    /// Of an architecture nobody has a loader for.
    Strange,
}

impl Class {
    pub fn tag(self) -> &'static str {
        match self {
            Class::System => "system",
            Class::Bios => "BIOS ROM",
            Class::UefiX64 => "UEFI ROM",
            Class::UefiHttp => "HTTP ROM",
            Class::Ipxe => "iPXE",
            Class::Strange => "strange ROM",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    None,
    /// 1, 3, 6, 28 and a few that nobody has.
    Usual,
    /// Mask and router only.
    Little,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    Direct,
    /// Through a relay agent on the subnet; with option 82 or without.
    Relay {
        information: bool,
    },
    /// Through one on another subnet.
    ForeignRelay,
}

impl Path {
    pub fn tag(self) -> &'static str {
        match self {
            Path::Direct => "direct",
            Path::Relay { .. } => "relayed",
            Path::ForeignRelay => "foreign relay",
        }
    }
}

/// A machine: what stays the same in all it sends.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub identifier: Identifier,
    pub class: Class,
    pub list: List,
    pub path: Path,
    pub broadcast: bool,
    /// Option 51, seconds.
    pub lease: Option<u32>,
    /// Option 57.
    pub size: Option<u16>,
    pub host_name: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// 0 or 1.
    pub who: usize,
    pub kind: Kind,
    pub current: Place,
    pub wish: Place,
    pub server: Named,
    /// To the server alone; from `current`, which then has to be on the subnet.
    pub unicast: bool,
    pub oddity: Oddity,
}

#[derive(Clone, Debug)]
pub struct Sequence {
    pub seed: u64,
    pub machines: [Machine; 2],
    pub steps: Vec<Step>,
}

/// How far a client believes it has come, if all goes well.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Offered,
    Bound,
    Apart,
}

impl Sequence {
    pub fn of(seed: u64) -> Sequence {
        let mut dice = Dice(Stream::new(seed, 0x5e9));
        let machines = [machine(&mut dice), machine(&mut dice)];
        let mut phases = [Phase::New; 2];
        let count = STEPS.0 + dice.below(STEPS.1 - STEPS.0 + 1);
        let steps = (0..count)
            .map(|_| {
                // The second machine is there to be another's.
                let who = usize::from(dice.one_in(4));
                let step = step(&mut dice, who, phases[who], machines[who].path);
                phases[who] = phase_after(&step, phases[who]);
                step
            })
            .collect();
        Sequence { seed, machines, steps }
    }
}

fn machine(dice: &mut Dice) -> Machine {
    let identifiers =
        [Identifier::None, Identifier::None, Identifier::OfMac, Identifier::OfMac, Identifier::Duid];
    Machine {
        identifier: match dice.below(12) {
            0 => Identifier::Short,
            1 => Identifier::Long,
            _ => dice.pick(&identifiers),
        },
        class: match dice.below(12) {
            0 | 1 => Class::Bios,
            2 | 3 => Class::UefiX64,
            4 => Class::UefiHttp,
            5 => Class::Ipxe,
            6 => Class::Strange,
            _ => Class::System,
        },
        list: dice.pick(&[List::None, List::Usual, List::Usual, List::Little]),
        path: match dice.below(16) {
            0 | 1 => Path::Relay { information: true },
            2 => Path::Relay { information: false },
            3 => Path::ForeignRelay,
            _ => Path::Direct,
        },
        broadcast: dice.one_in(2),
        lease: dice.one_in(6).then(|| dice.pick(&[300, 3600, 86_400, u32::MAX])),
        size: dice.one_in(3).then(|| dice.pick(&[300, 576, 1472, 65_280])),
        host_name: dice.one_in(4),
    }
}

fn step(dice: &mut Dice, who: usize, phase: Phase, path: Path) -> Step {
    let plain = Step {
        who,
        kind: Kind::Discover,
        current: Place::Nothing,
        wish: Place::Nothing,
        server: Named::Nobody,
        unicast: false,
        oddity: Oddity::None,
    };
    let usual = match (phase, dice.below(10)) {
        (Phase::New | Phase::Apart, 0..=6) => discover(dice, plain),
        (Phase::Offered, 0..=6) => select(dice, plain),
        (Phase::Bound, 0..=2) => renew(dice, plain),
        (Phase::Bound, 3..=4) => leave(dice, plain),
        (Phase::Bound, 5) => discover(dice, plain),
        (Phase::Bound, 6) => reboot(dice, plain),
        _ => anything(dice, plain, phase),
    };
    let mut step = usual;
    if dice.one_in(6) {
        step.oddity = oddity(dice);
    }
    // An agent hands on what it heard as a broadcast.
    if path != Path::Direct {
        step.unicast = false;
    }
    step
}

fn anything(dice: &mut Dice, plain: Step, phase: Phase) -> Step {
    match dice.below(12) {
        0 | 1 => discover(dice, plain),
        2 => select(dice, plain),
        3 | 4 => reboot(dice, plain),
        5 | 6 => renew(dice, plain),
        7 | 8 => leave(dice, plain),
        9 => inform(dice, plain, phase),
        10 => Step { kind: Kind::Request, server: dice.pick(&[Named::Nobody, Named::Ours]), ..plain },
        _ => match dice.below(3) {
            0 => Step { kind: Kind::Bootp, ..plain },
            _ => Step { kind: Kind::Type(dice.pick(&[0, 2, 5, 6, 9, 10, 13, 200, 255])), ..plain },
        },
    }
}

const ANYWHERE: [Place; 9] = [
    Place::Offer,
    Place::Lease,
    Place::Former,
    Place::Free(0),
    Place::Free(1),
    Place::Theirs,
    Place::OutsideThePool,
    Place::OtherSubnet,
    Place::TheServers,
];

fn discover(dice: &mut Dice, plain: Step) -> Step {
    Step {
        kind: Kind::Discover,
        wish: if dice.one_in(3) { dice.pick(&ANYWHERE) } else { Place::Nothing },
        current: if dice.one_in(12) { dice.pick(&[Place::Lease, Place::Free(0)]) } else { Place::Nothing },
        server: if dice.one_in(20) { dice.pick(&[Named::Ours, Named::Other]) } else { Named::Nobody },
        ..plain
    }
}

fn select(dice: &mut Dice, plain: Step) -> Step {
    Step {
        kind: Kind::Request,
        wish: if dice.one_in(6) { dice.pick(&ANYWHERE) } else { Place::Offer },
        server: if dice.one_in(8) { Named::Other } else { Named::Ours },
        current: if dice.one_in(20) { dice.pick(&[Place::Lease, Place::Offer]) } else { Place::Nothing },
        ..plain
    }
}

fn reboot(dice: &mut Dice, plain: Step) -> Step {
    let wish = if dice.one_in(2) { Place::Lease } else { dice.pick(&ANYWHERE) };
    Step { kind: Kind::Request, wish, ..plain }
}

/// Renewing, to the server alone, or rebinding, to everybody.
fn renew(dice: &mut Dice, plain: Step) -> Step {
    let places = [Place::Offer, Place::Former, Place::Free(0), Place::Theirs, Place::OutsideThePool];
    let current = if dice.one_in(3) { dice.pick(&places) } else { Place::Lease };
    let server = if dice.one_in(10) { dice.pick(&[Named::Ours, Named::Other]) } else { Named::Nobody };
    Step { kind: Kind::Request, current, server, unicast: dice.one_in(2), ..plain }
}

fn leave(dice: &mut Dice, plain: Step) -> Step {
    let address = if dice.one_in(3) { dice.pick(&ANYWHERE[..6]) } else { Place::Lease };
    let server = match dice.below(8) {
        0 => Named::Nobody,
        1 => Named::Other,
        _ => Named::Ours,
    };
    match dice.one_in(2) {
        true => Step { kind: Kind::Decline, wish: address, server, ..plain },
        false => Step { kind: Kind::Release, current: address, server, unicast: true, ..plain },
    }
}

/// From an address that is nobody else's to have: the server asks for it by ARP, and who answers there has it.
fn inform(dice: &mut Dice, plain: Step, phase: Phase) -> Step {
    let current = match (phase, dice.below(3)) {
        (_, 0) => Place::Nothing,
        (Phase::Bound, 1) => Place::Lease,
        (_, _) => Place::OutsideThePool,
    };
    Step { kind: Kind::Inform, current, unicast: current != Place::Nothing && dice.one_in(2), ..plain }
}

fn oddity(dice: &mut Dice) -> Oddity {
    dice.pick(&[
        Oddity::Hops(3),
        Oddity::Hops(16),
        Oddity::Hops(17),
        Oddity::Secs(4),
        Oddity::Secs(0xffff),
        Oddity::ReservedFlags,
        Oddity::SourcePort,
        Oddity::Unpadded,
        Oddity::Pads,
        Oddity::NoEnd,
        Oddity::BehindEnd,
        Oddity::CutOption,
        Oddity::Overloaded,
        Oddity::Split,
        Oddity::TwoTypes,
        Oddity::EmptyWish,
        Oddity::EmptyHostName,
        Oddity::ZeroInList,
        Oddity::FullNames,
        Oddity::OwnAgentInformation,
        Oddity::OperationReply,
        Oddity::HardwareType(6),
        Oddity::HardwareLength(0),
        Oddity::HardwareLength(5),
        Oddity::HardwareLength(16),
        Oddity::HardwareLength(17),
        Oddity::NoCookie,
        Oddity::WrongCookie,
        Oddity::CutFixed,
    ])
}

fn phase_after(step: &Step, phase: Phase) -> Phase {
    if step.oddity != Oddity::None {
        return phase;
    }
    match (step.kind, step.wish, step.current, step.server) {
        (Kind::Discover, _, _, Named::Nobody) if phase != Phase::Bound => Phase::Offered,
        (Kind::Request, Place::Offer, Place::Nothing, Named::Ours) if phase == Phase::Offered => Phase::Bound,
        (Kind::Request, _, Place::Nothing, Named::Other) => Phase::New,
        (Kind::Decline, Place::Lease, _, Named::Ours) if phase == Phase::Bound => Phase::Apart,
        (Kind::Release, _, Place::Lease, Named::Ours) if phase == Phase::Bound => Phase::Apart,
        _ => phase,
    }
}

struct Dice(Stream);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}
