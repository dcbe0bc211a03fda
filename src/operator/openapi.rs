//! The OpenAPI 3.1 document: made from the route table and the documents' types, so that it cannot name a route that
//! is not there, or leave one out. `docs/openapi.json` is a copy that a test compares.

use std::collections::BTreeMap;

use axum::http::Method;
use serde::Serialize;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, HttpMethod, InfoBuilder, KnownFormat, OpenApi, OpenApiBuilder,
    PathsBuilder, Ref, RefOr, Required, ResponseBuilder, Tag,
};
use utoipa::{PartialSchema, ToSchema};

use super::access::Role;
use super::api::{Page, ProblemDocument};
use super::endpoints::Endpoint;
use super::views::{PAGE_DEFAULT, PAGE_MAX};

type Schemas = Vec<(String, RefOr<Schema>)>;

/// What is told of one endpoint; built beside its route.
pub struct Told {
    id: &'static str,
    tag: &'static str,
    summary: &'static str,
    parameters: Vec<Parameter>,
    body: Option<RefOr<Schema>>,
    answers: BTreeMap<u16, Answer>,
    schemas: Schemas,
    listed: bool,
    open: bool,
}

struct Answer {
    meaning: &'static str,
    media_type: &'static str,
    schema: Option<RefOr<Schema>>,
    etag: bool,
}

impl Told {
    /// An operation that answers 200 with this document.
    pub fn answers<T: ToSchema>(id: &'static str, tag: &'static str, summary: &'static str) -> Told {
        Told::new(id, tag, summary).also::<T>(200, "Done.")
    }

    /// An operation that answers 200 with a page of these.
    pub fn page_of<T: ToSchema>(id: &'static str, tag: &'static str, summary: &'static str) -> Told {
        let mut told = Told::new(id, tag, summary);
        // A generic type names neither what it is made of nor itself: all pages would be one.
        told.known::<T>();
        let name = format!("PageOf{}", T::name());
        let schema = Some(Ref::from_schema_name(&name).into());
        told.schemas.push((name, Page::<T>::schema()));
        let answer = Answer { meaning: "Done.", media_type: "application/json", schema, etag: false };
        told.answers.insert(200, answer);
        told
    }

    pub fn new(id: &'static str, tag: &'static str, summary: &'static str) -> Told {
        let told = Told {
            id,
            tag,
            summary,
            parameters: Vec::new(),
            body: None,
            answers: BTreeMap::new(),
            schemas: Vec::new(),
            listed: false,
            open: false,
        };
        told.refuses(&[400, 401, 403, 408, 413, 429, 503])
    }

    /// One more document it may answer with.
    pub fn also<T: ToSchema>(mut self, status: u16, meaning: &'static str) -> Told {
        let schema = self.known::<T>();
        let answer = Answer { meaning, media_type: "application/json", schema: Some(schema), etag: false };
        self.answers.insert(status, answer);
        self
    }

    /// An answer that is text of another kind.
    pub fn text(mut self, status: u16, media_type: &'static str, meaning: &'static str) -> Told {
        let schema = ObjectBuilder::new().schema_type(Type::String).build().into();
        self.answers.insert(status, Answer { meaning, media_type, schema: Some(schema), etag: false });
        self
    }

    pub fn refuses(mut self, statuses: &[u16]) -> Told {
        for status in statuses {
            let meaning = refusal(*status);
            let schema = Some(self.known::<ProblemDocument>());
            let answer = Answer { meaning, media_type: "application/problem+json", schema, etag: false };
            self.answers.insert(*status, answer);
        }
        self
    }

    /// It reads this document, as JSON.
    pub fn reads<T: ToSchema>(mut self) -> Told {
        self.body = Some(self.known::<T>());
        self.refuses(&[415])
    }

    pub fn query(
        mut self,
        name: &'static str,
        meaning: &'static str,
        schema: impl Into<RefOr<Schema>>,
    ) -> Told {
        self.parameters.push(parameter(name, ParameterIn::Query, Required::False, meaning, schema.into()));
        self
    }

    /// A query parameter that is written as this type is.
    pub fn query_of<T: ToSchema>(mut self, name: &'static str, meaning: &'static str) -> Told {
        let schema = self.known::<T>();
        self.query(name, meaning, schema)
    }

