//! The one place where pages ask the operator plane: for documents, and to change something.

use std::sync::Arc;

use crate::boot::decision::{KnownNode, ScriptPlan, Standing, decide_script};
use crate::boot::profile::fit::Reader;
use crate::boot::script::profile::BootText;
use crate::boot::script::{ScriptContext, render_ipxe};
use crate::bootplane::profiles::{Asker, Ready};
use crate::net::MacAddr;
use crate::node::NodeId;
use crate::node::registry::{Expected, NodeFilter, NodeRef};
use crate::node::state::Order;
use crate::node::timeline::Boot;
use crate::node::verdict::Verdict;
use crate::operator::access::Principal;
use crate::operator::api::{ImageEntry, NodeDetail, NodeSummary, RegisterRequest, Status, TaskDetail};
use crate::operator::problem::Problem;
use crate::operator::{OperatorParts, asked, nodes, tasks, views, why};

type Operator = Arc<OperatorParts>;

pub(super) fn summaries(operator: &OperatorParts) -> Vec<NodeSummary> {
    views::all_nodes(operator, &NodeFilter::default())
}

pub(super) fn status(operator: &OperatorParts) -> Status {
    views::status(operator)
}

pub(super) fn images(operator: &OperatorParts) -> Vec<ImageEntry> {
    operator.appliance.images()
}

pub(super) fn node(operator: &OperatorParts, reference: &str) -> Result<NodeDetail, Problem> {
    let reference = asked::reference(reference)?;
    views::node(operator, &reference).ok_or_else(|| nodes::no_node(&reference))
}

pub(super) fn boots(operator: &OperatorParts, id: NodeId) -> Vec<Boot> {
    operator.registry.boots(id)
}

/// Why that boot, or the newest, came as far as it did.
pub(super) fn verdict(operator: &OperatorParts, id: NodeId, boot: Option<u32>) -> Option<Verdict> {
    why::verdict(operator, &NodeRef::Id(id), boot, None).ok()
}

pub(super) async fn register(
    operator: Operator,
    principal: Principal,
    request: RegisterRequest,
) -> Result<NodeDetail, Problem> {
    nodes::register_now(operator, principal, request).await
}

pub(super) async fn approve(
    operator: Operator,
    principal: Principal,
    reference: &str,
) -> Result<NodeDetail, Problem> {
    let reference = asked::reference(reference)?;
    nodes::change_now(operator, principal, "node.approve", reference, |parts, reference| {
        parts.registry.approve(reference, parts.clock.now())
    })
    .await
}

pub(super) async fn order(
    operator: Operator,
    principal: Principal,
    reference: &str,
    order: Order,
) -> Result<NodeDetail, Problem> {
    let reference = asked::reference(reference)?;
    nodes::change_now(operator, principal, "node.order", reference, move |parts, reference| {
        parts.registry.order(reference, order, parts.clock.now())
    })
    .await
}

pub(super) async fn remove(
    operator: Operator,
    principal: Principal,
    reference: &str,
) -> Result<NodeDetail, Problem> {
    nodes::remove_now(operator, principal, asked::reference(reference)?, Expected::Anything).await
}

/// What was wanted last of a node's disks, with the course it took.
pub(super) fn task(operator: &OperatorParts, node: &NodeDetail) -> Option<TaskDetail> {
    node.task.as_ref()?;
    let found = operator.registry.find(&NodeRef::Id(node.summary.id))?;
    tasks::with_course(operator, &found)
}

/// The boot profiles that are installers.
pub(super) fn installers(operator: &OperatorParts) -> Vec<String> {
    let served =
        operator.appliance.boot_profiles().map(|desk| desk.library().boot_profiles()).unwrap_or_default();
    let installers = served.iter().filter(|served| served.profile.is_installer());
    installers.map(|served| served.profile.name.to_string()).collect()
}

/// What iPXE would be given now, with words in the token's place.
pub(super) fn script(operator: &OperatorParts, mac: MacAddr) -> String {
    let now = operator.clock.now();
    let config = operator.config.load();
    let server = config.network.address.ip();
    let leases = operator.appliance.leases();
    let address = leases.by_address.iter().find(|lease| lease.mac == mac).map(|lease| lease.address);
    let asker = Asker { mac, address, server, reader: Reader::Ipxe };
    let choice = operator
        .appliance
        .boot_profiles()
        .and_then(|desk| operator.registry.look_at(mac, |node, boot| desk.choose(node, boot, asker)));
    let prepared = choice.and_then(|choice| choice.prepared);
    let installer = operator
        .appliance
        .boot_profiles()
        .and_then(|desk| operator.registry.look_at(mac, |node, _| desk.installer(node, asker).ok().flatten()))
        .flatten();
    let plan = match operator.registry.standing(mac, now) {
        Standing::Stranger => ScriptPlan::AwaitApproval,
        Standing::Known(node) => {
            let profile = prepared.as_ref().map(|prepared| prepared.assigned.clone());
            decide_script(&KnownNode { profile, ..node })
        }
    };
    let ready = match plan {
        ScriptPlan::Profile => prepared.map(|prepared| prepared.ready),
        ScriptPlan::Installer => installer,
        _ => None,
    };
    let plan = ready.as_ref().map_or(plan, |ready| ready.plan(plan));
    let name = operator.registry.name_of(mac);
    let image = operator.appliance.deploy_image();
    let of_image = image.iter().flat_map(|image| &image.arguments);
    let arguments: Vec<_> = of_image.chain(&config.boot.kernel_arguments).cloned().collect();
    render_ipxe(
        plan,
        &ScriptContext {
            server,
            mac,
            node: name.as_ref(),
            profile: &config.boot.profile,
            token: "(made-when-asked-for)",
            arguments: &arguments,
            grubs: &operator.appliance.loader_table().grubs(),
            boot: ready.as_ref().map_or(BootText::Ramdisk, Ready::text),
        },
    )
}
