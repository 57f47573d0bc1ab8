//! Regular expressions of routes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use regex_automata::Input;
use regex_automata::meta::{BuildError, Cache, Regex};
use regex_automata::util::syntax;

/// The largest program that a pattern may become, in bytes. What `{n,m}` within `{n,m}`
/// grows to is refused long before it costs anything at run time.
const PROGRAM: usize = 64 * 1024;
/// For the states of its automaton that are kept at a time, in bytes.
const AUTOMATON: usize = 256 * 1024;
/// For what all patterns keep on all threads, in bytes.
const KEPT: usize = 64 << 20;
/// Of that, what a thread has however many there are.
const LEAST_KEPT: usize = 1 << 20;

/// A regular expression that a whole text must match. Matching takes time that is linear
/// in the text. Its classes (`\w`, `\d`, `.`) are of ASCII, as RE2's are.
#[derive(Clone)]
pub struct Pattern {
    text: Arc<str>,
    regex: Arc<Regex>,
    /// Which of all, as threads keep what they know of it.
    number: u64,
}

impl Pattern {
    /// Reads a pattern. The error says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // On its own first: a `)` too many must not end the group around it. It is enough to
        // read it; no program is made of it.
        if let Err(error) = build(text, 0)
            && error.size_limit().is_none()
        {
            return Err(explain(&error));
        }
        let regex = build(&format!(r"\A(?:{text})\z"), PROGRAM);
        let regex = regex.map_err(|error| explain(&error))?;
        Ok(Self {
            text: text.into(),
            regex: Arc::new(regex),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// All of the text is what is meant.
    pub fn matches(&self, text: &[u8]) -> bool {
        CACHES.with_borrow_mut(|caches| caches.matches(self, text))
    }
}

fn build(text: &str, program: usize) -> Result<Regex, Box<BuildError>> {
    let config = Regex::config()
        .utf8_empty(false)
        .nfa_size_limit(Some(program))
        .hybrid_cache_capacity(AUTOMATON);
    let syntax = syntax::Config::new().unicode(false).utf8(false);
    let mut builder = Regex::builder();
    let _same = builder.configure(config).syntax(syntax);
    builder.build(text).map_err(Box::new)
}

fn explain(error: &BuildError) -> String {
    if let Some(limit) = error.size_limit() {
        return format!("is a regular expression that grows beyond {limit} bytes: repeat less");
    }
    let whole = error
        .syntax_error()
        .map_or_else(|| error.to_string(), ToString::to_string);
    let last = whole.lines().last().unwrap_or_default();
    let reason = last.strip_prefix("error: ").unwrap_or(last);
    format!("is not a regular expression: {reason}")
}

thread_local! {
    static CACHES: RefCell<Caches> = RefCell::new(Caches::new(*SHARE));
}

/// What one thread may keep.
static SHARE: LazyLock<usize> = LazyLock::new(|| {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    (KEPT / threads).max(LEAST_KEPT)
});

/// What a thread has found out about patterns: their automata are made as texts come. Those
/// not used for longest make room for others.
struct Caches {
    known: HashMap<u64, Known>,
    bytes: usize,
    most: usize,
    uses: u64,
}

struct Known {
    cache: Cache,
    bytes: usize,
    used: u64,
}

impl Caches {
    fn new(most: usize) -> Self {
        Self {
            known: HashMap::new(),
            bytes: 0,
            most,
            uses: 0,
        }
    }

    fn matches(&mut self, pattern: &Pattern, text: &[u8]) -> bool {
        self.uses += 1;
        let known = self.known.entry(pattern.number);
        let known = known.or_insert_with(|| Known {
            cache: pattern.regex.create_cache(),
            bytes: 0,
            used: 0,
        });
        let input = Input::new(text).earliest(true);
        let found = pattern.regex.search_half_with(&mut known.cache, &input);
        let bytes = size_of::<Known>() + known.cache.memory_usage();
        self.bytes = self.bytes - known.bytes + bytes;
        (known.bytes, known.used) = (bytes, self.uses);
        while self.bytes > self.most && self.known.len() > 1 {
            self.forget();
        }
        found.is_some()
    }

    /// Forgets the one not used for longest.
    fn forget(&mut self) {
        let oldest = self.known.iter().min_by_key(|(_, known)| known.used);
        let oldest = oldest.map(|(number, _)| *number);
        if let Some(known) = oldest.and_then(|number| self.known.remove(&number)) {
            self.bytes -= known.bytes;
        }
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
    fn what_all_patterns_keep_has_a_limit() {
        let patterns: Vec<Pattern> = (0..64)
            .map(|number| Pattern::new(&format!("[a-z]*{number}[0-9]{{1,50}}")).unwrap())
            .collect();
        let most = 100_000;
        let (mut bounded, mut unbounded) = (Caches::new(most), Caches::new(usize::MAX));
        for round in 0..3 {
            for (number, pattern) in patterns.iter().enumerate() {
                let text = format!("{}{number}7", "x".repeat(round));
                for caches in [&mut bounded, &mut unbounded] {
                    assert!(caches.matches(pattern, text.as_bytes()));
                    assert!(!caches.matches(pattern, b"-"));
                }
                assert!(bounded.bytes <= most, "{}", bounded.bytes);
                assert!(bounded.known.contains_key(&pattern.number));
            }
        }
        assert!(unbounded.bytes > 2 * most, "{}", unbounded.bytes);
        let kept: usize = bounded.known.values().map(|known| known.bytes).sum();
        assert_eq!(kept, bounded.bytes);
        assert!(bounded.known.len() > 1);
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
