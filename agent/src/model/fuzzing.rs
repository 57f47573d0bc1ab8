//! Paths and identities.

use super::{SpiffeId, normal_path, without_parameters};

/// A path has one form, and it is the one that a server comes to which decodes it once
/// and walks it.
pub(crate) fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(normal) = normal_path(text) else {
        return;
    };
    assert_eq!(
        normal_path(&normal).as_deref(),
        Ok(&*normal),
        "a fixed point"
    );
    if normal == "*" {
        return;
    }
    assert!(normal.bytes().all(|byte| byte.is_ascii_graphic()));
    let served = served(text.as_bytes()).expect("nothing leads above the root");
    let decided: Vec<Vec<u8>> = normal[1..].split('/').map(decoded).collect();
    let (last, walked) = decided.split_last().expect("at least one segment");
    assert!(walked.iter().all(|segment| !segment.is_empty()), "{normal}");
    let named = decided.len() - usize::from(last.is_empty());
    assert_eq!(decided[..named], served[..], "{normal}");
    for segment in &decided[..named] {
        let steps = [&b"."[..], b".."];
        assert!(!steps.contains(&&segment[..]), "{normal}");
        let separates = |byte: &u8| matches!(byte, b'/' | b'\\') || byte.is_ascii_control();
        assert!(!segment.iter().any(separates), "{normal}");
    }
    if let Some(bare) = without_parameters(&normal) {
        assert!(!bare.contains(';'), "{bare}");
        assert_eq!(
            normal_path(&bare).as_deref(),
            Ok(&*bare),
            "parameters hid a step"
        );
    }
}

/// The segments that a server comes to; `None` above the root.
fn served(path: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut kept = Vec::new();
    for segment in path.split(|byte| *byte == b'/') {
        let segment = decoded(std::str::from_utf8(segment).ok()?);
        match &segment[..] {
            b"" | b"." => {}
            b".." => drop(kept.pop()?),
            _ => kept.push(segment),
        }
    }
    Some(kept)
}

fn decoded(segment: &str) -> Vec<u8> {
    percent_encoding::percent_decode_str(segment).collect()
}

/// An identity has one spelling.
pub(crate) fn spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(id) = text.parse::<SpiffeId>() else {
        return;
    };
    assert_eq!(id.to_string(), text);
    for part in [&*id.trust_domain.0, &id.namespace, &id.service_account] {
        assert!(!part.is_empty() && !part.contains(['/', '%', '?', '#', '\\']));
        assert!(part != "." && part != "..");
    }
}
