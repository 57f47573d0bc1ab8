//! What a test does to the database: by etcd's own JSON gateway.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::place::Place;
use crate::process;

/// Where etcd listens, on the loopback of the control plane's namespace.
pub(super) const URL: &str = "http://127.0.0.1:2379";

/// The first key, as etcd's gateway takes bytes: `\0` stands for the beginning as a
/// start, and for "no end" as an end.
const FIRST: &str = "AA==";

const LIMIT: Duration = Duration::from_secs(30);

/// Everything in the database, by key; keys and values in base64.
#[derive(Clone, Debug)]
pub(super) struct Contents(BTreeMap<String, Entry>);

#[derive(Clone, Debug)]
struct Entry {
    value: String,
    /// When the key was last written.
    revision: String,
}

/// It is up and has a leader.
pub(super) fn answers(place: &Place) -> Result<()> {
    call(place, "maintenance/status", &json!({})).map(drop)
}

/// Forgets every revision before the current one.
pub(super) fn compact(place: &Place) -> Result<()> {
    let status = call(place, "maintenance/status", &json!({}))?;
    let revision = &status["header"]["revision"];
    let request = json!({"revision": revision, "physical": true});
    call(place, "kv/compaction", &request).map(drop)
}

/// Reads it all.
pub(super) fn contents(place: &Place) -> Result<Contents> {
    let answer = call(
        place,
        "kv/range",
        &json!({"key": FIRST, "range_end": FIRST}),
    )?;
    let rows = answer["kvs"].as_array().context("etcd lists its keys")?;
    let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    let entries = rows.iter().map(|row| {
        let entry = Entry {
            value: text(row, "value"),
            revision: text(row, "mod_revision"),
        };
        (text(row, "key"), entry)
    });
    Ok(Contents(entries.collect()))
}

/// Writes back what was changed or removed, and removes what was added.
pub(super) fn restore(place: &Place, wanted: &Contents) -> Result<()> {
    let now = contents(place)?;
    let added = now.0.keys().filter(|key| !wanted.0.contains_key(*key));
    let mut operations: Vec<Value> = added
        .map(|key| json!({"requestDeleteRange": {"key": key}}))
        .collect();
    let changed = wanted.0.iter().filter(|(key, entry)| {
        now.0.get(*key).map(|entry| &entry.revision) != Some(&entry.revision)
    });
    operations.extend(
        changed.map(|(key, entry)| json!({"requestPut": {"key": key, "value": entry.value}})),
    );
    // etcd takes at most 128 operations in one transaction.
    for part in operations.chunks(100) {
        drop(call(place, "kv/txn", &json!({ "success": part }))?);
    }
    Ok(())
}

fn call(place: &Place, method: &str, body: &Value) -> Result<Value> {
    let mut file = tempfile::NamedTempFile::new_in(&place.logs)?;
    file.write_all(body.to_string().as_bytes())?;
    let mut command = place.command("curl");
    let output = process::run(
        command
            .args([
                "-sS",
                "--fail-with-body",
                "--max-time",
                "20",
                "--data-binary",
            ])
            .arg(format!("@{}", file.path().display()))
            .arg(format!("{URL}/v3/{method}")),
        LIMIT,
    )?
    .ok()
    .with_context(|| format!("etcd's {method}"))?;
    Ok(serde_json::from_str(&output.stdout)?)
}
