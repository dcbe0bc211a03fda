//! Every route of the API: method, path, role, handler, and what is told of it. The router and the OpenAPI document
//! are both made from this table.

use axum::Router;
use axum::http::Method;
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use utoipa::openapi::schema::{ObjectBuilder, Type};

use super::access::{self, Role};
use super::api::*;
use super::openapi::Told;
use super::routes::Shared;
use super::{events, images, leases, monitoring, nodes, profiles, roster, tasks, why};
use crate::boot::client::Firmware;
use crate::bridge_log::event::BridgeEvent;
use crate::clock::Timestamp;
use crate::dhcp::lease::LeaseState;
use crate::explain::{Dialogue, Machine};
use crate::net::MacAddr;
use crate::node::roster::Format;
use crate::node::state::ProvisionState;
use crate::node::timeline::{Boot, Stage};
use crate::node::verdict::Verdict;

const KEY: &str = "A text of the client's own, at most 255 characters: the same request with the same key is done once, \
                   and answered the same for 24 hours, also after a restart.";

pub struct Endpoint {
    pub method: Method,
    pub path: &'static str,
    pub role: Role,
    pub handler: MethodRouter<Shared>,
    /// What the document says of it: megabytes of schemas for all of them, so only when somebody asks for the document.
    pub told: fn() -> Told,
}

impl Endpoint {
    pub fn new(
        method: Method,
        path: &'static str,
        role: Role,
        handler: MethodRouter<Shared>,
        told: fn() -> Told,
    ) -> Endpoint {
        Endpoint { method, path, role, handler, told }
    }
}

/// The table.
pub fn all() -> Vec<Endpoint> {
    let parts = [
        reading_nodes(),
        changing_nodes(),
        tasks(),
        lists(),
        addresses(),
        images_and_events(),
        boot_profiles(),
        appliance(),
        access::endpoints(),
    ];
    parts.into_iter().flatten().collect()
}

/// The routes, each behind the role it takes; health, which anybody may ask for, takes none.
pub fn router() -> Router<Shared> {
    all().into_iter().fold(Router::new(), |router, Endpoint { path, role, handler, .. }| {
        let one = Router::new().route(path, handler);
        router.merge(match role {
            _ if is_open(path) => one,
            Role::Viewer => access::viewer(one),
            Role::Operator => access::operator(one),
            Role::Admin => access::admin(one),
        })
    })
}

fn is_open(path: &str) -> bool {
    ["/healthz", "/readyz"].contains(&path)
}

fn read(path: &'static str, handler: MethodRouter<Shared>, told: fn() -> Told) -> Endpoint {
    Endpoint::new(Method::GET, path, Role::Viewer, handler, told)
}

fn change(method: Method, path: &'static str, handler: MethodRouter<Shared>, told: fn() -> Told) -> Endpoint {
    Endpoint::new(method, path, Role::Operator, handler, told)
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn number() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0.0)).maximum(Some(f64::from(u32::MAX)))
}