    pub fn flag(self, name: &'static str, meaning: &'static str) -> Told {
        self.query(name, meaning, ObjectBuilder::new().schema_type(Type::Boolean))
    }

    /// Query parameters that may not be left out.
    pub fn required(mut self, names: &[&str]) -> Told {
        for parameter in self.parameters.iter_mut().filter(|it| names.contains(&it.name.as_str())) {
            parameter.required = Required::True;
        }
        self
    }

    pub fn header(mut self, name: &'static str, meaning: &'static str) -> Told {
        let schema = ObjectBuilder::new().schema_type(Type::String).build().into();
        self.parameters.push(parameter(name, ParameterIn::Header, Required::False, meaning, schema));
        self
    }

    /// A list: `limit`, `cursor` and the `Link` to the next page.
    pub fn listed(mut self) -> Told {
        self.listed = true;
        let limit = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1.0))
            .maximum(Some(PAGE_MAX as f64))
            .default(Some(PAGE_DEFAULT.into()));
        self.query("limit", "Items on a page.", limit).query(
            "cursor",
            "Where the page begins: `next` of the page before. A list that grows meanwhile shows nothing twice.",
            ObjectBuilder::new().schema_type(Type::String),
        )
    }

    /// Its 200 carries a tag, and 304 stands for it.
    pub fn tagged(mut self) -> Told {
        self.tag_answers();
        let schema = None;
        let answer = Answer {
            meaning: "As the client has it already.",
            media_type: "application/json",
            schema,
            etag: true,
        };
        self.answers.insert(304, answer);
        self.header("If-None-Match", "Tags of what the client has; if one is right, the answer is 304.")
    }

    /// It changes a node: conditions are honoured, and the answer has the new tag.
    pub fn conditional(mut self) -> Told {
        self.tag_answers();
        self.refuses(&[404, 409, 412]).header(
            "If-Match",
            "The tag of what the client decided on; if its record has changed in between, the answer is 412. \
             Without it the change is made whatever is there.",
        )
    }

    fn tag_answers(&mut self) {
        for (_, answer) in self.answers.iter_mut().filter(|(status, _)| **status < 300) {
            answer.etag = true;
        }
    }

    /// Anybody may ask.
    pub fn open(mut self) -> Told {
        self.open = true;
        for status in [401, 429] {
            self.answers.remove(&status);
        }
        self
    }

    /// What the type is called, and everything that belongs to it.
    fn known<T: ToSchema>(&mut self) -> RefOr<Schema> {
        self.schemas.push((T::name().into_owned(), T::schema()));
        T::schemas(&mut self.schemas);
        Ref::from_schema_name(T::name()).into()
    }
}

fn refusal(status: u16) -> &'static str {
    match status {
        400 => "A value breaks a rule; `field` names it.",
        401 => "Nobody is known to have asked.",
        403 => "The token's role does not allow it, or the host name is not ours.",
        404 => "There is no such thing.",
        408 => "The body did not arrive in time.",
        409 => "It contradicts what is recorded.",
        412 => "It has changed since the client saw it.",
        413 => "The body is too large.",
        415 => "The body is not JSON, or does not say so.",
        422 => "The Idempotency-Key came with another request before.",
        429 => "Too many attempts failed.",
        _ => "The appliance cannot do it now; `detail` says why.",
    }
}

fn parameter(
    name: &str,
    place: ParameterIn,
    required: Required,
    meaning: &str,
    schema: RefOr<Schema>,
) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(meaning))
        .schema(Some(schema))
        .build()
}

/// The parts of a path in braces, which are its parameters.
fn path_parameters(path: &str) -> impl Iterator<Item = Parameter> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| {
        let text = ObjectBuilder::new().schema_type(Type::String);
        let (meaning, schema): (_, RefOr<Schema>) = match name {
            "ref" => ("Name, MAC address, id or SMBIOS UUID of a node.", text.min_length(Some(1)).into()),
            "number" => {
                let number = ObjectBuilder::new()
                    .schema_type(Type::Integer)
                    .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
                    .minimum(Some(0.0))
                    .maximum(Some(f64::from(u32::MAX)));
                ("Number of a boot; 0 is what happened outside any.", number.into())
            }
            "address" => {
                let format = SchemaFormat::KnownFormat(KnownFormat::Ipv4);
                ("An IPv4 address.", text.format(Some(format)).into())
            }
            "mac" => ("MAC address of a port.", crate::net::MacAddr::schema()),
            "token" => ("Id or name of a token.", text.min_length(Some(1)).into()),
            "rule" => {
                let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1.0));
                ("Number of a rule.", number.maximum(Some(f64::from(u32::MAX))).into())
            }
            "profile" => ("Name of a profile.", text.min_length(Some(1)).into()),
            "digest" => ("SHA-256 of the blob.", text.pattern(Some("^[0-9a-f]{64}$")).into()),
            _ => ("", text.min_length(Some(1)).into()),
        };
        parameter(name, ParameterIn::Path, Required::True, meaning, schema)
    })
}

