//! Tasks over the API: deploy, clean, rescue, unrescue, release, abort; and how one is going.

use axum::extract::State;
use axum::response::Response;
use axum::{Json, http::StatusCode};

use super::OperatorParts;
use super::access::Principal;
use super::answer;
use super::api::{CleanRequest, DeployRequest, NodeDetail, RescueRequest, TaskDetail, TaskPhase};
use super::asked::{Conditions, Document, NoQuery, Reference};
use super::nodes::{change_now, found};
use super::problem::{Problem, ProblemKind};
use super::profiles;
use super::routes::Shared;
use crate::boot::profile::fit::{self, Judgement, KnownFirmware};
use crate::image::library::is_profile_name;
use crate::metadata::installer::Kind;
use crate::node::install::disk_rule::DiskRule;
use crate::node::install::intent::{Deployment, Intent, Phase, Work};
use crate::node::registry::{Expected, InstallError, InstallRequest, InstallView, NodeRef, Registry};
use crate::node::{Node, NodeId};

pub(super) async fn deploy(
    State(parts): State<Shared>,
    principal: Principal,
    Reference(reference): Reference,
    Conditions(expected): Conditions,
    _: NoQuery,
    Document(request): Document<DeployRequest>,
) -> Result<Response, Problem> {
    answered(deploy_now(parts, principal, reference, expected, request).await)
}

/// For the page as well.
pub(crate) async fn deploy_now(
    parts: Shared,
    principal: Principal,
    reference: NodeRef,
    expected: Expected,
    request: DeployRequest,
) -> Result<NodeDetail, Problem> {
    change_now(parts, principal, "node.deploy", reference, move |parts, reference| {
        let node = found(parts, reference)?;
        let (ssh_keys, user_data) = (request.ssh_keys.clone(), request.user_data.clone());
        let work = work_of(parts, &node, request)?;
        let request = InstallRequest { work, ssh_keys, user_data };
        parts.registry.want(reference, &expected, request, parts.clock.now()).map_err(Problem::from)
    })
    .await
}

/// What is asked for, of what is there.
fn work_of(parts: &OperatorParts, node: &Node, request: DeployRequest) -> Result<Work, Problem> {
    let invalid = |field: &'static str, detail: &str| Problem::new(ProblemKind::Invalid, detail).field(field);
    let (image, installer) = match (&request.image, &request.installer) {
        (Some(_), Some(_)) => {
            return Err(invalid("installer", "an install is of an image or by an installer, not both"));
        }
        (None, None) => last_deployed(node).ok_or_else(|| {
            invalid("image", "nothing was deployed on this node before: name an image or an installer")
                .way_out("`farrier image list` shows the disk images there are, `farrier profile list` the installers")
        })?,
        (Some(image), None) => (Some(image.clone()), None),
        (None, Some(installer)) => (None, Some(installer.clone())),
    };
    match (image, installer) {
        (_, Some(_)) if request.disk.is_some() || request.wipe => Err(invalid(
            "disk",
            "an installer chooses its disk by its own answers and overwrites it: `disk` and `wipe` are for images",
        )),
        (_, Some(installer)) => by_installer(parts, node, &installer),
        (image, None) => {
            of_image(parts, image.unwrap_or_default(), request.disk.unwrap_or_default(), request.wipe)
        }
    }
}

fn of_image(parts: &OperatorParts, name: String, disk: DiskRule, wipe: bool) -> Result<Work, Problem> {
    if !is_profile_name(&name) {
        let detail = "an image's name is 1 to 63 lower-case letters, digits and inner hyphens";
        return Err(Problem::new(ProblemKind::Invalid, detail).field("image"));
    }
    let image = parts.appliance.disk_image(&name).ok_or_else(|| {
        Problem::new(ProblemKind::NotFound, format!("there is no disk image `{name}`, or it is damaged"))
            .field("image")
            .way_out("`farrier image list` shows those there are; `farrier image import` brings one")
    })?;
    if disk.means_all() {
        let detail = "an image goes to one disk; `all` is for cleaning";
        return Err(Problem::new(ProblemKind::Invalid, detail).field("disk"));
    }
    // Before the wish is on disk: what it needs must not go away in between.
    parts.appliance.pin_image(image.manifest).map_err(|reason| {
        Problem::new(ProblemKind::Unavailable, format!("the image cannot be kept from removal: {reason}"))
    })?;
    Ok(Work::Deploy(Deployment {
        image: name,
        manifest: image.manifest,
        manifest_bytes: image.manifest_bytes,
        disk,
        wipe,
    }))
}

