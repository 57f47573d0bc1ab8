//! The edges between the modules of the agent. One that this table does not have
//! is an error; adding one is a change of the design, and its own commit.

use anyhow::{Context, Result};

use super::source::{self, Source, crate_modules};
use super::{Finding, conclude};

/// A module and those that it may import, in layer order.
const LAYERS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("state", &["model"]),
    ("policy", &["model", "state"]),
    ("flow", &["model", "policy"]),
    ("identity", &["model"]),
    ("proxy", &["model", "policy", "flow", "identity", "state"]),
    ("redirect", &["model", "policy", "flow", "state"]),
    ("cluster", &["model", "state"]),
    ("ca", &["model", "state", "identity", "cluster"]),
    ("cni", &[]),
    ("admin", &["model", "state", "policy", "flow"]),
    (
        "app",
        &[
            "model", "state", "policy", "flow", "identity", "proxy", "redirect", "cluster", "ca",
            "cni", "admin",
        ],
    ),
    ("cli", &["model", "flow", "admin", "app"]),
];

/// The check.
pub(crate) fn check() -> Result<()> {
    let mut findings = Vec::new();
    for file in source::files("agent/src", ".rs")? {
        if !file.is_test() {
            findings.extend(edges_of(&file)?);
        }
    }
    conclude("module edges", &findings)
}

fn edges_of(file: &Source) -> Result<Vec<Finding>> {
    let Some(module) = module_of(&file.path) else {
        return Ok(Vec::new());
    };
    let (_, allowed) = LAYERS
        .iter()
        .find(|(name, _)| *name == module)
        .with_context(|| format!("{}: {module} is in no layer", file.path))?;
    let mut findings = Vec::new();
    for (line, code) in file.code() {
        let modules = crate_modules(code).into_iter();
        let known = modules.filter(|&to| LAYERS.iter().any(|(name, _)| *name == to));
        findings.extend(
            known
                .filter(|&to| to != module && !allowed.contains(&to))
                .map(|to| Finding {
                    file: file.path.clone(),
                    line,
                    message: format!("{module} may not import {to} (xtask/src/tidy/layers.rs)"),
                }),
        );
    }
    Ok(findings)
}

/// The first folder or file below `agent/src`; none for `main.rs` and `lib.rs`.
fn module_of(path: &str) -> Option<&str> {
    let module = path.strip_prefix("agent/src/")?.split('/').next()?;
    let module = module.strip_suffix(".rs").unwrap_or(module);
    (module != "main" && module != "lib").then_some(module)
}

#[cfg(test)]
mod tests {
    use super::{Source, edges_of};

    #[track_caller]
    fn check(path: &str, text: &str, expected: &[usize]) {
        let source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let lines: Vec<_> = edges_of(&source).unwrap().iter().map(|f| f.line).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn an_edge_upwards_is_found_with_its_line() {
        check(
            "agent/src/model/name.rs",
            "\nuse crate::policy::Table;",
            &[2],
        );
        check(
            "agent/src/policy/mod.rs",
            "use crate::model::NodeName;",
            &[],
        );
        check("agent/src/model/name.rs", "//! See [`crate::policy`].", &[]);
        check("agent/src/main.rs", "use crate::policy::Table;", &[]);
    }

    #[test]
    fn tests_may_import_more() {
        let text = "#[cfg(test)]\nmod tests { use crate::proxy::Proxy; }";
        check("agent/src/model/name.rs", text, &[]);
    }

    #[test]
    fn a_new_module_needs_a_layer() {
        let source = Source {
            path: "agent/src/novel/mod.rs".to_owned(),
            text: String::new(),
        };
        assert!(edges_of(&source).is_err());
    }
}
