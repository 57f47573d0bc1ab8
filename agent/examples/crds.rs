//! Prints the definitions of our kinds for Kubernetes as one JSON object: file names
//! and their texts. `cargo xtask codegen` writes them to `deploy/crds/`.

use std::collections::BTreeMap;
use std::io;

use fairlead::cluster::api;

const HEADER: &str = "# Generated from agent/src/cluster/api by `cargo xtask codegen`.\n";

fn main() -> anyhow::Result<()> {
    let files: BTreeMap<String, String> = api::definitions()
        .iter()
        .map(|definition| {
            let name = format!("{}.yaml", definition.spec.names.plural);
            let text = serde_yaml_ng::to_string(definition)?;
            Ok((name, format!("{HEADER}{text}")))
        })
        .collect::<Result<_, serde_yaml_ng::Error>>()?;
    serde_json::to_writer(io::stdout().lock(), &files)?;
    Ok(())
}
