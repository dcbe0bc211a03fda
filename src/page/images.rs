//! `/images`: what machines are given to boot.

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use crate::cli::text;
use crate::operator::api::{BlobEntry, ImageEntry};
use crate::page::fleet::Condition;
use crate::page::layout::{self, Live, Tab};
use crate::page::visitor::Visitor;
use crate::page::{PageParts, Shared, source, task, words};

pub(super) async fn show(State(parts): State<Shared>, visitor: Visitor) -> Response {
    let images = source::images(&parts.operator);
    let wanted = source::status(&parts.operator).image;
    let body = html! {
        div.page-head { h1 { "Images" } }
        div #images.stack data-live {
            @if !wanted.present {
                section.panel {
                    p.empty {
                        "There is no deploy image of profile " b { (wanted.profile) } ", which machines are to get. Make one, then reload: "
                        code { "farrier image build deploy --profile " (wanted.profile) }
                    }
                }
            }
            @for image in &images { (card(&parts, image)) }
            (task::disk_images(&parts))
        }
    };
    layout::page(&visitor, Tab::Images, "Images", Live::Slowly, body)
}

fn card(parts: &PageParts, image: &ImageEntry) -> Markup {
    let title = format!("image-{}", image.profile);
    html! {
        section.panel aria-labelledby=(title) {
            div.panel-head {
                h2 id=(title) { (words::wire(&image.profile)) }
                p {
                    @if image.served { span.badge.is-enrolled { (Condition::Enrolled.glyph()) "whole" } }
                    @else { span.badge.is-failed { (Condition::Failed.glyph()) "not served" } }
                    @if image.in_use { " " span.badge.is-booting { (Condition::Booting.glyph()) "machines get this" } }
                }
            }
            @if let Some(damage) = &image.damage { p { (words::sentence(damage)) } }
            @if image.kernel.is_some() || image.ramdisk.is_some() { div.table-scroll tabindex="0" role="region" aria-label={ "Files of " (image.profile) } {
                table.grid {
                    thead { tr { th scope="col" { "File" } th.number-cell scope="col" { "Size" } th scope="col" { "Made" } th scope="col" { "SHA-256" } } }
                    tbody {
                        @for (part, blob) in [("kernel", &image.kernel), ("ramdisk", &image.ramdisk)] {
                            @if let Some(blob) = blob { (file(parts, part, blob)) }
                        }
                    }
                }
            } }
            @if !image.arguments.is_empty() {
                h3 { "On the kernel's command line" }
                p { code.blob { (image.arguments.join(" ")) } }
            }
            @if !image.built_from.is_empty() {
                h3 { "Made from" }
                dl.counts.made-from {
                    @for (source, version) in &image.built_from {
                        div { dt { (words::wire(source)) } dd { (words::wire(version)) } }
                    }
                }
            }
        }
    }
}

fn file(parts: &PageParts, part: &str, blob: &BlobEntry) -> Markup {
    html! {
        tr {
            th scope="row" { (part) }
            td.number-cell { (text::bytes(blob.bytes)) }
            td { (words::ago(blob.modified_at, parts.now())) }
            td.mono { (blob.digest) }
        }
    }
}
