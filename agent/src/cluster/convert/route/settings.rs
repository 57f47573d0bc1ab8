//! How long a rule's requests may take, when they are tried again and who keeps an
//! endpoint.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde_json::Value;

use super::super::FieldPath;
use super::super::reader::Reader;
use super::matches::not_a_header;
use super::{fields, list, number};
use crate::state::{RouteRetry, RouteTimeouts, SessionCarrier, SessionPersistence};

pub(super) fn timeouts(reader: &mut Reader, value: &Value, path: &FieldPath) -> RouteTimeouts {
    let mut timeouts = RouteTimeouts::default();
    for (key, value, path) in fields(reader, value, path, &["request", "backendRequest"]) {
        let given = number(reader, value, &path, duration);
        match key {
            "request" => timeouts.request = given,
            _ => timeouts.backend_request = given,
        }
    }
    let whole = timeouts.request.filter(|whole| !whole.is_zero());
    if whole.is_some_and(|whole| timeouts.backend_request.is_some_and(|part| part > whole)) {
        let message = "can't be longer than request, of which it is a part";
        reader.report(&path.key("backendRequest"), message);
    }
    timeouts
}

pub(super) fn retry(reader: &mut Reader, value: &Value, path: &FieldPath) -> RouteRetry {
    let mut retry = RouteRetry::default();
    for (key, value, path) in fields(reader, value, path, &["attempts", "codes", "backoff"]) {
        match key {
            "attempts" => {
                let attempts = value.as_u64().and_then(|number| u32::try_from(number).ok());
                if attempts.is_none() {
                    reader.report(&path, format!("{value} is not a number of attempts"));
                }
                retry.attempts = attempts;
            }
            "backoff" => retry.backoff = number(reader, value, &path, duration),
            _ => {
                for (value, path) in list(reader, Some(value), &path) {
                    let code = value.as_u64().and_then(|code| u16::try_from(code).ok());
                    match code.filter(|code| (400..600).contains(code)) {
                        Some(code) => retry.codes.push(code),
                        None => reader.report(&path, format!("{value} is not 400 to 599")),
                    }
                }
            }
        }
    }
    retry
}

/// Reads it as it is now, and as it was when the name was `sessionName` and the lifetime in
/// `cookieConfig`.
pub(super) fn session(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
) -> Option<SessionPersistence> {
    let known = [
        "type",
        "absoluteTimeout",
        "cookie",
        "cookieConfig",
        "header",
        "sessionName",
    ];
    let mut by_header = false;
    let mut absolute_timeout = None;
    let mut name = None;
    let mut cookie_path = Arc::from("/");
    let mut permanent = false;
    for (key, value, path) in fields(reader, value, path, &known) {
        match key {
            "type" => match value.as_str() {
                Some("Cookie") => by_header = false,
                Some("Header") => by_header = true,
                _ => reader.report(&path, format!("{value} is neither Cookie nor Header")),
            },
            "absoluteTimeout" => absolute_timeout = number(reader, value, &path, duration),
            "sessionName" => name = reader.text(value, &path),
            _ => {
                let known = ["name", "path", "lifetimeType"];
                for (key, value, path) in fields(reader, value, &path, &known) {
                    match (key, value.as_str()) {
                        ("name", Some(text)) => name = Some(text),
                        ("path", Some(text)) if is_cookie_path(text) => cookie_path = text.into(),
                        ("lifetimeType", Some("Session")) => permanent = false,
                        ("lifetimeType", Some("Permanent")) => permanent = true,
                        _ => reader.report(&path, format!("{value} makes no sense here")),
                    }
                }
            }
        }
    }
    if permanent && absolute_timeout.is_none() {
        let message = "is missing: a permanent cookie needs it";
        reader.report(&path.key("absoluteTimeout"), message);
    }
    let header = name.map(|name| HeaderName::from_bytes(name.as_bytes()));
    if let (Some(name), Some(Err(_invalid))) = (name, &header) {
        reader.report(path, not_a_header(name));
    }
    let carrier = match header {
        Some(Ok(name)) if by_header => SessionCarrier::Header { name },
        _ if by_header => {
            reader.report(&path.key("header").key("name"), "is missing");
            return None;
        }
        _ => SessionCarrier::Cookie {
            name: name.map(Arc::from),
            path: cookie_path,
            permanent,
        },
    };
    Some(SessionPersistence {
        carrier,
        absolute_timeout,
    })
}

/// It can stand in a `Set-Cookie`.
fn is_cookie_path(text: &str) -> bool {
    text.starts_with('/')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b';')
}

/// A duration as the Gateway API writes it: up to four numbers of h, m, s and ms.
fn duration(value: &Value) -> Result<Duration, String> {
    let message = || format!("{value} is not a duration, such as 10s, 1m30s or 250ms");
    let text = value.as_str().ok_or_else(message)?;
    let mut rest = text;
    let mut sum = Duration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let unit = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(unit);
        let number: u64 = number
            .parse()
            .ok()
            .filter(|_| digits <= 5)
            .ok_or_else(message)?;
        sum += match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return Err(message()),
        };
        parts += 1;
        rest = after;
    }
    if parts == 0 || parts > 4 {
        return Err(message());
    }
    Ok(sum)
}
