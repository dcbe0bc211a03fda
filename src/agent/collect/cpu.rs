//! Processors: model from `/proc/cpuinfo`, counts from the topology in sysfs.

use std::collections::BTreeSet;
use std::path::Path;

use crate::agent::collect::{names, number, tidy};
use crate::node::inventory::Cpu;

pub fn cpu(root: &Path) -> Cpu {
    let info = std::fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let logical = info.lines().filter(|line| key(line) == Some("processor")).count();
    let (mut sockets, mut cores) = (BTreeSet::new(), BTreeSet::new());
    let directory = root.join("sys/devices/system/cpu");
    for name in names(&directory) {
        let is_cpu =
            name.strip_prefix("cpu").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
        let topology = directory.join(&name).join("topology");
        // A processor that is offline has no topology.
        let Some(socket) = number::<i64>(&topology.join("physical_package_id")).filter(|_| is_cpu) else {
            continue;
        };
        sockets.insert(socket);
        cores.insert((socket, number::<i64>(&topology.join("core_id"))));
    }
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Cpu {
        model: model(&info),
        architecture: std::env::consts::ARCH.to_owned(),
        logical: count(logical),
        cores: count(cores.len()),
        sockets: count(sockets.len()),
    }
}

fn key(line: &str) -> Option<&str> {
    line.split_once(':').map(|(key, _)| key.trim())
}

/// x86 says `model name`; arm64 kernels name no model, only an implementer and a part number.
fn model(info: &str) -> String {
    let value = |wanted: &str| {
        info.lines().find(|line| key(line) == Some(wanted)).and_then(|line| tidy(line.split_once(':')?.1))
    };
    value("model name")
        .or_else(|| Some(format!("implementer {} part {}", value("CPU implementer")?, value("CPU part")?)))
        .unwrap_or_default()
}
