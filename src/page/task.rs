//! What is done to a node's disks: the panel that shows it with bar and chart, the form that asks for an install, and the
//! buttons that end one.

use axum::Form;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use crate::cli::text;
use crate::node::install::intent::Verb;
use crate::node::install::task::Progress;
use crate::node::registry::{Expected, Sample};
use crate::node::state::ProvisionState;
use crate::operator::api::{DeployRequest, DiskImageEntry, NodeDetail, TaskDetail, TaskPhase};
use crate::operator::problem::{Problem, ProblemKind};
use crate::operator::{asked, tasks};
use crate::page::fleet::Condition;
use crate::page::layout::{self, Live, Tab};
use crate::page::visitor::{Visitor, Writer};
use crate::page::{PageParts, Shared, inventory, problem, source, words};

/// Of the chart, in its own units.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 90.0;

/// Before an installer's name, which has no colon, where images are named as well.
const INSTALLER: &str = "installer:";

/// The panel; nothing for a node whose disks nobody ever wanted anything of.
pub(super) fn panel(parts: &PageParts, node: &NodeDetail) -> Markup {
    let Some(task) = source::task(&parts.operator, node) else { return html! {} };
    html! {
        section #task.panel aria-labelledby="task-title" data-live {
            div.panel-head {
                h2 #task-title { (title(&task)) }
                p.quiet { (phase_words(&task)) }
            }
            @if task.phase == TaskPhase::Running {
                @match &task.progress {
                    _ if task.installer.is_some() => p.quiet { "Its installer is at work, and says so when it is done." },
                    Some(progress) => (bar(progress)),
                    None => p.quiet { "Its agent begins." },
                }
            }
            (chart(&task.samples))
            dl.facts {
                @if let Some(disk) = &task.disk { (inventory::fact("Disk wanted", &disk.to_string())) }
                @for disk in &task.disks {
                    (inventory::fact("Disk", &format!("{}, {}{}", disk.name, text::bytes(disk.bytes), disk.serial.as_ref().map(|serial| format!(", serial number {serial}")).unwrap_or_default())))
                }
                @if let Some(reason) = &task.reason { (inventory::fact("Reason", reason)) }
                div { dt { "Wanted" } dd { (words::ago(task.created_at, parts.now())) } }
                @if let Some(at) = task.phase_at { div { dt { "In this phase since" } dd { (words::ago(at, parts.now())) } } }
                @if let Some(manifest) = &task.manifest { div { dt { "Manifest" } dd.mono { (manifest) } } }
            }
        }
    }
}

fn title(task: &TaskDetail) -> String {
    if let Some(installer) = &task.installer {
        return format!("Install by {installer}");
    }
    match (task.verb, &task.image) {
        (Verb::Deploy, Some(image)) => format!("Install of {image}"),
        (Verb::Deploy, None) => "Install".to_owned(),
        (Verb::Clean, _) => "Cleaning".to_owned(),
        (Verb::Rescue, _) => "Rescue".to_owned(),
    }
}

fn phase_words(task: &TaskDetail) -> &'static str {
    match (task.phase, task.verb) {
        (TaskPhase::Waiting, _) => "waits for its next netboot",
        (TaskPhase::Running, _) => "under way",
        (TaskPhase::Written, _) => "the disk is written; its system boots",
        (TaskPhase::Done, _) => "done",
        (TaskPhase::Failed, _) => "failed",
        (TaskPhase::Aborted, _) => "aborted",
    }
}

fn bar(progress: &Progress) -> Markup {
    let share = share(progress.done, progress.total);
    let percent = format!("{:.0}", share * 100.0);
    let step = progress.step.to_string();
    html! {
        div.task-bar {
            svg.bar viewBox="0 0 100 6" preserveAspectRatio="none" width="100%" height="12" role="img" aria-label={ (step) ", " (percent) " %" } {
                rect.bar-ground width="100" height="6" {}
                rect.fill-installing width=(format!("{:.2}", share * 100.0)) height="6" {}
            }
            p {
                b { (step) " " (percent) " %" }
                " · " (text::bytes(progress.done)) " of " (text::bytes(progress.total))
                " · " (text::bytes(progress.rate)) "/s"
                @if let Some(left) = progress.seconds_left { " · " (left) " s left" }
                @if progress.kept > 0 { " · " (text::bytes(progress.kept)) " were there already" }
            }
        }
    }
}

fn share(done: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { (done as f64 / total as f64).clamp(0.0, 1.0) }
}

