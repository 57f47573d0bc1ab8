//! The one form in which paths of requests are compared.
//!
//! Two servers may read one path in two ways, and whoever asks may choose the one that
//! the policy did not think of. So there is one rule, in `docs/policies.md`, and what it
//! can't bring into one form is refused.

use std::borrow::Cow;

/// Why a path has no form in which it can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It is neither `*` nor begins with a slash.
    #[error("the path does not begin with a slash")]
    Relative,
    /// A space, a control character or a byte beyond ASCII that is not encoded.
    #[error("the path has a character that must be encoded")]
    Character,
    /// `%` without two hexadecimal digits.
    #[error("the path has a % without two hexadecimal digits")]
    Encoding,
    /// An encoded control character, such as NUL.
    #[error("the path has an encoded control character")]
    Control,
    /// What is encoded is not UTF-8.
    #[error("the path is not UTF-8 once it is decoded")]
    Utf8,
    /// `%2F`, `%5C` or `\`: a separator to some servers and not to others.
    #[error("the path has an encoded slash or a backslash")]
    Separator,
    /// `..` above the root.
    #[error("the path leads above the root")]
    AboveRoot,
    /// `.` or `..` with parameters: a step to some servers, a name to others.
    #[error("the path has a dot segment with parameters")]
    DotParameters,
}

/// The form of a path, without its query, in which it is compared: letters, digits and
/// `-._~` never encoded, hexadecimal digits in upper case, no dot segments, no empty
/// segments. Borrowed where the path has that form already.
pub fn normal_path(path: &str) -> Result<Cow<'_, str>, PathError> {
    if path == "*" {
        return Ok(Cow::Borrowed(path));
    }
    if !path.starts_with('/') {
        return Err(PathError::Relative);
    }
    let decoded = decode(path)?;
    if !has_steps(&decoded) {
        return Ok(decoded);
    }
    walk(&decoded).map(Cow::Owned)
}

/// The path as a server reads it that takes what follows `;` in a segment for a
/// parameter of it; `None` where there is nothing like that.
pub fn without_parameters(path: &str) -> Option<String> {
    if !path.contains(';') {
        return None;
    }
    let bare = |segment: &str| -> String {
        let end = segment.find(';').unwrap_or(segment.len());
        segment[..end].to_owned()
    };
    let segments: Vec<String> = path.split('/').map(bare).collect();
    // A segment of parameters alone leaves an empty one.
    let mut bare = String::with_capacity(path.len());
    for (index, segment) in segments.iter().enumerate() {
        if index > 0 && (!segment.is_empty() || index + 1 == segments.len()) {
            bare.push('/');
        }
        bare.push_str(segment);
    }
    if !bare.starts_with('/') {
        bare.insert(0, '/');
    }
    Some(bare)
}

/// Decodes what never needs to be encoded, and refuses what can't be told apart.
fn decode(path: &str) -> Result<Cow<'_, str>, PathError> {
    let bytes = path.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'\\' | b'#' | b'?');
    let Some(first) = bytes.iter().position(|byte| !plain(byte)) else {
        return Ok(Cow::Borrowed(path));
    };
    let mut text = String::with_capacity(path.len());
    text.push_str(&path[..first]);
    let mut rest = &bytes[first..];
    let mut beyond_ascii = Vec::new();
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            utf8(&mut beyond_ascii)?;
            match byte {
                b'\\' => return Err(PathError::Separator),
                byte if plain(byte) => text.push(char::from(*byte)),
                _ => return Err(PathError::Character),
            }
            continue;
        }
        let [high, low, after @ ..] = rest else {
            return Err(PathError::Encoding);
        };
        rest = after;
        let value = hex(*high).zip(hex(*low)).ok_or(PathError::Encoding)?;
        let value = value.0 << 4 | value.1;
        if value >= 0x80 {
            beyond_ascii.push(value);
        } else {
            utf8(&mut beyond_ascii)?;
        }
        match value {
            b'/' | b'\\' => return Err(PathError::Separator),
            0..0x20 | 0x7f => return Err(PathError::Control),
            b'-' | b'.' | b'_' | b'~' => text.push(char::from(value)),
            _ if value.is_ascii_alphanumeric() => text.push(char::from(value)),
            _ => {
                text.push('%');
                text.push(char::from(high.to_ascii_uppercase()));
                text.push(char::from(low.to_ascii_uppercase()));
            }
        }
    }
    utf8(&mut beyond_ascii)?;
    Ok(Cow::Owned(text))
}

/// A run of encoded bytes beyond ASCII must be UTF-8: an overlong form of a slash is
/// one to some servers.
fn utf8(run: &mut Vec<u8>) -> Result<(), PathError> {
    let valid = std::str::from_utf8(run).is_ok();
    run.clear();
    valid.then_some(()).ok_or(PathError::Utf8)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// There are empty segments or such as begin with a dot.
fn has_steps(path: &str) -> bool {
    path.as_bytes()
        .windows(2)
        .any(|pair| pair[0] == b'/' && matches!(pair[1], b'/' | b'.'))
}

/// Walks the segments as RFC 3986, section 5.2.4, has it, and leaves out empty ones.
fn walk(path: &str) -> Result<String, PathError> {
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_in_slash = false;
    for segment in path.split('/').skip(1) {
        ends_in_slash = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop().ok_or(PathError::AboveRoot)?),
            _ if is_dot_with_parameters(segment) => return Err(PathError::DotParameters),
            _ => kept.push(segment),
        }
    }
    let mut text = String::with_capacity(path.len());
    for segment in kept {
        text.push('/');
        text.push_str(segment);
    }
    if ends_in_slash || text.is_empty() {
        text.push('/');
    }
    Ok(text)
}

