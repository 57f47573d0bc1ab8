//! The issuers of tokens of a MeshPolicy.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::FieldPath;
use super::reader::{self, Reader};
use crate::state::{ClaimHeader, JwtKeys, JwtProvider, TokenHeader, is_local};

/// How far the clock of an issuer may be off where nothing is said.
const CLOCK_SKEW: Duration = Duration::from_mins(1);

/// More would be no check of times.
const LARGEST_CLOCK_SKEW: Duration = Duration::from_mins(10);

/// A larger key set is none: agents read and keep it.
const LARGEST_KEY_SET: usize = 64 << 10;

/// Keys of one set; as many as agents look at.
const MOST_KEYS: usize = 256;

/// Headers that carry the request itself, which no claim may become.
const NOT_FOR_CLAIMS: [&str; 9] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "authorization",
];

/// Reads `spec.jwt`.
pub(super) fn read(reader: &mut Reader, value: &Value, path: &FieldPath) -> Vec<Arc<JwtProvider>> {
    let mut providers = Vec::new();
    for (_, value, path) in reader.fields(value, path, &["providers"]) {
        for (value, path) in reader.items(value, &path) {
            providers.extend(provider(reader, value, &path).map(Arc::new));
        }
    }
    if providers.is_empty() && reader.problems.is_empty() {
        reader.report(&path.key("providers"), "is missing");
    }
    providers
}