/// Bytes a second in time.
fn chart(samples: &[Sample]) -> Markup {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return html! {} };
    let highest = samples.iter().map(|sample| sample.rate).max().unwrap_or(0);
    let span = last.at.since(first.at).as_secs_f64();
    if samples.len() < 3 || highest == 0 || span <= 0.0 {
        return html! {};
    }
    let point = |sample: &Sample| {
        let x = sample.at.since(first.at).as_secs_f64() / span * WIDTH;
        let y = HEIGHT - sample.rate as f64 / highest as f64 * (HEIGHT - 6.0);
        format!("{x:.1},{y:.1}")
    };
    let line: Vec<String> = samples.iter().map(point).collect();
    let area = format!("0,{HEIGHT} {} {WIDTH},{HEIGHT}", line.join(" "));
    html! {
        figure.task-chart {
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" width="100%" height="90" role="img" aria-label={ "Rate in time; at most " (text::bytes(highest)) " a second" } {
                polygon.chart-area points=(area) {}
                polyline.chart-line points=(line.join(" ")) fill="none" {}
            }
            figcaption.quiet { "Rate of writing and reading back, at most " (text::bytes(highest)) "/s; " (format!("{span:.0}")) " s" }
        }
    }
}

/// What can be done about its disks now.
pub(super) fn actions(visitor: &Visitor, node: &NodeDetail) -> Markup {
    let id = node.summary.id;
    let button = |action: &str, word: &str| {
        html! {
            form method="post" action={ "/nodes/" (id) "/" (action) } {
                (visitor.form_fields())
                button.button type="submit" { (word) }
            }
        }
    };
    html! {
        @match node.summary.state {
            ProvisionState::Enroll | ProvisionState::Inspecting | ProvisionState::InspectFailed | ProvisionState::Manageable | ProvisionState::Available | ProvisionState::CleanFailed => {
                a.button href={ "/nodes/" (id) "/deploy" } { "Install…" }
            }
            ProvisionState::DeployFailed => {
                a.button href={ "/nodes/" (id) "/deploy" } { "Install again…" }
                (button("release", "Release"))
            }
            ProvisionState::WaitCallBack | ProvisionState::Deploying | ProvisionState::CleanWait | ProvisionState::Cleaning => {
                (button("abort", "Abort"))
            }
            ProvisionState::Rescuing | ProvisionState::Rescue => (button("unrescue", "End rescue")),
            ProvisionState::Active | ProvisionState::RescueFailed => (button("release", "Release")),
        }
    }
}

/// The form that asks for an install.
pub(super) async fn form(
    State(parts): State<Shared>,
    Path(reference): Path<String>,
    visitor: Visitor,
) -> Response {
    let node = match source::node(&parts.operator, &reference) {
        Ok(node) => node,
        Err(refused) => return problem::page(refused),
    };
    let images = parts.operator.appliance.disk_images();
    let installers = source::installers(&parts.operator);
    let name = words::title_of(&node.summary);
    let body = html! {
        section.panel.form {
            h1 { "Install " (name) }
            @if images.is_empty() && installers.is_empty() {
                p.empty { "There is no disk image yet. Bring one: " code { "farrier image import FILE --name NAME" } ", or make one: " code { "farrier image build debian-12" } }
            } @else {
                p { "Its next netboot installs it, once; if its agent waits, it begins within seconds." }
                form method="post" action={ "/nodes/" (node.summary.id) "/deploy" } {
                    (visitor.form_fields())
                    (fields(&images, &installers, &node))
                    div.form-end {
                        button.button.primary type="submit" { "Install" }
                        a.button href={ "/nodes/" (node.summary.id) } { "Leave it" }
                    }
                }
            }
        }
    };
    layout::page(&visitor, Tab::Nodes, &format!("Install {name}"), Live::Not, body)
}