fn reading_nodes() -> Vec<Endpoint> {
    vec![
        read("/api/v1/nodes", get(nodes::list), || {
            Told::page_of::<NodeSummary>(
                "list_nodes",
                "nodes",
                "Nodes, in the order in which they became known",
            )
            .listed()
            .query_of::<ProvisionState>("state", "Only nodes in this state.")
            .flag("approved", "Only nodes that are, or are not, approved.")
            .query_of::<Firmware>("firmware", "Only nodes that last netbooted with this firmware.")
            .query(
                "q",
                "Only nodes with this in their name, a MAC, an address, a label, id, UUID or serial number.",
                text(),
            )
            .query(
                "label",
                "Only nodes with all of these labels: `key=value`, or `key` for any value, with commas between.",
                text(),
            )
        }),
        read("/api/v1/nodes/{ref}", get(nodes::show), || {
            Told::answers::<NodeDetail>("show_node", "nodes", "One node").tagged().refuses(&[404])
        }),
        read("/api/v1/nodes/{ref}/boots", get(nodes::boots), || {
            Told::page_of::<Boot>("list_boots", "nodes", "A node's boots with their events, oldest first")
                .listed()
                .flag("enrolled", "Only boots that did, or did not, end with the inventory stored.")
                .query_of::<Stage>("stage", "Only boots that came this far and no further.")
                .refuses(&[404])
        }),
        read("/api/v1/nodes/{ref}/boots/{number}", get(nodes::boot), || {
            Told::answers::<Boot>("show_boot", "nodes", "One boot with its events").refuses(&[404])
        }),
        read("/api/v1/nodes/{ref}/why", get(why::why), || {
            Told::answers::<Verdict>(
                "why_node",
                "nodes",
                "Why a machine did not boot, or how far it has come; a MAC address need not be a node's",
            )
            .query("boot", "Which boot; without it the newest.", number())
            .query_of::<Timestamp>("at", "As of when; without it now.")
            .refuses(&[404])
        }),
        read("/api/v1/explain", get(why::explain), || {
            Told::answers::<Dialogue>(
                "explain_boot",
                "nodes",
                "The whole dialogue a machine would have, without sending a packet",
            )
            .query_of::<MacAddr>("mac", "Who would boot.")
            .query_of::<Machine>("firmware", "What it would boot with.")
            .flag("bytes", "With every message as it is on the wire.")
            .required(&["mac", "firmware"])
        }),
        read("/api/v1/ports", get(nodes::ports), || {
            Told::page_of::<PortEntry>("list_ports", "nodes", "Ports of all nodes, by MAC address")
                .listed()
                .query("node", "Only ports of this node: name, MAC address, id or UUID.", text())
                .flag("reserved", "Only ports that have, or have not, an address kept for them.")
                .refuses(&[404])
        }),
        read("/api/v1/ports/{mac}", get(nodes::port), || {
            Told::answers::<PortEntry>("show_port", "nodes", "One port").refuses(&[404])
        }),
    ]
}

fn changing_nodes() -> Vec<Endpoint> {
    vec![
        change(Method::POST, "/api/v1/nodes", post(nodes::register), || {
            Told::new(
                "register_node",
                "nodes",
                "Register a machine before its first boot, or adopt one that was seen",
            )
            .also::<NodeDetail>(201, "Registered.")
            .reads::<RegisterRequest>()
            .refuses(&[409, 422])
            .header("Idempotency-Key", KEY)
        }),
        change(Method::PUT, "/api/v1/nodes/{ref}", put(nodes::replace), || {
            Told::answers::<NodeDetail>(
                "put_node",
                "nodes",
                "Make the node of this name have these ports; repeating it changes nothing",
            )
            .also::<NodeDetail>(201, "There was no node of this name; there is now.")
            .reads::<NodePut>()
            .conditional()
            .header("If-None-Match", "`*`: only if there is no such node yet.")
        }),
        change(Method::PATCH, "/api/v1/nodes/{ref}", patch(nodes::patch), || {
            Told::answers::<NodeDetail>(
                "edit_node",
                "nodes",
                "Rename a node, change its ports, reservations and quirks, label it, approve it",
            )
            .reads::<NodePatch>()
            .conditional()
        }),
        change(Method::DELETE, "/api/v1/nodes/{ref}", delete(nodes::remove), || {
            Told::answers::<NodeDetail>("remove_node", "nodes", "Forget a node and its timeline")
                .conditional()
        }),
        change(Method::POST, "/api/v1/nodes/{ref}/approve", post(nodes::approve), || {
            Told::answers::<NodeDetail>(
                "approve_node",
                "nodes",
                "Let a node boot and enroll that nobody had registered",
            )
            .conditional()
        }),
        change(Method::POST, "/api/v1/nodes/{ref}/order", post(nodes::order), || {
            Told::answers::<NodeDetail>(
                "order_node",
                "nodes",
                "Give the node's agent an order; it obeys at its next heartbeat",
            )
            .reads::<OrderRequest>()
            .conditional()
        }),
    ]
}

