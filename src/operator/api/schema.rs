//! How the values that are text in JSON are written, for the OpenAPI document.

use std::borrow::Cow;

use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{KnownFormat, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::clock::Timestamp;
use crate::explain::Machine;
use crate::net::MacAddr;
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
