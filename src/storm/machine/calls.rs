//! The agent's calls: hello with the boot's token, then the inventory; tried again until answered or refused.

use std::time::Instant;

use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{Action, Fetch, Fetched, Machine, Stage, Step, Trouble};
use crate::node::inventory::{BootedBy, Cpu, Disk, Inventory, Nic, System};
use crate::storm::firmware::Kind;
use crate::storm::http::{Method, Url};
use crate::storm::script;

/// Between two tries of a call, growing to the second.
const BACKOFF_SECS: (f64, f64) = (0.5, 10.0);

#[derive(Deserialize)]
struct Welcome {
    session: String,
}

impl Machine {
    pub(super) fn call(&self, step: &Step, now: Instant) -> Option<Fetch> {
        let arguments = &self.boot.as_ref()?.arguments;
        let server = Url::parse(script::argument(arguments, "farrier.server")?)?.server;
        let mac = self.identity.mac;
        let uptime_secs = self.stage_began.map_or(0.0, |began| now.duration_since(began).as_secs_f64());
        let (path, bearer, body) = match step {
            Step::Hello => {
                let token = script::argument(arguments, "farrier.token")?;
                ("hello", None, json!({ "token": token, "mac": mac, "uptime_secs": uptime_secs }))
            }
            _ => {
                let inventory = self.inventory(uptime_secs);
                ("inventory", Some(self.session.clone()), json!({ "mac": mac, "inventory": inventory }))
            }
        };
        let url = Url { server, path: format!("/agent/v1/{path}") };
        Some(Fetch::Http {
            method: Method::Post,
            url,
            bearer,
            body: body.to_string().into_bytes(),
            keep: true,
        })
    }

    /// A plain two-socket server, the same for every machine but for its names.
    fn inventory(&self, uptime_secs: f64) -> Inventory {
        let uuid = Uuid::from_bytes(self.identity.uuid);
        Inventory {
            system: System {
                vendor: Some("farrier storm".to_owned()),
                product: Some(self.kind.as_str().to_owned()),
                serial: Some(format!("STORM-{}", self.identity.mac.dashed())),
                uuid: Some(uuid),
                ..System::default()
            },
            cpu: Cpu {
                model: "simulated".to_owned(),
                architecture: "x86_64".to_owned(),
                logical: 64,
                cores: 32,
                sockets: 2,
            },
            memory_bytes: 256 << 30,
            disks: (0..4_u64)
                .map(|number| Disk {
                    name: format!("nvme{number}n1"),
                    model: Some("simulated NVMe".to_owned()),
                    serial: Some(format!("S{number}-{}", self.identity.mac.dashed())),
                    bytes: 1 << 41,
                    ..Disk::default()
                })
                .collect(),
            nics: vec![Nic {
                name: "eth0".to_owned(),
                mac: self.identity.mac,
                driver: Some("storm".to_owned()),
                speed_mbps: Some(25_000),
                link: true,
            }],
            uptime_secs,
            kernel: "storm".to_owned(),
            booted_by: match self.kind {
                Kind::Bios => BootedBy::Bios,
                Kind::Uefi | Kind::UefiHttp | Kind::UefiSecure => BootedBy::Uefi,
            },
        }
    }

    pub(super) fn handle_answer(
        &mut self,
        step: Step,
        outcome: Result<Fetched, Trouble>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let (status, retry_after, content) = match outcome {
            Ok(Fetched::Answer(answer)) => (answer.status, answer.retry_after, answer.content),
            Ok(Fetched::File(_)) => return,
            Err(trouble) => return self.call_again(step, trouble, None, now),
        };
        match (status, &step) {
            (200..=299, Step::Hello) => match serde_json::from_slice::<Welcome>(&content) {
                Ok(welcome) => {
                    self.session = welcome.session;
                    self.calls_failed = 0;
                    self.take(Step::Inventory, now, out);
                }
                Err(_) => self.call_again(step, Trouble::HttpNonsense, None, now),
            },
            (200..=299, _) => {
                self.leave(now);
            }
            (400 | 401 | 403 | 413 | 422, _) => self.give_up_on(Trouble::AgentRefused, now),
            (503, _) => {
                self.record.told_to_wait += 1;
                self.call_again(step, Trouble::HttpStatus(status), retry_after, now);
            }
            _ => self.call_again(step, Trouble::HttpStatus(status), retry_after, now),
        }
    }

    fn call_again(&mut self, step: Step, trouble: Trouble, retry_after: Option<u64>, now: Instant) {
        self.record.setbacks.push((Stage::Enroll, trouble));
        let (first, last) = BACKOFF_SECS;
        let wait = (first * f64::from(1_u32 << self.calls_failed.min(6))).min(last);
        self.calls_failed += 1;
        let wait = wait * (0.5 + self.random.unit());
        self.pause(step, retry_after.map_or(wait, |secs| secs as f64), now);
    }
}