fn fields(images: &[DiskImageEntry], installers: &[String], node: &NodeDetail) -> Markup {
    let last = node.task.as_ref();
    let (last_image, last_installer) =
        (last.and_then(|task| task.image.clone()), last.and_then(|task| task.installer.clone()));
    html! {
        div.field {
            label for="image" { @if installers.is_empty() { "Image" } @else { "Image or installer" } }
            select #image name="image" required {
                @for image in images {
                    option value=(image.name) selected[last_image.as_ref() == Some(&image.name)] { (words::wire(&image.name)) " (" (text::bytes(image.bytes)) ")" }
                }
                @for installer in installers {
                    option value={ (INSTALLER) (installer) } selected[last_installer.as_ref() == Some(installer)] { (words::wire(installer)) " (installer)" }
                }
            }
        }
        div.field {
            label for="disk" { "Disk" }
            input #disk type="text" name="disk" placeholder="smallest" maxlength="512" autocomplete="off" aria-describedby="disk-hint";
            p.hint #disk-hint { @if !installers.is_empty() { "For images. " } "The smallest that fits if nothing is said; else " code { "serial=…" } ", " code { "size>=100G,rotational=no" } ", …" }
        }
        div.field {
            label for="ssh_keys" { "SSH keys" }
            textarea #ssh_keys name="ssh_keys" rows="3" placeholder="ssh-ed25519 AAAA… operator" aria-describedby="keys-hint" {}
            p.hint #keys-hint { "Public keys that may log in, a line each." }
        }
        div.field {
            label for="user_data" { "User data" }
            textarea #user_data name="user_data" rows="4" placeholder="#!/bin/sh" aria-describedby="data-hint" {}
            p.hint #data-hint { "A script that the installed system runs once. Passwords in it are kept here only until the system has called." }
        }
        div.field {
            label { input type="checkbox" name="wipe" value="yes"; " Overwrite the disk even if it carries data" }
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct DeployForm {
    image: String,
    #[serde(default)]
    disk: String,
    #[serde(default)]
    ssh_keys: String,
    #[serde(default)]
    user_data: String,
    #[serde(default)]
    wipe: String,
}

pub(super) async fn deploy(
    State(parts): State<Shared>,
    Path(node): Path<String>,
    writer: Writer,
    Form(form): Form<DeployForm>,
) -> Response {
    let asked = async {
        let reference = asked::reference(&node)?;
        let disk = form.disk.trim();
        let disk = (!disk.is_empty()).then(|| disk.parse()).transpose();
        let disk = disk.map_err(|error: crate::node::install::disk_rule::ParseDiskRuleError| {
            Problem::new(ProblemKind::Invalid, error.to_string()).field("disk")
        })?;
        // Browsers send lines as HTTP does.
        let user_data = form.user_data.replace("\r\n", "\n");
        let keys = form.ssh_keys.lines().map(str::trim).filter(|line| !line.is_empty());
        let (image, installer) = match form.image.strip_prefix(INSTALLER) {
            Some(installer) => (None, Some(installer.to_owned())),
            None => (Some(form.image), None),
        };
        let request = DeployRequest {
            image,
            installer,
            disk,
            wipe: form.wipe == "yes",
            ssh_keys: keys.map(str::to_owned).collect(),
            user_data: (!user_data.trim().is_empty()).then_some(user_data),
        };
        tasks::deploy_now(parts.operator.clone(), writer.principal, reference, Expected::Anything, request)
            .await
    };
    back(asked.await, "deploy")
}

macro_rules! button {
    ($name:ident, $now:path) => {
        pub(super) async fn $name(
            State(parts): State<Shared>,
            Path(node): Path<String>,
            writer: Writer,
        ) -> Response {
            let asked = async {
                let reference = asked::reference(&node)?;
                $now(parts.operator.clone(), writer.principal, reference, Expected::Anything).await
            };
            back(asked.await, stringify!($name))
        }
    };
}

button!(abort, tasks::abort_now);
button!(release, tasks::release_now);
button!(unrescue, tasks::unrescue_now);

fn back(outcome: Result<NodeDetail, Problem>, done: &str) -> Response {
    match outcome {
        Ok(node) => Redirect::to(&format!("/nodes/{}?done={done}", node.summary.id)).into_response(),
        Err(refused) => problem::page(refused),
    }
}

/// Disk images as `/images` shows them.
pub(super) fn disk_images(parts: &PageParts) -> Markup {
    let images = parts.operator.appliance.disk_images();
    html! {
        section.panel aria-labelledby="disk-images-title" {
            div.panel-head { h2 #disk-images-title { "Disk images" } p.quiet { "what installs write" } }
            @if images.is_empty() {
                p.empty { "None yet: " code { "farrier image import FILE --name NAME" } " or " code { "farrier image build debian-12" } }
            } @else {
                div.table-scroll tabindex="0" role="region" aria-label="Disk images" {
                    table.grid {
                        thead { tr { th scope="col" { "Name" } th.number-cell scope="col" { "Disk" } th.number-cell scope="col" { "Kept in" } th scope="col" { "What it is" } th scope="col" { "Imported" } th scope="col" { "SHA-256" } } }
                        tbody {
                            @for image in &images {
                                tr {
                                    th scope="row" { (Condition::Active.glyph()) " " (words::wire(&image.name)) }
                                    td.number-cell { (text::bytes(image.bytes)) }
                                    td.number-cell { (text::bytes(image.stored_bytes)) }
                                    td.detail { (words::sentence(&image.description)) }
                                    td { (words::ago(image.imported_at, parts.now())) }
                                    td.mono { (image.sha256.chars().take(12).collect::<String>()) "…" }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
