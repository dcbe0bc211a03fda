//! One machine, served by us.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use farrier::cli::text::Style;
use farrier::cli::view::View;
use farrier::lab::config::LabFirmware;
use farrier::lab::follow::{Following, boot_all, where_it_stopped};
use farrier::lab::progress::MachineProgress;
use farrier::lab::{Lab, LabOptions, Services, prepare};
use farrier::node::timeline::Stage;

use crate::{Bench, ENROLLED_WITHIN};

pub fn power_on_to_enrolled(bench: &Bench, firmware: LabFirmware, state: &Path) -> anyhow::Result<Duration> {
    prepare::share(&bench.images, &state.join("appliance"))?;
    let lab = Lab::start(LabOptions {
        state: state.to_owned(),
        config: bench.config(firmware),
        farrier: bench.farrier.clone(),
        fresh: true,
        ends_with_launcher: true,
        services: Services::Appliance { observers: Vec::new() },
    })?;
    let mut machines: Vec<MachineProgress> = lab.machines().iter().map(MachineProgress::new).collect();
    let following = Following { style: Style::PLAIN, at_once: 1, within: ENROLLED_WITHIN };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(boot_all(&lab, &mut machines, &mut View::hidden(), &following))?;
    let machine = &machines[0];
    let Some(took) = machine.time_to(Stage::Enrolled) else {
        bail!("{}", where_it_stopped(machine, &lab.state().machine(&machine.name).serial_log()));
    };
    lab.stop()?;
    Ok(took)
}
