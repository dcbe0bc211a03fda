//! What the pages' buttons do: each a form, each answered with the page one came from.

use axum::Form;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::html;
use serde::Deserialize;

use crate::node::state::Order;
use crate::operator::problem::{Problem, ProblemKind};
use crate::page::layout::{self, Live, Tab};
use crate::page::visitor::{Visitor, Writer};
use crate::page::{Shared, problem, source, words};

/// One page of the list; more is no selection but a mistake.
const APPROVED_AT_ONCE_MAX: usize = 1000;

type Fields = Vec<(String, String)>;

/// Approves every `node` of the form, and says how many.
pub(super) async fn approve(
    State(parts): State<Shared>,
    writer: Writer,
    Form(fields): Form<Fields>,
) -> Response {
    let back =
        fields.iter().find(|(name, _)| name == "back").map(|(_, back)| back.as_str()).and_then(own_path);
    let chosen: Vec<String> =
        fields.iter().filter(|(name, _)| name == "node").map(|(_, node)| node.clone()).collect();
    if chosen.len() > APPROVED_AT_ONCE_MAX {
        let detail = format!("{} nodes are too many at once: at most {APPROVED_AT_ONCE_MAX}", chosen.len());
        return problem::page(Problem::new(ProblemKind::Invalid, detail).field("node"));
    }
    if chosen.is_empty() {
        let nothing = Problem::new(ProblemKind::Invalid, "no node was selected, so nothing was approved");
        return problem::page(
            nothing.field("node").way_out("tick the nodes to approve, then press the button"),
        );
    }
    let mut approved = 0;
    for node in chosen {
        match source::approve(parts.operator.clone(), writer.principal.clone(), &node).await {
            Ok(_) => approved += 1,
            Err(refused) => {
                let detail = format!("{} ({approved} approved before it)", refused.detail);
                return problem::page(Problem { detail, ..refused });
            }
        }
    }
    let back = back.unwrap_or("/nodes");
    let sign = if back.contains('?') { '&' } else { '?' };
    let done =
        if back.starts_with("/nodes/") { "approved".to_owned() } else { format!("approved:{approved}") };
    Redirect::to(&format!("{back}{sign}done={done}")).into_response()
}

/// A path of ours and nobody else's: `//host` would leave.
fn own_path(path: &str) -> Option<&str> {
    let inert = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    (inert && path.starts_with('/') && !path.starts_with("//")).then_some(path)
}

#[derive(Debug, Deserialize)]
pub(super) struct OrderForm {
    order: Order,
}

pub(super) async fn order(
    State(parts): State<Shared>,
    Path(node): Path<String>,
    writer: Writer,
    Form(form): Form<OrderForm>,
) -> Response {
    match source::order(parts.operator.clone(), writer.principal, &node, form.order).await {
        Ok(node) => Redirect::to(&format!("/nodes/{}?done=ordered", node.summary.id)).into_response(),
        Err(refused) => problem::page(refused),
    }
}

/// Asks once more: a timeline that is gone is gone.
pub(super) async fn confirm_removal(
    State(parts): State<Shared>,
    Path(node): Path<String>,
    visitor: Visitor,
) -> Response {
    let node = match source::node(&parts.operator, &node) {
        Ok(node) => node,
        Err(refused) => return problem::page(refused),
    };
    let name = words::title_of(&node.summary);
    let body = html! {
        section.panel.form {
            h1 { "Remove " (name) "?" }
            p { "Its record, its inventory and its timeline are forgotten, its reserved address is free again. If it netboots after that, it is a stranger." }
            form method="post" action={ "/nodes/" (node.summary.id) "/remove" } {
                (visitor.form_fields())
                div.form-end {
                    button.button.danger type="submit" { "Remove " (name) }
                    a.button href={ "/nodes/" (node.summary.id) } { "Keep it" }
                }
            }
        }
    };
    layout::page(&visitor, Tab::Nodes, &format!("Remove {name}"), Live::Not, body)
}

pub(super) async fn remove(
    State(parts): State<Shared>,
    Path(node): Path<String>,
    writer: Writer,
) -> Response {
    match source::remove(parts.operator.clone(), writer.principal, &node).await {
        Ok(_) => Redirect::to("/nodes?done=removed").into_response(),
        Err(refused) => problem::page(refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_comes_back_to_a_page_of_ours_only() {
        for ours in ["/", "/nodes?condition=waiting", "/nodes/7?boot=2"] {
            assert_eq!(own_path(ours), Some(ours));
        }
        for not in [
            "",
            "nodes",
            "//evil.example/",
            "/\\evil.example",
            "https://evil.example",
            "/a\r\nSet-Cookie: x",
            "/\u{e9}",
        ] {
            assert_eq!(own_path(not), None, "{not}");
        }
    }
}
