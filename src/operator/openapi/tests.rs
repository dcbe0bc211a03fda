//! The document against its copy, against the router, and against itself.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

/// The copy clients are made from; `UPDATE=1` rewrites it, and the difference is reviewed.
const COPY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");

#[test]
fn the_copy_in_docs_is_what_is_served() {
    let text = text();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(std::path::Path::new(COPY).parent().unwrap()).unwrap();
        std::fs::write(COPY, &text).unwrap();
    }
    let copy = std::fs::read_to_string(COPY).unwrap_or_default();
    assert!(copy == text, "docs/openapi.json is not what is served: UPDATE=1 cargo test --lib openapi");
}

#[test]
fn every_reference_leads_somewhere_and_every_answer_has_a_meaning() {
    let document: Value = serde_json::from_str(&text()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} twice");
            assert!(operation["responses"].as_object().unwrap().len() > 1, "{method} {path}");
            let named = path.matches('{').count();
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let in_path = parameters.iter().filter(|parameter| parameter["in"] == "path").count();
            assert_eq!(in_path, named, "{method} {path}");
            assert!(parameters.iter().all(|parameter| parameter["description"] != ""), "{method} {path}");
        }
    }
    let mut references = BTreeSet::new();
    collect(&document, &mut references);
    for reference in references {
        let target = document.pointer(reference.trim_start_matches('#'));
        assert!(target.is_some(), "{reference} leads nowhere");
    }
}

fn collect(value: &Value, references: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            references.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
            object.values().for_each(|value| collect(value, references));
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, references)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn no_two_types_share_a_name() {
    let mut told = std::collections::BTreeMap::new();
    for endpoint in super::super::endpoints::all() {
        for (name, schema) in (endpoint.told)().schemas {
            let schema = serde_json::to_value(schema).unwrap();
            let earlier = told.insert(name.clone(), schema.clone());
            assert!(earlier.is_none_or(|earlier| earlier == schema), "two types are called {name}");
        }
    }
    assert!(told.contains_key("PageOfNodeSummary"));
}

#[test]
fn the_table_and_the_document_have_the_same_routes() {
    let document: Value = serde_json::from_str(&text()).unwrap();
    let told: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(move |method| (path.clone(), method.to_uppercase()))
        })
        .collect();
    let routed: BTreeSet<(String, String)> = super::super::endpoints::all()
        .iter()
        .map(|endpoint| (endpoint.path.to_owned(), endpoint.method.to_string()))
        .collect();
    assert_eq!(told, routed);
}
