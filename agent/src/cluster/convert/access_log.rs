//! What a MeshPolicy says of the access log.

use serde_json::Value;

use super::FieldPath;
use super::reader::Reader;
use super::traffic::values::{number, share};
use crate::state::traffic::Share;
use crate::state::{AccessLog, AccessLogMode};

/// From which status on an answer is an error where nothing is said.
const FIRST_ERROR: u16 = 400;

/// Reads `spec.accessLog`. `None` where it is not understood.
pub(super) fn read(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<AccessLog> {
    let before = reader.problems.len();
    let mut mode = "ALL";
    let mut min_status = None;
    let mut part = None;
    for (key, value, path) in reader.fields(value, path, &["mode", "minStatus", "percent"]) {
        match key {
            "mode" => match value.as_str() {
                Some(given @ ("ALL" | "ERRORS" | "NONE")) => mode = given,
                _ => reader.report(&path, format!("{value} is not ALL, ERRORS or NONE")),
            },
            "minStatus" => min_status = number(reader, value, &path, 400..=599),
            _ => part = share(reader, value, &path),
        }
    }
    if min_status.is_some() && mode != "ERRORS" {
        reader.report(&path.key("minStatus"), "has a meaning with ERRORS only");
    }
    if part.is_some() && mode == "NONE" {
        reader.report(&path.key("percent"), "has no meaning with NONE");
    }
    let mode = match mode {
        "ERRORS" => AccessLogMode::Errors {
            min_status: min_status.map_or(Some(FIRST_ERROR), |it| u16::try_from(it).ok())?,
        },
        "NONE" => AccessLogMode::None,
        _ => AccessLogMode::All,
    };
    let log = AccessLog {
        mode,
        share: part.unwrap_or(Share::ALL),
    };
    (reader.problems.len() == before).then_some(log)
}
