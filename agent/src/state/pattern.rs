//! Regular expressions of routes.

use std::fmt;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

/// The largest program that a pattern may become, in bytes. What `{n,m}` within `{n,m}`
/// grows to is refused long before it costs anything at run time.
const PROGRAM: usize = 64 * 1024;
/// For the states of its automaton that a thread keeps, in bytes.
const AUTOMATON: usize = 256 * 1024;

/// A regular expression that a whole text must match. Matching takes time that is linear
/// in the text. Its classes (`\w`, `\d`, `.`) are of ASCII, as RE2's are.
#[derive(Clone)]
pub struct Pattern {
    text: Arc<str>,
    regex: Regex,
}

impl Pattern {
    /// Reads a pattern. The error says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        let build = |text: &str, program: usize| {
            RegexBuilder::new(text)
                .unicode(false)
                .size_limit(program)
                .dfa_size_limit(AUTOMATON)
                .build()
        };
        let explain = |error: regex::Error| match error {
            regex::Error::CompiledTooBig(limit) => {
                format!("is a regular expression that grows beyond {limit} bytes: repeat less")
            }
            error => {
                let last = error.to_string();
                let last = last.lines().last().unwrap_or_default();
                let reason = last.strip_prefix("error: ").unwrap_or(last);
                format!("is not a regular expression: {reason}")
            }
        };
        // On its own first: a `)` too many must not end the group around it. It is enough to
        // read it; no program is made of it.
        match build(text, 0) {
            Ok(_) | Err(regex::Error::CompiledTooBig(_)) => {}
            Err(error) => return Err(explain(error)),
        }
        let regex = build(&format!(r"\A(?:{text})\z"), PROGRAM).map_err(explain)?;
        Ok(Self {
            text: text.into(),
            regex,
        })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// All of the text is what is meant.
    pub fn matches(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, text: &str, expected: bool) {
        let pattern = Pattern::new(pattern).unwrap();
        assert_eq!(pattern.matches(text.as_bytes()), expected, "{text:?}");
    }

    #[test]
    fn the_whole_text_is_meant() {
        check("a|b", "b", true);
        check("a|b", "ab", false);
        check("a$", "a\nb", false);
        check("(?m)^a$", "a\nb", false);
        check("(?x) a b", "ab", true);
        check(r"\w+", "\u{e9}", false);
    }

    #[test]
    fn what_explodes_is_refused() {
        for pattern in ["((a{1,100}){1,100}){1,100}", r"(?u)\w{200}", "[a-z]{60000}"] {
            let error = Pattern::new(pattern).unwrap_err();
            assert!(error.contains("grows beyond 65536 bytes"), "{error}");
        }
        assert!(Pattern::new("[a-zA-Z0-9._-]{1,253}").is_ok());
    }

    #[test]
    fn what_is_none_is_refused() {
        for pattern in ["(", "a)|(b", "[", "*", r"(?=a)", r"\1", "(?x)a#"] {
            let error = Pattern::new(pattern).unwrap_err();
            assert!(
                error.starts_with("is not a regular expression: "),
                "{error}"
            );
        }
    }
}
