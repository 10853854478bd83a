//! The description of the API: complete, without loose ends, and shown by a page that needs no other host.

mod common;

use std::collections::BTreeSet;

use common::TestServer;
use reqwest::Method;
use serde_json::Value;

/// (path, method, operation) of all calls.
fn operations(openapi: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = openapi["paths"].as_object().unwrap();
    let calls = paths.iter().flat_map(|(path, item)| {
        let item = item.as_object().unwrap();
        item.iter().map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
    });
    calls.collect()
}

/// Calls `see` with every JSON object below `value`, and where it stands.
fn walk<'v>(value: &'v Value, place: &str, see: &mut impl FnMut(&'v Value, &str)) {
    match value {
        Value::Object(fields) => {
            see(value, place);
            for (key, inner) in fields {
                walk(inner, &format!("{place}/{key}"), see);
            }
        }
        Value::Array(items) => {
            for (i, inner) in items.iter().enumerate() {
                walk(inner, &format!("{place}/{i}"), see);
            }
        }
        _ => {}
    }
}

#[test]
fn every_call_has_a_name_a_group_and_a_summary_of_its_own() {
    let openapi = server::openapi();
    let tags: BTreeSet<&str> = openapi["tags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tag| tag["name"].as_str().unwrap())
        .collect();
    let mut names = BTreeSet::new();
    for (path, method, operation) in operations(&openapi) {
        let name = operation["operationId"].as_str().unwrap_or_default();
        assert!(
            !name.is_empty() && names.insert(name),
            "{method} {path}: '{name}' is no unique name"
        );
        let summary = operation["summary"].as_str().unwrap_or_default();
        assert!((5..160).contains(&summary.len()), "{method} {path}: '{summary}' is no summary");
        let tag = operation["tags"][0].as_str().unwrap_or_default();
        assert!(tags.contains(tag), "{method} {path}: '{tag}' is no tag");
    }
}

#[test]
fn every_call_tells_its_answers_and_its_parameters() {
    let openapi = server::openapi();
    for (path, method, operation) in operations(&openapi) {
        let place = format!("{method} {path}");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|status| status.starts_with('2')), "{place}: no success");
        for status in responses.keys() {
            assert!(status.parse::<u16>().is_ok(), "{place}: '{status}' is no status");
        }
        if path.starts_with("/v1") {
            for status in ["401", "403", "429", "500", "503"] {
                assert!(responses.contains_key(status), "{place}: {status} is missing");
            }
        }
        if operation.get("requestBody").is_some() {
            for status in ["400", "408", "413"] {
                assert!(responses.contains_key(status), "{place}: {status} is missing");
            }
        }
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let described = |kind: &str| -> Vec<&str> {
            let of_kind = parameters.iter().filter(|parameter| parameter["in"] == kind);
            of_kind.map(|parameter| parameter["name"].as_str().unwrap()).collect()
        };
        let in_path: Vec<&str> =
            path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        assert_eq!(described("path"), in_path, "{place}");
        for parameter in &parameters {
            assert!(parameter["schema"]["type"].is_string(), "{place}: {parameter} has no type");
        }
    }
}

#[test]
fn every_reference_leads_somewhere_and_everything_is_used() {
    let openapi = server::openapi();
    let mut used = BTreeSet::new();
    walk(&openapi, "", &mut |object, place| {
        if let Some(reference) = object.get("$ref") {
            let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
            assert!(openapi.pointer(pointer).is_some(), "{place}: {pointer} is nothing");
            used.insert(pointer.to_owned());
        }
    });
    for name in openapi["components"]["schemas"].as_object().unwrap().keys() {
        assert!(used.contains(&format!("/components/schemas/{name}")), "{name} is used nowhere");
    }
}

#[test]
fn no_object_is_left_without_a_shape() {
    let openapi = server::openapi();
    walk(&openapi, "", &mut |object, place| {
        let kind = &object["type"];
        let is_object =
            kind == "object" || kind.as_array().is_some_and(|all| all.contains(&"object".into()));
        let shaped = ["properties", "additionalProperties", "oneOf", "allOf"];
        let has_shape = shaped.iter().any(|key| object.get(key).is_some());
        assert!(!is_object || has_shape, "{place} says nothing about its fields: {object}");
    });
}

#[tokio::test]
async fn what_is_described_is_what_the_router_answers() {
    let server = TestServer::start().await;
    let (status, served) = server.get("/openapi.json").await;
    assert_eq!((status.as_u16(), &served), (200, &server::openapi()));
    for (path, method, _) in operations(&served) {
        let path = path.replace(['{', '}'], "");
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        // Without a key nothing happens, and nobody has to build a body.
        let url = format!("{}{path}", server.base);
        let response = server.http.request(method.clone(), url).send().await.unwrap();
        let status = response.status().as_u16();
        let expected: &[u16] = if path.starts_with("/v1") { &[401] } else { &[200] };
        assert!(expected.contains(&status), "{method} {path}: {status}");
    }
}

#[tokio::test]
async fn the_page_names_no_other_host_and_may_ask_none() {
    let server = TestServer::start().await;
    let response = server.request(Method::GET, "/docs").send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'") && policy.contains("connect-src 'self'"));
    assert!(!policy.contains("http") && !policy.contains('*'), "{policy}");
    let page = response.text().await.unwrap();
    assert!(page.contains("fetch(\"openapi.json\")"));
    for outside in ["http:", "https:", "src=\"//", "href=\"//", "@import", "url("] {
        assert!(!page.contains(outside), "the page says {outside}");
    }
}