/// The document as it is sent and checked in.
pub fn text() -> String {
    let mut text =
        serde_json::to_string_pretty(&Sorted(document(super::endpoints::all()))).unwrap_or_default();
    text.push('\n');
    text
}

#[derive(Serialize)]
struct Sorted(OpenApi);

fn document(endpoints: Vec<Endpoint>) -> OpenApi {
    let mut paths = PathsBuilder::new();
    let mut components = ComponentsBuilder::new().security_scheme(
        "token",
        SecurityScheme::Http(
            HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .description(Some("A token of `farrier token create`; the Unix socket takes none."))
                .build(),
        ),
    );
    let mut items: BTreeMap<&'static str, PathItem> = BTreeMap::new();
    for Endpoint { method, path, role, told, .. } in endpoints {
        let mut told = told();
        for (name, schema) in std::mem::take(&mut told.schemas) {
            components = components.schema(name, schema);
        }
        let item = PathItem::new(http_method(&method), operation(path, role, told));
        items.entry(path).or_default().merge_operations(item);
    }
    for (path, item) in items {
        paths = paths.path(path, item);
    }
    let info = InfoBuilder::new()
        .title("farrier")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The operator plane of a boot appliance. Refusals are RFC 9457 documents that name the field and the way out.",
        ))
        .license(Some(utoipa::openapi::License::new("MIT OR Apache-2.0")))
        .build();
    let tags = ["nodes", "addresses", "images", "profiles", "events", "access", "appliance"];
    OpenApiBuilder::new()
        .info(info)
        .paths(paths.build())
        .components(Some(components.build()))
        .tags(Some(tags.map(Tag::new)))
        .build()
}

fn operation(path: &str, role: Role, told: Told) -> utoipa::openapi::path::Operation {
    let mut operation = OperationBuilder::new()
        .operation_id(Some(told.id))
        .tag(told.tag)
        .summary(Some(told.summary))
        .parameters(Some(path_parameters(path).chain(told.parameters)));
    if !told.open {
        let scopes: [&str; 0] = [];
        operation = operation
            .description(Some(format!("Takes the role {role}.")))
            .security(SecurityRequirement::new("token", scopes));
    }
    if let Some(schema) = told.body {
        let content = ContentBuilder::new().schema(Some(schema)).build();
        let body =
            RequestBodyBuilder::new().content("application/json", content).required(Some(Required::True));
        operation = operation.request_body(Some(body.build()));
    }
    for (status, answer) in told.answers {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let mut response = ResponseBuilder::new().description(answer.meaning);
        if let Some(schema) = answer.schema {
            let content = ContentBuilder::new().schema(Some(schema)).build();
            response = response.content(answer.media_type, content);
        }
        if answer.etag {
            let etag =
                HeaderBuilder::new().schema(Some(text())).description(Some("Tag of the document.")).build();
            response = response.header("ETag", etag);
        }
        if told.listed && status == 200 {
            let meaning = "Address of the next page (RFC 8288, rel=\"next\"); absent on the last one.";
            let link = HeaderBuilder::new().schema(Some(text())).description(Some(meaning)).build();
            response = response.header("Link", link);
        }
        operation = operation.response(status.to_string(), response.build());
    }
    operation.build()
}

fn http_method(method: &Method) -> HttpMethod {
    match method.as_str() {
        "POST" => HttpMethod::Post,
        "PUT" => HttpMethod::Put,
        "PATCH" => HttpMethod::Patch,
        "DELETE" => HttpMethod::Delete,
        _ => HttpMethod::Get,
    }
}

#[cfg(test)]
mod tests;