fn tasks() -> Vec<Endpoint> {
    vec![
        read("/api/v1/nodes/{ref}/task", get(tasks::show), || {
            Told::answers::<TaskDetail>(
                "show_task",
                "tasks",
                "What was wanted last for a node's disks, and the course it took",
            )
            .refuses(&[404])
        }),
        change(Method::POST, "/api/v1/nodes/{ref}/deploy", post(tasks::deploy), || {
            Told::answers::<NodeDetail>(
                "deploy_node",
                "tasks",
                "Install a disk image at the node's next netboot, once",
            )
            .reads::<DeployRequest>()
            .conditional()
        }),
        change(Method::POST, "/api/v1/nodes/{ref}/clean", post(tasks::clean), || {
            Told::answers::<NodeDetail>(
                "clean_node",
                "tasks",
                "Empty disks at the node's next netboot, and read back that they are",
            )
            .reads::<CleanRequest>()
            .conditional()
        }),
        change(Method::POST, "/api/v1/nodes/{ref}/rescue", post(tasks::rescue), || {
            Told::answers::<NodeDetail>(
                "rescue_node",
                "tasks",
                "Let the node's next netboot be a ramdisk that keys can log in to",
            )
            .reads::<RescueRequest>()
            .conditional()
        }),
        change(Method::POST, "/api/v1/nodes/{ref}/unrescue", post(tasks::unrescue), || {
            Told::answers::<NodeDetail>(
                "unrescue_node",
                "tasks",
                "Out of the rescue ramdisk, back to what the node was",
            )
            .conditional()
        }),
        change(Method::POST, "/api/v1/nodes/{ref}/release", post(tasks::release), || {
            Told::answers::<NodeDetail>(
                "release_node",
                "tasks",
                "The installed system is needed no more: the node is available",
            )
            .conditional()
        }),
        change(Method::POST, "/api/v1/nodes/{ref}/abort", post(tasks::abort), || {
            Told::answers::<NodeDetail>(
                "abort_node",
                "tasks",
                "End the open task; what it wrote is not undone",
            )
            .conditional()
        }),
    ]
}

fn lists() -> Vec<Endpoint> {
    vec![
        change(Method::POST, "/api/v1/import", post(roster::import), || {
            Told::answers::<ImportReport>(
                "import_nodes",
                "nodes",
                "Register or update every node of a list, or say what that would do; all of it, or nothing",
            )
            .reads::<ImportRequest>()
            .refuses(&[409])
        }),
        read("/api/v1/export", get(roster::export), || {
            Told::answers::<ExportedList>(
                "export_nodes",
                "nodes",
                "All nodes as a list in some program's format",
            )
            .query_of::<Format>("format", "csv if it is not said.")
        }),
    ]
}

fn addresses() -> Vec<Endpoint> {
    vec![
        read("/api/v1/leases", get(leases::list), || {
            Told::page_of::<LeaseEntry>("list_leases", "addresses", "Bindings and offers, by address")
                .listed()
                .query_of::<LeaseState>("state", "Only leases in this state.")
                .query_of::<MacAddr>("mac", "Only what this MAC address holds.")
        }),
        read("/api/v1/pool", get(leases::pool), || {
            Told::answers::<PoolStatus>("show_pool", "addresses", "How full the pool is")
        }),
        read("/api/v1/reservations", get(leases::reservations), || {
            Told::page_of::<ReservationEntry>(
                "list_reservations",
                "addresses",
                "Addresses kept for one port each",
            )
            .listed()
            .query_of::<MacAddr>("mac", "Only what is kept for this MAC address.")
        }),
        read("/api/v1/reservations/{address}", get(leases::reservation), || {
            Told::answers::<ReservationEntry>("show_reservation", "addresses", "For whom an address is kept")
                .refuses(&[404])
        }),
        change(Method::PUT, "/api/v1/reservations/{address}", put(leases::reserve), || {
            Told::answers::<ReservationEntry>(
                "put_reservation",
                "addresses",
                "Keep an address for a port; repeating it changes nothing",
            )
            .reads::<ReservationPut>()
            .refuses(&[404, 409])
        }),
        change(Method::DELETE, "/api/v1/reservations/{address}", delete(leases::free), || {
            Told::answers::<ReservationEntry>(
                "free_reservation",
                "addresses",
                "Keep the address for nobody any more",
            )
            .refuses(&[404, 409])
        }),
    ]
}