fn provider(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<JwtProvider> {
    let known = [
        "issuer",
        "audiences",
        "jwks",
        "jwksUri",
        "fromHeaders",
        "fromParams",
        "fromCookies",
        "forwardOriginalToken",
        "outputClaimToHeaders",
        "clockSkew",
    ];
    let mut issuer = None;
    let mut keys = Vec::new();
    let mut provider = JwtProvider {
        clock_skew: CLOCK_SKEW,
        ..JwtProvider::new("", JwtKeys::Inline("".into()))
    };
    for (key, value, path) in reader.fields(value, path, &known) {
        match key {
            "issuer" => issuer = reader.text(value, &path),
            "audiences" => provider.audiences = reader.list(value, &path, text),
            "jwks" => keys.extend(read_keys(reader, value, &path)),
            "jwksUri" => keys.extend(read_uri(reader, value, &path)),
            "fromHeaders" => provider.from_headers = from_headers(reader, value, &path),
            "fromParams" => provider.from_params = reader.list(value, &path, text),
            "fromCookies" => provider.from_cookies = reader.list(value, &path, cookie),
            "outputClaimToHeaders" => provider.output_claims = claims(reader, value, &path),
            "clockSkew" => match reader::duration(value) {
                Ok(skew) if skew <= LARGEST_CLOCK_SKEW => provider.clock_skew = skew,
                Ok(_) => reader.report(&path, "is more than 10m"),
                Err(message) => reader.report(&path, message),
            },
            _ => match value.as_bool() {
                Some(forward) => provider.forward = forward,
                None => reader.report(&path, format!("{value} is neither true nor false")),
            },
        }
    }
    let given = |name: &str| value.get(name).is_some();
    if !given("issuer") && value.is_object() {
        reader.report(&path.key("issuer"), "is missing");
    }
    match (given("jwks"), given("jwksUri")) {
        (false, false) if value.is_object() => {
            reader.report(&path.key("jwksUri"), "is missing, and so is jwks");
        }
        (true, true) => reader.report(&path.key("jwksUri"), "can't be given together with jwks"),
        _ => {}
    }
    let nowhere = ["fromHeaders", "fromParams", "fromCookies"];
    if !nowhere.into_iter().any(given) {
        provider.from_headers = vec![TokenHeader {
            name: "authorization".into(),
            prefix: "Bearer ".into(),
        }];
        provider.from_params = vec!["access_token".into()];
    }
    provider.issuer = issuer?.into();
    provider.keys = keys.pop()?;
    Some(provider)
}

fn text(value: &Value) -> Result<Arc<str>, String> {
    let text = value.as_str().filter(|text| !text.is_empty());
    text.map(Arc::from)
        .ok_or_else(|| "must be a string that is not empty".to_owned())
}

fn cookie(value: &Value) -> Result<Arc<str>, String> {
    let name = text(value)?;
    // RFC 6265: the name of a cookie is a token, as that of a header is.
    reader::header_name(&name).map_err(|_invalid| format!("{value} is no name of a cookie"))?;
    Ok(name)
}

/// A key set of which at least the form is right.
fn read_keys(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<JwtKeys> {
    let text = reader.text(value, path)?;
    if text.len() > LARGEST_KEY_SET {
        reader.report(path, "is more than 64 KiB");
        return None;
    }
    let set: Value = match serde_json::from_str(text) {
        Ok(set) => set,
        Err(error) => {
            reader.report(path, format!("is no JSON: {error}"));
            return None;
        }
    };
    let keys = set.get("keys").and_then(Value::as_array);
    let of_kind = |key: &Value| key.get("kty").is_some_and(Value::is_string);
    if !keys.is_some_and(|keys| !keys.is_empty() && keys.iter().all(of_kind)) {
        let message = "is no key set: {\"keys\": [{\"kty\": ...}]}";
        reader.report(path, message);
        return None;
    }
    if keys.is_some_and(|keys| keys.len() > MOST_KEYS) {
        reader.report(path, "has more than 256 keys");
        return None;
    }
    Some(JwtKeys::Inline(text.into()))
}

fn read_uri(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<JwtKeys> {
    let text = reader.text(value, path)?;
    let uri = text.parse::<http::Uri>().ok();
    let proper = |uri: &http::Uri| {
        let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
        scheme && uri.host().is_some_and(|host| !host.is_empty()) && !text.contains(['@', '#'])
    };
    if !uri.as_ref().is_some_and(proper) {
        reader.report(path, format!("{value} is no http or https URI"));
        return None;
    }
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.parse().is_ok_and(is_local) {
        let message = format!("{host} is the machine's, the link's or the cloud's own");
        reader.report(path, message);
        return None;
    }
    Some(JwtKeys::Uri(text.into()))
}

fn from_headers(reader: &mut Reader, value: &Value, path: &FieldPath) -> Vec<TokenHeader> {
    let mut headers = Vec::new();
    for (value, path) in reader.items(value, path) {
        let mut name = None;
        let mut prefix = Some("");
        for (key, value, path) in reader.fields(value, &path, &["name", "prefix"]) {
            match key {
                "name" => name = read_header(reader, value, &path),
                _ => prefix = reader.text(value, &path),
            }
        }
        if value.get("name").is_none() && value.is_object() {
            reader.report(&path.key("name"), "is missing");
        }
        headers.extend(name.zip(prefix).map(|(name, prefix)| TokenHeader {
            name,
            prefix: prefix.into(),
        }));
    }
    headers
}

fn claims(reader: &mut Reader, value: &Value, path: &FieldPath) -> Vec<ClaimHeader> {
    let mut claims = Vec::new();
    for (value, path) in reader.items(value, path) {
        let mut header = None;
        let mut claim = None;
        for (key, value, path) in reader.fields(value, &path, &["header", "claim"]) {
            match key {
                "header" => {
                    header = read_header(reader, value, &path);
                    let taken = |name: &Arc<str>| NOT_FOR_CLAIMS.contains(&&**name);
                    if header.as_ref().is_some_and(taken) {
                        reader.report(&path, format!("{value} can't be a claim"));
                    }
                }
                _ => claim = reader.text(value, &path),
            }
        }
        for missing in ["header", "claim"] {
            if value.get(missing).is_none() && value.is_object() {
                reader.report(&path.key(missing), "is missing");
            }
        }
        claims.extend(header.zip(claim).map(|(header, claim)| ClaimHeader {
            header,
            claim: claim.split('.').map(Arc::from).collect(),
        }));
    }
    claims
}

fn read_header(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<Arc<str>> {
    let text = reader.text(value, path)?;
    match reader::header_name(text) {
        Ok(name) => Some(name),
        Err(message) => {
            reader.report(path, message);
            None
        }
    }
}
