//! How the values that are text in JSON are written, for the OpenAPI document.

use std::borrow::Cow;

use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{KnownFormat, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::clock::Timestamp;
use crate::explain::Machine;
use crate::net::MacAddr;
use crate::node::labels::{LABELS_MAX, LabelKey, LabelValue, Labels};
use crate::node::verdict::Cause;
use crate::node::{NodeId, NodeName};

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description))
}

macro_rules! written_as {
    ($name:ident, $schema:expr) => {
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                $schema.into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                stringify!($name).into()
            }
        }
    };
}

written_as!(
    MacAddr,
    text("Ethernet address of one machine; `-` or nothing between the bytes is read as well.").pattern(Some(
        "^([0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{2}(-[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{12})$"
    ))
);
written_as!(
    NodeName,
    text("Host name label (RFC 1123) that reads neither as a MAC address nor as a UUID.")
        .pattern(Some("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))
);
const LABEL_NAME: &str = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?";

fn label_key() -> String {
    format!("^([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{LABEL_NAME}$")
}

fn label_value() -> String {
    format!("^({LABEL_NAME})?$")
}

/// By key; `value` is what stands for each.
fn labels(value: ObjectBuilder) -> ObjectBuilder {
    let key = text("A key as Kubernetes has them.").pattern(Some(label_key()));
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("Labels by key, as Kubernetes writes them."))
        .property_names(Some(Schema::from(key)))
        .additional_properties(Some(Schema::from(value)))
        .max_properties(Some(LABELS_MAX))
}

pub(super) fn label_edit() -> RefOr<Schema> {
    let value = ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
        .pattern(Some(label_value()));
    labels(value).into()
}

written_as!(
    LabelKey,
    text("A key as Kubernetes has them: example.org/rack, or rack.").pattern(Some(label_key()))
);
written_as!(
    LabelValue,
    text("At most 63 letters, digits, `-`, `_` and `.`; or nothing.").pattern(Some(label_value()))
);
written_as!(Labels, labels(ObjectBuilder::new().schema_type(Type::String).pattern(Some(label_value()))));
written_as!(NodeId, text("Our id of the node.").format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid))));
written_as!(
    Timestamp,
    text("RFC 3339, with milliseconds.").format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
);
written_as!(
    Cause,
    text("What stopped it, in one word.").enum_values(Some(Cause::ALL.iter().map(|cause| cause.as_str())))
);
written_as!(
    Machine,
    text("`bios`, `uefi`, `uefi-http`, `uefi-secure`, `ipxe`, `ipxe-uefi`, or a firmware by its own word.")
);