/// A profile that can be an installer, and that the machine can start as far as is known.
fn by_installer(parts: &OperatorParts, node: &Node, name: &str) -> Result<Work, Problem> {
    let name = profiles::profile_name(name).map_err(|problem| problem.field("installer"))?;
    let served = profiles::desk(parts)?.library().boot_profile(&name);
    let served = served.ok_or_else(|| profiles::no_profile(&name).field("installer"))?;
    if !served.profile.is_installer() {
        let detail = format!(
            "boot profile {name} is no installer: a kernel is wanted, with an argument that names its answers"
        );
        let wanted = Kind::ALL.map(|kind| kind.boot_arguments().join(" "));
        return Err(Problem::new(ProblemKind::Conflict, detail)
            .field("installer")
            .way_out(format!("add it with arguments like these: {}", wanted.join("; "))));
    }
    match fit::judge(&served.profile, KnownFirmware::of(node)) {
        Judgement::Unfit(unfit) => Err(profiles::unfit(node, &name, unfit).field("installer")),
        Judgement::Fits | Judgement::Unsure(_) | Judgement::Unknown => Ok(Work::Installer { profile: name }),
    }
}

/// Image and installer of the last deployment.
fn last_deployed(node: &Node) -> Option<(Option<String>, Option<String>)> {
    match &node.intent.as_deref()?.work {
        Work::Deploy(deployment) => Some((Some(deployment.image.clone()), None)),
        Work::Installer { profile } => Some((None, Some(profile.to_string()))),
        Work::Clean { .. } | Work::Rescue { .. } => None,
    }
}

pub(super) async fn clean(
    State(parts): State<Shared>,
    principal: Principal,
    Reference(reference): Reference,
    Conditions(expected): Conditions,
    _: NoQuery,
    Document(request): Document<CleanRequest>,
) -> Result<Response, Problem> {
    let disk = request.disk.unwrap_or_else(DiskRule::all);
    let work = Work::Clean { disk, method: request.method };
    let wanted = InstallRequest { work, ssh_keys: Vec::new(), user_data: None };
    let cleaned = change_now(parts, principal, "node.clean", reference, move |parts, reference| {
        parts.registry.want(reference, &expected, wanted, parts.clock.now())
    });
    answered(cleaned.await)
}

pub(super) async fn rescue(
    State(parts): State<Shared>,
    principal: Principal,
    Reference(reference): Reference,
    Conditions(expected): Conditions,
    _: NoQuery,
    Document(request): Document<RescueRequest>,
) -> Result<Response, Problem> {
    if request.ssh_keys.is_empty() {
        let detail = "nobody could log in: a rescue needs at least one SSH key";
        return Err(Problem::new(ProblemKind::Invalid, detail).field("ssh_keys"));
    }
    let RescueRequest { ssh_keys } = request;
    let wanted = InstallRequest {
        work: Work::Rescue { ssh_keys: ssh_keys.clone() },
        // Checked with the same rules as those of a deployment.
        ssh_keys,
        user_data: None,
    };
    let rescued = change_now(parts, principal, "node.rescue", reference, move |parts, reference| {
        parts.registry.want(reference, &expected, wanted, parts.clock.now())
    });
    answered(rescued.await)
}

macro_rules! without_body {
    ($handler:ident, $now:ident, $action:literal, $verb:expr) => {
        pub(super) async fn $handler(
            State(parts): State<Shared>,
            principal: Principal,
            Reference(reference): Reference,
            Conditions(expected): Conditions,
            _: NoQuery,
        ) -> Result<Response, Problem> {
            answered($now(parts, principal, reference, expected).await)
        }

        /// For the page as well.
        pub(crate) async fn $now(
            parts: Shared,
            principal: Principal,
            reference: NodeRef,
            expected: Expected,
        ) -> Result<NodeDetail, Problem> {
            change_now(parts, principal, $action, reference, move |parts, reference| {
                $verb(&parts.registry, reference, &expected, parts.clock.now())
            })
            .await
        }
    };
}

