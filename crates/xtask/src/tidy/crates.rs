//! Which crate may use which. The tables are the design: a new arrow is argued for in ARCHITECTURE.md
//! first. Dependencies of tests (dev-dependencies) are free.

use crate::json::Json;

/// Our crates, each with those of ours that it may use.
const OURS: [(&str, &[&str]); 14] = [
    ("cli", &["server", "worker", "store", "dataset", "sandbox", "weights", "domain"]),
    ("server", &["store", "dataset", "graders", "grammar", "sandbox", "weights", "domain"]),
    ("worker", &["domain"]),
    ("engine", &["domain", "dataset", "grammar", "model", "kernels", "weights"]),
    ("store", &["domain"]),
    ("model", &["kernels", "weights"]),
    ("dataset", &[]),
    ("graders", &[]),
    ("grammar", &[]),
    ("sandbox", &[]),
    ("weights", &[]),
    ("kernels", &[]),
    ("domain", &[]),
    ("xtask", &[]),
];

/// Libraries that only some crates may use: a second place that speaks SQL or tensors is a second truth.
const RESTRICTED: [(&str, &[&str]); 10] = [
    ("sqlx", &["store"]),
    ("object_store", &["store"]),
    ("tch", &["kernels", "model", "engine"]),
    ("torch-sys", &["kernels", "model", "engine"]),
    ("axum", &["server"]),
    ("utoipa", &["server"]),
    ("utoipa-axum", &["server"]),
    ("tokio", &["cli", "server", "worker", "store"]),
    ("reqwest", &["cli", "server", "store", "worker"]),
    ("anyhow", &["cli", "engine"]),
];

pub fn problems(metadata: &Json) -> Vec<String> {
    let packages = metadata.get("packages").map(Json::items).unwrap_or_default();
    let mut problems = Vec::new();
    for package in packages {
        let name = text(package, "name");
        let Some((_, allowed)) = OURS.iter().find(|(known, _)| *known == name) else {
            problems
                .push(format!("crates/{name}: not in the crate table (xtask/src/tidy/crates.rs)"));
            continue;
        };
        let dependencies = package.get("dependencies").map(Json::items).unwrap_or_default();
        let shipped =
            dependencies.iter().filter(|d| d.get("kind") != Some(&Json::Text("dev".into())));
        for dependency in shipped.map(|dependency| text(dependency, "name")) {
            let is_ours = OURS.iter().any(|(known, _)| *known == dependency);
            if is_ours && !allowed.contains(&dependency) {
                problems.push(format!("crates/{name} must not use crates/{dependency}"));
            }
            let restricted = RESTRICTED.iter().find(|(library, _)| *library == dependency);
            if let Some((_, users)) = restricted.filter(|(_, users)| !users.contains(&name)) {
                problems.push(format!(
                    "crates/{name} must not use {dependency}: only {}",
                    users.join(", ")
                ));
            }
            if name == "xtask" {
                problems.push(format!("crates/xtask depends on std alone, not on {dependency}"));
            }
        }
    }
    problems
}

fn text<'a>(value: &'a Json, key: &str) -> &'a str {
    value.get(key).and_then(Json::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, dependency: &str, kind: &str) -> usize {
        let metadata = format!(
            r#"{{"packages":[{{"name":"{name}","dependencies":[{{"name":"{dependency}","kind":{kind}}}]}}]}}"#
        );
        problems(&Json::parse(&metadata).unwrap()).len()
    }

    #[test]
    fn an_arrow_that_points_up_is_found() {
        assert_eq!(check("store", "server", "null"), 1);
        assert_eq!(check("worker", "store", "null"), 1);
        assert_eq!(check("server", "store", "null"), 0);
    }

    #[test]
    fn a_library_in_the_wrong_crate_is_found_but_not_in_tests() {
        assert_eq!(check("server", "sqlx", "null"), 1);
        assert_eq!(check("cli", "tch", "null"), 1);
        assert_eq!(check("worker", "axum", "null"), 1);
        assert_eq!(check("worker", "axum", "\"dev\""), 0);
        assert_eq!(check("xtask", "serde", "null"), 1);
    }

    #[test]
    fn an_unknown_crate_is_found() {
        assert_eq!(check("helpers", "serde", "null"), 1);
    }
}
