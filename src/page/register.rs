//! `/nodes/register`: a MAC address, and if wanted a name and an address that is always its own.

use std::net::Ipv4Addr;

use axum::Form;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use crate::net::MacAddr;
use crate::node::NodeName;
use crate::operator::api::{PortRequest, RegisterRequest};
use crate::operator::problem::{Problem, ProblemKind};
use crate::page::layout::{self, Live, Tab};
use crate::page::visitor::{Visitor, Writer};
use crate::page::{Shared, problem, source};

/// As typed: what is wrong with it is said beside the field, and nothing typed is lost.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Typed {
    #[serde(default)]
    mac: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    address: String,
}

/// Which field is wrong, and how.
type Wrong = (&'static str, String);

pub(super) async fn show(
    State(parts): State<Shared>,
    visitor: Visitor,
    Query(typed): Query<Typed>,
) -> Response {
    layout::page(&visitor, Tab::Nodes, "Register a node", Live::Not, form(&visitor, &parts, &typed, None))
}

pub(super) async fn submit(
    State(parts): State<Shared>,
    writer: Writer,
    Form(typed): Form<Typed>,
) -> Response {
    let visitor = &writer.visitor;
    let told = |wrong: Wrong| {
        let body = form(visitor, &parts, &typed, Some(&wrong));
        let page = layout::page(visitor, Tab::Nodes, "Register a node", Live::Not, body);
        (StatusCode::UNPROCESSABLE_ENTITY, page).into_response()
    };
    let request = match read(&typed) {
        Ok(request) => request,
        Err(wrong) => return told(wrong),
    };
    match source::register(parts.operator.clone(), writer.principal.clone(), request).await {
        Ok(node) => Redirect::to(&format!("/nodes/{}?done=registered", node.summary.id)).into_response(),
        Err(refused) => match field_of(&refused) {
            Some(field) => told((field, refused.detail)),
            None => problem::page(refused),
        },
    }
}

/// Which field of the form a refusal is about.
fn field_of(refused: &Problem) -> Option<&'static str> {
    let is_of_the_form = matches!(refused.kind, ProblemKind::Invalid | ProblemKind::Conflict);
    is_of_the_form.then_some(match refused.field.as_deref() {
        Some("name") => "name",
        Some("ports.address") => "address",
        _ => "mac",
    })
}

fn read(typed: &Typed) -> Result<RegisterRequest, Wrong> {
    let mac: MacAddr = typed.mac.trim().parse().map_err(|error| ("mac", format!("{error}")))?;
    let name = match typed.name.trim() {
        "" => None,
        name => Some(name.parse::<NodeName>().map_err(|error| ("name", error.to_string()))?),
    };
    let address = match typed.address.trim() {
        "" => None,
        address => Some(address.parse::<Ipv4Addr>().map_err(|_| {
            ("address", format!("`{}` is not an IPv4 address", crate::cli::text::inert(address)))
        })?),
    };
    Ok(RegisterRequest { name, ports: vec![PortRequest { mac, address }], quirks: None })
}

fn form(visitor: &Visitor, parts: &Shared, typed: &Typed, wrong: Option<&Wrong>) -> Markup {
    let subnet = parts.operator.config.load().network.address;
    let net = format!("{}/{}", subnet.network(), subnet.prefix());
    html! {
        h1 { "Register a node" }
        p.lead { "A registered machine is let in without approval. It takes its name and address the next time it asks." }
        form.panel.form method="post" action="/nodes/register" data-validate novalidate {
            (visitor.form_fields())
            @if let Some((_, detail)) = wrong {
                p.note.is-bad role="alert" { "Not registered: " (detail) "." }
            }
            (field("mac", "MAC address", &typed.mac, "52:54:00:12:34:56", r"\s*([0-9A-Fa-f]{2}([:\-]?[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{4}(\.[0-9A-Fa-f]{4}){2})\s*",
                "Six pairs of hexadecimal digits.", true, wrong))
            (field("name", "Name", &typed.name, "rack1-node07", r"[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?",
                "Optional. 1 to 63 lower-case letters, digits and inner hyphens.", false, wrong))
            (field("address", "Reserved address", &typed.address, &subnet.ip().to_string(), r"((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|2[0-4]\d|1?\d?\d)",
                &format!("Optional. An address of {net} that nobody else is given."), false, wrong))
            div.form-end {
                button.button.primary type="submit" disabled[!visitor.may_change] { "Register" }
                a.button href="/nodes" { "Cancel" }
            }
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn field(
    name: &str,
    label: &str,
    value: &str,
    example: &str,
    pattern: &str,
    hint: &str,
    required: bool,
    wrong: Option<&Wrong>,
) -> Markup {
    let problem = wrong.filter(|(field, _)| *field == name).map(|(_, detail)| detail.as_str());
    html! {
        div.field {
            label for=(name) { (label) }
            input.mono id=(name) name=(name) value=(crate::cli::text::inert(value)) placeholder=(example) pattern=(pattern) required[required]
                maxlength="200" autocomplete="off" autocapitalize="none" spellcheck="false"
                aria-describedby={ (name) "-hint " (name) "-wrong" } aria-invalid=[problem.map(|_| "true")];
            p.hint id={ (name) "-hint" } { (hint) }
            p.wrong id={ (name) "-wrong" } aria-live="polite" { (problem.unwrap_or_default()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(mac: &str, name: &str, address: &str) -> Typed {
        Typed { mac: mac.to_owned(), name: name.to_owned(), address: address.to_owned() }
    }

    #[test]
    fn what_is_typed_is_read_or_the_field_named() {
        let read_ok = read(&typed(" 52:54:00:00:00:01 ", "web1", "192.168.2.9")).unwrap();
        assert_eq!(read_ok.name.unwrap().as_str(), "web1");
        assert_eq!(read_ok.ports[0].address, Some(Ipv4Addr::new(192, 168, 2, 9)));
        assert_eq!(read(&typed("52:54:00:00:00:01", "", "")).unwrap().name, None);
        for (wrong, field) in [
            (typed("", "", ""), "mac"),
            (typed("52:54", "", ""), "mac"),
            (typed("52:54:00:00:00:01", "Web 1", ""), "name"),
            (typed("52:54:00:00:00:01", "", "192.168.2.999"), "address"),
            (typed("52:54:00:00:00:01", "", "<script>"), "address"),
        ] {
            assert_eq!(read(&wrong).unwrap_err().0, field);
        }
    }
}
