//! Following the machines of a running lab until each has enrolled, failed, or run out of time.
//!
//! The appliance's event stream only says *that* something happened; what happened is read from the timeline, so
//! that nothing is missed when the stream lags or the appliance restarts.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, interval, sleep_until};

use crate::cli::client::{Client, EventStream, WatchEvent, segment};
use crate::cli::text::Style;
use crate::cli::timeline::stage_word;
use crate::cli::view::View;
use crate::clock::{Clock, Timestamp};
use crate::lab::Lab;
use crate::lab::progress::{MachineProgress, live_table, seconds};
use crate::node::timeline::Boot;

/// Four redraws a second: a running clock that does not stutter.
const REDRAW_EVERY: Duration = Duration::from_millis(250);

/// A machine that has ended, or an appliance that was restarted, is noticed this late.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A machine that boots this long no longer keeps others from their turn.
const TURN_MAX: Duration = Duration::from_secs(60);

/// How machines are followed.
pub struct Following {
    pub style: Style,
    /// Machines booting at the same time; the others wait for their turn, switched off.
    pub at_once: usize,
    pub within: Duration,
}

/// Switches every machine on and follows them. Returns when all have enrolled or failed, or at the deadline.
pub async fn boot_all(
    lab: &Lab,
    machines: &mut [MachineProgress],
    view: &mut View,
    following: &Following,
) -> anyhow::Result<()> {
    let socket = lab.state().short_operator_socket()?;
    let clock = Clock::start();
    let mut follower = Follower { client: Client::new(socket.path()), stream: None };
    follower.connect().await;
    let deadline = Instant::now() + following.within;
    let mut redraw = interval(REDRAW_EVERY);
    let mut look = interval(LOOK_EVERY);
    while !machines.iter().all(MachineProgress::is_finished) {
        power_on_next(lab, machines, following.at_once, clock.now())?;
        tokio::select! {
            changed = follower.next() => match changed {
                Changed::Machine(mac) => {
                    for machine in machines.iter_mut().filter(|machine| machine.mac == mac) {
                        follower.update(machine, view).await;
                    }
                }
                Changed::Anything => {
                    for machine in machines.iter_mut() {
                        follower.update(machine, view).await;
                    }
                }
            },
            _ = redraw.tick() => view.draw(&live_table(machines, clock.now()).lines(following.style)),
            _ = look.tick() => {
                look_for_ended(lab, machines, view)?;
                if follower.stream.is_none() && follower.connect().await {
                    for machine in machines.iter_mut() {
                        follower.update(machine, view).await;
                    }
                }
            }
            () = sleep_until(deadline) => break,
        }
    }
    view.clear();
    Ok(())
}

fn power_on_next(
    lab: &Lab,
    machines: &mut [MachineProgress],
    at_once: usize,
    now: Timestamp,
) -> anyhow::Result<()> {
    let booting = |machine: &&MachineProgress| {
        !machine.is_finished() && machine.powered_on_at.is_some_and(|at| now.since(at) < TURN_MAX)
    };
    let free = at_once.max(1).saturating_sub(machines.iter().filter(booting).count());
    for machine in machines.iter_mut().filter(|machine| machine.powered_on_at.is_none()).take(free) {
        machine.powered_on_at = Some(lab.power_on(&machine.name)?);
    }
    Ok(())
}

fn look_for_ended(lab: &Lab, machines: &mut [MachineProgress], view: &View) -> anyhow::Result<()> {
    let record = lab.run_record()?;
    if !record.supervisor.is_alive() {
        bail!("the lab's supervisor has ended; see {}", lab.state().log().display());
    }
    for machine in machines.iter_mut().filter(|machine| machine.failed.is_none()) {
        let program = record.programs.iter().find(|program| program.name == machine.name);
        if let Some(ended) = program.and_then(|program| program.ended.as_ref()) {
            let log = lab.state().machine(&machine.name).qemu_log();
            view.say(&format!("{}: QEMU ended ({ended}); see {}", machine.name, log.display()));
            machine.failed = Some(ended.clone());
        }
    }
    Ok(())
}

enum Changed {
    Machine(crate::net::MacAddr),
    Anything,
}

struct Follower {
    client: Client,
    stream: Option<EventStream>,
}

impl Follower {
    async fn connect(&mut self) -> bool {
        self.stream = self.client.events().await.ok();
        self.stream.is_some()
    }

    /// Waits for the next event; for ever without a stream.
    async fn next(&mut self) -> Changed {
        let Some(stream) = &mut self.stream else { return std::future::pending().await };
        match stream.next().await {
            Ok(Some(WatchEvent::Timeline(message))) => {
                message.node_mac.map_or(Changed::Anything, Changed::Machine)
            }
            Ok(Some(WatchEvent::Bridge(_) | WatchEvent::Lagged(_))) => Changed::Anything,
            Ok(None) | Err(_) => {
                self.stream = None;
                Changed::Anything
            }
        }
    }

    /// Reads a machine's timeline anew. An appliance that does not answer now is asked again later.
    async fn update(&self, machine: &mut MachineProgress, view: &View) {
        let Ok(boots) = boots(&self.client, machine).await else { return };
        for stage in machine.update(&boots) {
            if view.is_live() {
                continue;
            }
            let took = machine.time_to(stage).map(seconds).unwrap_or_default();
            view.say(&format!("{took:>7}  {:<12} {}", machine.name, stage_word(stage)));
        }
    }
}

async fn boots(
    client: &Client,
    machine: &MachineProgress,
) -> Result<Vec<Boot>, crate::cli::error::CommandError> {
    client.list(&format!("/api/v1/nodes/{}/boots", segment(&machine.mac.to_string()))).await
}

/// Where a machine's words are, for one that did not make it.
pub fn where_it_stopped(machine: &MachineProgress, serial_log: &Path) -> String {
    let why = match (&machine.failed, &machine.stopped_at) {
        (Some(failed), _) => format!("QEMU ended: {failed}"),
        (None, Some(stopped_at)) => crate::cli::text::inert(stopped_at),
        (None, None) => "the appliance never heard of it".to_owned(),
    };
    format!("{}: {why}\n  console: {}", machine.name, serial_log.display())
}
