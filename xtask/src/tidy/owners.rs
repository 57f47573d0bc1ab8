//! One module owns each outside system, so that a change of a library stays there.

use anyhow::Result;

use super::source::{self, uses_crate};
use super::{Finding, conclude};

/// A library and the folders or files below `agent/src` that may name it.
const OWNERS: &[(&str, &[&str])] = &[
    ("aya", &["redirect/"]),
    ("aya_log", &["redirect/"]),
    ("clap", &["app/", "cli/", "main.rs"]),
    ("clap_complete", &["cli/"]),
    ("comfy_table", &["cli/"]),
    ("fairlead_common", &["redirect/"]),
    ("h2", &["proxy/"]),
    ("hyper", &["proxy/", "admin/"]),
    ("hyper_rustls", &["proxy/"]),
    (
        "hyper_util",
        &["proxy/", "admin/", "identity/", "ca/", "cli/"],
    ),
    ("indicatif", &["cli/"]),
    ("jsonwebtoken", &["policy/"]),
    ("k8s_openapi", &["cluster/"]),
    ("kube", &["cluster/"]),
    ("notify", &["cluster/", "cni/"]),
    ("prometheus_client", &["flow/", "admin/"]),
    ("rcgen", &["identity/", "ca/"]),
    ("rustls", &["identity/", "proxy/", "ca/"]),
    ("tokio_rustls", &["identity/", "proxy/", "ca/"]),
    ("tonic", &["admin/", "identity/", "ca/", "proxy/"]),
    ("x509_parser", &["identity/", "ca/"]),
];

/// The check.
pub(crate) fn check() -> Result<()> {
    let mut findings = Vec::new();
    for file in source::files("agent/src", ".rs")? {
        let Some(inner) = file.path.strip_prefix("agent/src/") else {
            continue;
        };
        if file.is_test() {
            continue;
        }
        for (line, code) in file.code() {
            let foreign = OWNERS.iter().filter(|(name, owners)| {
                uses_crate(code, name) && !owners.iter().any(|owner| inner.starts_with(owner))
            });
            findings.extend(foreign.map(|(name, owners)| Finding {
                file: file.path.clone(),
                line,
                message: format!(
                    "{name} belongs to {} (xtask/src/tidy/owners.rs)",
                    owners.join(", ")
                ),
            }));
        }
    }
    conclude("owners of outside systems", &findings)
}
