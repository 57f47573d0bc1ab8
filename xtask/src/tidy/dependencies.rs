//! Where the dependencies come from and what their licences are.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Finding, conclude};
use crate::workspace;

/// Licences that go with ours; one of the alternatives of an expression is enough.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "MPL-2.0+",
    "NCSA",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
/// The one place that dependencies come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The check. Needs no network: cargo has the manifests from building.
pub(crate) fn check() -> Result<()> {
    let output = workspace::cargo()
        .args(["metadata", "--format-version", "1", "--locked"])
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "cargo metadata --locked: {errors}");
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata has packages")?;
    let findings: Vec<_> = packages.iter().filter_map(problem).collect();
    conclude("licences and sources of dependencies", &findings)
}

fn problem(package: &Value) -> Option<Finding> {
    let text = |field: &str| package[field].as_str().unwrap_or_default();
    let (source, licence) = (text("source"), text("license"));
    let message = if !source.is_empty() && source != REGISTRY {
        format!("comes from {source}")
    } else if !acceptable(licence) {
        format!("licence \"{licence}\" is not on the list (xtask/src/tidy/dependencies.rs)")
    } else {
        return None;
    };
    Some(Finding {
        file: format!("{} {}", text("name"), text("version")),
        line: 0,
        message,
    })
}

/// An expression of licences: every part joined by `AND` needs an alternative on the list.
fn acceptable(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], "").replace('/', " OR ");
    !plain.is_empty()
        && plain.split(" AND ").all(|part| {
            part.split(" OR ")
                .any(|licence| LICENCES.contains(&licence.trim()))
        })
}

#[cfg(test)]
mod tests {
    use super::acceptable;

    #[test]
    fn one_alternative_is_enough_but_every_part_needs_one() {
        assert!(acceptable("MIT OR GPL-3.0"));
        assert!(acceptable("MIT/Apache-2.0"));
        assert!(acceptable("ISC AND (Apache-2.0 OR ISC)"));
        assert!(!acceptable("MIT AND GPL-3.0"));
        assert!(!acceptable(""));
    }
}
