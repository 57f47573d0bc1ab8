//! Words that no committed file may have.

use anyhow::Result;

use super::{Finding, conclude, source};

/// A word, in two parts so that this file does not have it, and what it says.
const WORDS: &[(&str, &str, &str)] = &[
    ("TO", "DO", "unfinished work: finish it or open an issue"),
    ("FIX", "ME", "unfinished work: finish it or open an issue"),
    ("todo", "!(", "unfinished work: finish it"),
    ("unimple", "mented!(", "unfinished work: finish it"),
    ("#[al", "low(", "use #[expect(.., reason)]"),
    ("/wo", "rk/", "a path of one machine"),
    ("/ho", "me/", "a path of one machine"),
];

/// The check.
pub(crate) fn check() -> Result<()> {
    let mut findings = Vec::new();
    for file in source::files(".", "")? {
        let generated = file.path.contains("/generated/") || file.path == "Cargo.lock";
        if generated || file.path == "LICENSE" {
            continue;
        }
        for (at, text) in file.text.lines().enumerate() {
            let found = WORDS
                .iter()
                .filter(|(head, tail, _)| text.contains(&format!("{head}{tail}")));
            findings.extend(found.map(|(head, tail, reason)| Finding {
                file: file.path.clone(),
                line: at + 1,
                message: format!("\"{head}{tail}\": {reason}"),
            }));
        }
    }
    conclude("words", &findings)
}