without_body!(abort, abort_now, "node.abort", Registry::abort);
without_body!(unrescue, unrescue_now, "node.unrescue", Registry::unrescue);
without_body!(release, release_now, "node.release", Registry::release);

pub(super) async fn show(
    State(parts): State<Shared>,
    Reference(reference): Reference,
    _: NoQuery,
) -> Result<Json<TaskDetail>, Problem> {
    let node = found(&parts, &reference)?;
    with_course(&parts, &node).map(Json).ok_or_else(|| {
        Problem::new(ProblemKind::NotFound, format!("nothing was ever wanted for the disks of {reference}"))
            .way_out("`farrier node deploy` is where that begins")
    })
}

/// The node's task with the course it took.
pub(crate) fn with_course(parts: &OperatorParts, node: &Node) -> Option<TaskDetail> {
    let view = parts.registry.install_view(node.id);
    let task = detail(node, &view)?;
    Some(TaskDetail { samples: view.samples, ..task })
}

/// The node's task, without its course.
pub(super) fn of(registry: &Registry, id: NodeId, node: &Node) -> Option<TaskDetail> {
    // Nodes without one are most: no second look at the book for them.
    node.intent.as_ref()?;
    detail(node, &registry.install_view(id))
}

pub(super) fn detail(node: &Node, view: &InstallView) -> Option<TaskDetail> {
    let intent = node.intent.as_deref()?;
    let (mut image, mut manifest, mut installer, mut wanted) = (None, None, None, None);
    match &intent.work {
        Work::Deploy(Deployment { image: name, manifest: digest, disk, .. }) => {
            (image, manifest, wanted) = (Some(name.clone()), Some(digest.to_string()), Some(disk.clone()));
        }
        Work::Installer { profile } => installer = Some(profile.to_string()),
        Work::Clean { disk, .. } => wanted = Some(disk.clone()),
        Work::Rescue { .. } => {}
    }
    let (phase, phase_at, reason) = phase_of(intent);
    Some(TaskDetail {
        intent: intent.id.0,
        generation: intent.generation,
        verb: intent.work.verb(),
        image,
        installer,
        manifest,
        disk: wanted,
        phase,
        reason,
        created_at: intent.created_at,
        phase_at,
        disks: intent.disks().to_vec(),
        heard_at: view.heard_at,
        progress: view.progress,
        samples: Vec::new(),
    })
}

fn phase_of(intent: &Intent) -> (TaskPhase, Option<crate::clock::Timestamp>, Option<String>) {
    match &intent.phase {
        Phase::Waiting => (TaskPhase::Waiting, Some(intent.created_at), None),
        Phase::Running { since, .. } => (TaskPhase::Running, Some(*since), None),
        Phase::Written { at, .. } => (TaskPhase::Written, Some(*at), None),
        Phase::Done { at, .. } => (TaskPhase::Done, Some(*at), None),
        Phase::Failed { at, reason } => (TaskPhase::Failed, Some(*at), Some(reason.clone())),
        Phase::Aborted { at, .. } => (TaskPhase::Aborted, Some(*at), None),
    }
}

fn answered(node: Result<NodeDetail, Problem>) -> Result<Response, Problem> {
    answer::node(StatusCode::OK, &node?)
}

impl From<InstallError> for Problem {
    fn from(error: InstallError) -> Problem {
        let detail = error.to_string();
        match error {
            InstallError::Operator(error) => error.into(),
            InstallError::NotNow { .. }
            | InstallError::NothingOpen
            | InstallError::NotReleased { .. }
            | InstallError::NotInRescue { .. }
            | InstallError::NotApproved => Problem::new(ProblemKind::Conflict, detail),
            InstallError::FirstBoot(_) => {
                Problem::new(ProblemKind::Invalid, detail).field("ssh_keys, user_data")
            }
            InstallError::NoRandomness => Problem::new(ProblemKind::Unavailable, detail),
        }
    }
}
