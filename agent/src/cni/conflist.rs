//! Network configurations with the plugin in them, and without: pure.
//!
//! What others wrote stays as it is, unknown fields too; only our own entry comes, changes
//! and goes.

use serde_json::{Map, Value, json};

use super::PLUGIN;

/// What a file holds that a runtime would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shape {
    /// A list of plugins: `*.conflist`.
    List,
    /// One plugin: `*.conf` and `*.json`.
    Single,
}

/// What is wrong with a network configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConfigurationError {
    #[error("is no network configuration: {0}")]
    Malformed(String),
    #[error("has cniVersion {0}, under which plugins can't be chained; it must be 0.3.0 or newer")]
    TooOld(String),
}

/// By the ending of the file's name, as runtimes tell them; `None` for what they skip.
pub(super) fn shape(name: &str) -> Option<Shape> {
    match name.rsplit_once('.')?.1 {
        "conflist" => Some(Shape::List),
        "conf" | "json" => Some(Shape::Single),
        _ => None,
    }
}

/// The configuration list with our entry at its end, or in its place; `None` where it is
/// there as it should be.
pub(super) fn with_plugin(
    text: &[u8],
    entry: &Value,
) -> Result<Option<Vec<u8>>, ConfigurationError> {
    let mut list = parse(text, Shape::List)?;
    let version = check_version(&list);
    let plugins = plugins(&mut list)?;
    version?;
    let before = plugins.clone();
    match plugins.iter().position(is_ours) {
        Some(at) => {
            let mut index = 0;
            // Once, where it is: others may rely on the order.
            plugins.retain(|plugin| {
                index += 1;
                index - 1 == at || !is_ours(plugin)
            });
            if let Some(own) = plugins.get_mut(at) {
                own.clone_from(entry);
            }
        }
        None => plugins.push(entry.clone()),
    }
    let same = *plugins == before;
    Ok((!same).then(|| pretty(&Value::Object(list))))
}

/// The configuration list without our entry; `None` where there is none.
pub(super) fn without_plugin(text: &[u8]) -> Result<Option<Vec<u8>>, ConfigurationError> {
    let mut list = parse(text, Shape::List)?;
    let plugins = plugins(&mut list)?;
    let count = plugins.len();
    plugins.retain(|plugin| !is_ours(plugin));
    let same = plugins.len() == count;
    Ok((!same).then(|| pretty(&Value::Object(list))))
}

/// A list of one plugin's configuration and our entry.
pub(super) fn listed(text: &[u8], entry: &Value) -> Result<Vec<u8>, ConfigurationError> {
    let single = parse(text, Shape::Single)?;
    check_version(&single)?;
    let field = |name: &str| single.get(name).cloned().unwrap_or_default();
    let list = json!({
        "cniVersion": field("cniVersion"),
        "name": field("name"),
        "plugins": [single, entry],
    });
    Ok(pretty(&list))
}

/// It is a configuration that a runtime would take.
pub(super) fn is_valid(text: &[u8], shape: Shape) -> Result<(), ConfigurationError> {
    let mut object = parse(text, shape)?;
    match shape {
        Shape::List => plugins(&mut object).map(drop),
        Shape::Single => Ok(()),
    }
}

fn parse(text: &[u8], shape: Shape) -> Result<Map<String, Value>, ConfigurationError> {
    let malformed = |text: String| ConfigurationError::Malformed(text);
    let object: Map<String, Value> =
        serde_json::from_slice(text).map_err(|error| malformed(error.to_string()))?;
    let needed = match shape {
        Shape::List => "name",
        Shape::Single => "type",
    };
    match object.get(needed).and_then(Value::as_str) {
        Some(name) if !name.is_empty() => Ok(object),
        _ => Err(malformed(format!("it has no {needed}"))),
    }
}

fn plugins(list: &mut Map<String, Value>) -> Result<&mut Vec<Value>, ConfigurationError> {
    let found = list.get_mut("plugins").and_then(Value::as_array_mut);
    found
        .filter(|plugins| !plugins.is_empty())
        .ok_or_else(|| ConfigurationError::Malformed("it has no plugins".to_owned()))
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"].as_str() == Some(PLUGIN)
}

fn check_version(object: &Map<String, Value>) -> Result<(), ConfigurationError> {
    let version = object.get("cniVersion").and_then(Value::as_str);
    let version = version.filter(|text| !text.is_empty()).unwrap_or("0.1.0");
    if version.starts_with("0.1.") || version.starts_with("0.2.") {
        return Err(ConfigurationError::TooOld(version.to_owned()));
    }
    Ok(())
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}