fn images_and_events() -> Vec<Endpoint> {
    vec![
        read("/api/v1/images", get(images::list), || {
            Told::page_of::<ImageEntry>("list_images", "images", "Deploy profiles, by name")
                .listed()
                .flag("served", "Only images that are, or are not, whole.")
        }),
        read("/api/v1/images/{profile}", get(images::show), || {
            Told::answers::<ImageEntry>("show_image", "images", "One deploy profile").refuses(&[404])
        }),
        read("/api/v1/disk-images", get(images::disks), || {
            Told::page_of::<DiskImageEntry>(
                "list_disk_images",
                "images",
                "What installs write to disks, by name",
            )
            .listed()
        }),
        read("/api/v1/blobs", get(images::blobs), || {
            Told::page_of::<BlobEntry>("list_blobs", "images", "What images are made of, by digest").listed()
        }),
        read("/api/v1/blobs/{digest}", get(images::blob), || {
            Told::answers::<BlobEntry>("show_blob", "images", "One blob").refuses(&[404])
        }),
        read("/api/v1/bridge/events", get(events::of_bridge), || {
            Told::page_of::<BridgeEvent>(
                "list_bridge_events",
                "events",
                "What happened to the bridge itself: outages, other servers; oldest first",
            )
            .listed()
        }),
        read("/api/v1/events", get(events::stream), || {
            Told::new("follow_events", "events", "What happens, as it happens")
                .text(
                    200,
                    "text/event-stream",
                    "`timeline` events (EventMessage), `bridge` (BridgeEvent) unless a node or a stage is asked for, `lagged` (LaggedMessage) to who reads too slowly, `gap` \
                     (GapMessage) to who resumes from further back than is kept; a comment every 15 s.",
                )
                .query("node", "Only events of this node: name, MAC address, id or UUID.", text())
                .query_of::<Stage>("stage", "Only events that bring a boot to this stage.")
                .header("Last-Event-ID", "Go on behind this event.")
                .refuses(&[404])
        }),
    ]
}

fn boot_profiles() -> Vec<Endpoint> {
    vec![
        read("/api/v1/profiles", get(profiles::list), || {
            Told::page_of::<ProfileEntry>("list_profiles", "profiles", "Boot profiles, by name")
                .listed()
                .flag("served", "Only profiles that are, or are not, whole.")
        }),
        read("/api/v1/profiles/{profile}", get(profiles::show), || {
            Told::answers::<ProfileEntry>("show_profile", "profiles", "One boot profile").refuses(&[404])
        }),
        change(Method::DELETE, "/api/v1/profiles/{profile}", delete(profiles::remove), || {
            Told::answers::<ProfileEntry>(
                "remove_profile",
                "profiles",
                "Take a boot profile out of the library that no rule names",
            )
            .refuses(&[404, 409])
        }),
        read("/api/v1/assignments", get(profiles::assignments), || {
            Told::page_of::<AssignmentEntry>(
                "list_assignments",
                "profiles",
                "Rules that say who boots which profile, in the order in which they are asked",
            )
            .listed()
            .query("profile", "Only rules that assign this profile.", text())
        }),
        change(Method::POST, "/api/v1/assignments", post(profiles::assign), || {
            Told::new(
                "assign_profile",
                "profiles",
                "Have machines boot a profile; says at once which of them cannot",
            )
            .also::<Assigned>(201, "Assigned.")
            .reads::<AssignRequest>()
            .refuses(&[404, 409])
        }),
        change(Method::DELETE, "/api/v1/assignments/{rule}", delete(profiles::unassign), || {
            Told::answers::<AssignmentEntry>(
                "unassign_profile",
                "profiles",
                "Take a rule away, and with it what is known of its one-shot",
            )
            .refuses(&[404])
        }),
    ]
}

fn appliance() -> Vec<Endpoint> {
    vec![
        read("/api/v1/status", get(monitoring::status), || {
            Told::answers::<Status>("show_status", "appliance", "How the appliance is")
        }),
        read("/api/v1/openapi.json", get(monitoring::openapi), || {
            Told::new("show_openapi", "appliance", "This document").text(
                200,
                "application/json",
                "OpenAPI 3.1.",
            )
        }),
        read("/healthz", get(monitoring::healthz), || {
            Told::answers::<Health>("show_health", "appliance", "Whether this program answers").open()
        }),
        read("/readyz", get(monitoring::readyz), || {
            Told::answers::<Health>(
                "show_readiness",
                "appliance",
                "Whether machines can be booted, and if not, why",
            )
            .also::<Health>(503, "Degraded.")
            .open()
        }),
        read("/metrics", get(monitoring::metrics_text), || {
            Told::new("show_metrics", "appliance", "Counters and histograms, for Prometheus").text(
                200,
                "text/plain; version=0.0.4; charset=utf-8",
                "Text exposition format 0.0.4.",
            )
        }),
    ]
}

#[cfg(test)]
mod tests;