/// `..;x` and the like, which Java's servers take for `..`.
fn is_dot_with_parameters(segment: &str) -> bool {
    let rest = segment.trim_start_matches('.');
    let dots = segment.len() - rest.len();
    (1..=2).contains(&dots) && (rest.starts_with(';') || rest.starts_with("%3B"))
}

#[cfg(test)]
mod tests {
    use super::{PathError, normal_path, without_parameters};

    #[track_caller]
    fn check(path: &str, expected: &str) {
        assert_eq!(normal_path(path).as_deref(), Ok(expected), "{path}");
        // What has the form keeps it.
        assert_eq!(normal_path(expected).as_deref(), Ok(expected), "{path}");
    }

    #[track_caller]
    fn refuse(path: &str, expected: PathError) {
        assert_eq!(normal_path(path), Err(expected), "{path}");
    }

    #[test]
    fn what_has_the_form_is_not_copied() {
        for path in [
            "/",
            "/a/b",
            "/a/b/",
            "/a;v=1/b",
            "/.well-known/x",
            "/~a-b_c",
            "*",
            "/a:b@c",
        ] {
            check(path, path);
        }
        assert!(matches!(
            normal_path("/a/b.html"),
            Ok(std::borrow::Cow::Borrowed(_))
        ));
    }

    #[test]
    fn what_needs_no_encoding_is_decoded_once() {
        check("/%61dmin", "/admin");
        check("/%41%5a%30%2d%2E%5f%7e", "/AZ0-._~");
        check("/a%20b", "/a%20b");
        check("/%c3%a9", "/%C3%A9");
        check("/%2561dmin", "/%2561dmin");
        check("/%25", "/%25");
    }

    #[test]
    fn dots_and_empty_segments_are_walked() {
        check("/a/./b", "/a/b");
        check("/a/../b", "/b");
        check("/a/b/..", "/a/");
        check("/a/b/.", "/a/b/");
        check("/a//b", "/a/b");
        check("//a", "/a");
        check("///", "/");
        check("/a//../b", "/b");
        check("/public/%2e%2e/admin", "/admin");
        check("/public/.%2E/admin", "/admin");
        check("/a/...", "/a/...");
        check("/a/.b", "/a/.b");
        check("/a/..b", "/a/..b");
    }

    #[test]
    fn what_servers_read_in_two_ways_is_refused() {
        refuse("/public%2f..%2fadmin", PathError::Separator);
        refuse("/public%2Fadmin", PathError::Separator);
        refuse("/public%5Cadmin", PathError::Separator);
        refuse("/public\\..\\admin", PathError::Separator);
        refuse("/..", PathError::AboveRoot);
        refuse("/a/../../b", PathError::AboveRoot);
        refuse("/%2e%2e/b", PathError::AboveRoot);
        refuse("/public/..;/admin", PathError::DotParameters);
        refuse("/public/.;x=1/admin", PathError::DotParameters);
        refuse("/public/..%3b/admin", PathError::DotParameters);
        refuse("/public/%2e%2e;a/admin", PathError::DotParameters);
    }

    #[test]
    fn what_is_no_path_is_refused() {
        refuse("", PathError::Relative);
        refuse("admin", PathError::Relative);
        refuse("http://x/admin", PathError::Relative);
        refuse("/a b", PathError::Character);
        refuse("/a\tb", PathError::Character);
        refuse("/a\u{7f}", PathError::Character);
        refuse("/é", PathError::Character);
        refuse("/a#b", PathError::Character);
        refuse("/a?b", PathError::Character);
        refuse("/%", PathError::Encoding);
        refuse("/%4", PathError::Encoding);
        refuse("/%zz", PathError::Encoding);
        refuse("/%u0041", PathError::Encoding);
        refuse("/a%00", PathError::Control);
        refuse("/a%0d%0ab", PathError::Control);
        refuse("/a%7f", PathError::Control);
    }

    #[test]
    fn what_is_not_utf8_is_refused() {
        refuse("/%ff", PathError::Utf8);
        refuse("/%e9", PathError::Utf8);
        refuse("/%c3x", PathError::Utf8);
        refuse("/%c0%ae%c0%ae/admin", PathError::Utf8);
        refuse("/%c0%af", PathError::Utf8);
        refuse("/%c3%2e", PathError::Utf8);
        check("/%e2%82%ac/%F0%9F%A6%80", "/%E2%82%AC/%F0%9F%A6%80");
    }

    #[test]
    fn parameters_are_told_apart() {
        for (path, expected) in [
            ("/admin", None),
            ("/admin;x=1", Some("/admin")),
            ("/;x/admin", Some("/admin")),
            ("/a;x/b;y;z/", Some("/a/b/")),
            ("/;x", Some("/")),
        ] {
            assert_eq!(without_parameters(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn every_result_is_a_fixed_point() {
        let pieces = [
            "/", "%2e", ".", "%41", ";", "%3B", "a", "%25", "%c3%a9", "%7E", "x",
        ];
        let mut seed = 7_u64;
        for _ in 0..20_000 {
            let mut path = "/".to_owned();
            for _ in 0..8 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                path.push_str(pieces[(seed >> 33) as usize % pieces.len()]);
            }
            if let Ok(normal) = normal_path(&path) {
                assert_eq!(normal_path(&normal).as_deref(), Ok(&*normal), "{path}");
                assert!(!normal.contains("//") && !normal.contains("/../"), "{path}");
            }
        }
    }
}
