//! Values as traffic policies have them.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::{HeaderName, Method, StatusCode};
use serde_json::Value;

use super::super::FieldPath;
use super::super::reader::Reader;
use crate::state::traffic::Share;

/// The items of a list of at most so many.
pub(super) fn items<'v>(
    reader: &mut Reader,
    value: &'v Value,
    path: &FieldPath,
    most: usize,
) -> Vec<(&'v Value, FieldPath)> {
    let items = reader.items(value, path);
    if items.len() > most {
        reader.report(path, format!("has more than {most} items"));
    }
    items
}

/// A list of at most so many that `parse` understands.
pub(super) fn list<T>(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    most: usize,
    parse: impl Fn(&Value) -> Result<T, String>,
) -> Vec<T> {
    let items = items(reader, value, path, most);
    let parsed = items
        .into_iter()
        .map(|(item, path)| take(reader, &path, parse(item)));
    parsed.flatten().collect()
}

/// What was understood, or a report.
pub(super) fn take<T>(
    reader: &mut Reader,
    path: &FieldPath,
    parsed: Result<T, String>,
) -> Option<T> {
    parsed.map_err(|message| reader.report(path, message)).ok()
}

/// A whole number.
pub(in super::super) fn number(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    range: RangeInclusive<u32>,
) -> Option<u32> {
    let number = value.as_u64().and_then(|it| u32::try_from(it).ok());
    let number = number.filter(|it| range.contains(it));
    let [least, most] = [range.start(), range.end()];
    take(
        reader,
        path,
        number.ok_or_else(|| format!("{value} is no whole number from {least} to {most}")),
    )
}

/// A port, as a number.
pub(super) fn port(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<u16> {
    let port = number(reader, value, path, 1..=65_535);
    port.and_then(|it| u16::try_from(it).ok())
}

pub(super) fn flag(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<bool> {
    let flag = value.as_bool();
    take(
        reader,
        path,
        flag.ok_or_else(|| format!("{value} is neither true nor false")),
    )
}

/// Time that is not zero.
pub(super) fn time(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<Duration> {
    let parsed = duration(value).and_then(|it| {
        if it.is_zero() {
            return Err("must be more than nothing".to_owned());
        }
        Ok(it)
    });
    take(reader, path, parsed)
}

/// Time, or zero for none.
pub(super) fn timeout(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<Duration> {
    take(reader, path, duration(value))
}

/// A duration of the Gateway API (GEP-2257): `1h30m`, `10s`, `500ms`.
fn duration(value: &Value) -> Result<Duration, String> {
    let wrong = || format!("{value} is no duration: such as 1h30m, 10s or 500ms");
    let mut rest = value
        .as_str()
        .filter(|it| !it.is_empty())
        .ok_or_else(wrong)?;
    let mut total = Duration::ZERO;
    for _ in 0..4 {
        let digits = rest
            .find(|it: char| !it.is_ascii_digit())
            .ok_or_else(wrong)?;
        let (number, unit) = rest.split_at(digits);
        if number.len() > 5 {
            return Err(wrong());
        }
        let number: u64 = number.parse().map_err(|_not_a_number| wrong())?;
        // The longer one first.
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
        let found = units
            .iter()
            .find_map(|(name, millis)| Some((unit.strip_prefix(name)?, millis)));
        let (after, millis) = found.ok_or_else(wrong)?;
        total += Duration::from_millis(number * millis);
        rest = after;
        if rest.is_empty() {
            return Ok(total);
        }
    }
    Err(wrong())
}

/// One of a few words.
pub(super) fn word<T: Copy>(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    words: &[(&str, T)],
) -> Option<T> {
    let text = value.as_str();
    let found = words.iter().find(|(word, _)| Some(*word) == text);
    let known = || {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("{value} is none of {}", known.join(", "))
    };
    take(reader, path, found.map(|(_, it)| *it).ok_or_else(known))
}

/// 0 to 100 percent, in millionths of the whole.
pub(in super::super) fn share(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
) -> Option<Share> {
    let percent = value.as_f64().filter(|it| (0.0..=100.0).contains(it));
    let share = percent.map(|percent| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 1,000,000"
        )]
        let millionths = (percent * 10_000.0).round() as u32;
        Share(millionths)
    });
    take(
        reader,
        path,
        share.ok_or_else(|| format!("{value} is no percentage: 0 to 100")),
    )
}

pub(super) fn header(value: &Value) -> Result<HeaderName, String> {
    let text = value.as_str().unwrap_or_default();
    if text.len() > 256 {
        return Err(format!("has {} characters, more than 256", text.len()));
    }
    let name = HeaderName::from_bytes(text.as_bytes());
    name.map_err(|_unhelpful| format!("{value} is no name of a header"))
}

pub(super) fn method(value: &Value) -> Result<Method, String> {
    let text = value.as_str().filter(|it| {
        let letters = it.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
        !it.is_empty() && it.len() <= 32 && letters
    });
    let method = text.and_then(|it| Method::from_bytes(it.as_bytes()).ok());
    method.ok_or_else(|| format!("{value} is no method: such as GET, in capitals"))
}

/// A status that is a failure.
pub(super) fn code(value: &Value) -> Result<StatusCode, String> {
    let code = value.as_u64().filter(|it| (400..=599).contains(it));
    let code = code.and_then(|it| u16::try_from(it).ok());
    let code = code.and_then(|it| StatusCode::from_u16(it).ok());
    code.ok_or_else(|| format!("{value} is no status of a failure: 400 to 599"))
}
