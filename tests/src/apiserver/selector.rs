//! Label and field selectors.

use super::failure::Failure;

/// What all of must hold of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector(Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    key: String,
    /// `None`: any value will do.
    values: Option<Vec<String>>,
    negated: bool,
}

impl Selector {
    /// `a=b,c!=d,e,!f,g in (h,i),j notin (k)`.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let terms = split(text).map(Term::parse);
        terms.collect::<Result<_, _>>().map(Self)
    }

    /// It holds, where `value` knows an object's values by key.
    pub(super) fn matches<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|term| term.matches(value(&term.key)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// At commas that are in no parentheses.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|term| !term.is_empty())
}

impl Term {
    fn parse(text: &str) -> Result<Self, Failure> {
        let term = |key: &str, values: Option<Vec<String>>, negated| {
            let key = key.trim().to_owned();
            Ok(Self {
                key,
                values,
                negated,
            })
        };
        let one = |value: &str| Some(vec![value.trim().to_owned()]);
        for (word, negated) in [(" notin ", true), (" in ", false)] {
            if let Some((key, set)) = text.split_once(word) {
                let set = set.trim().strip_prefix('(');
                let set = set.and_then(|set| set.strip_suffix(')'));
                let set = set.ok_or_else(|| unparsable(text))?;
                let values = set.split(',').map(|value| value.trim().to_owned());
                return term(key, Some(values.collect()), negated);
            }
        }
        if let Some((key, value)) = text.split_once("!=") {
            return term(key, one(value), true);
        }
        if let Some((key, value)) = text.split_once('=') {
            return term(key, one(value.trim_start_matches('=')), false);
        }
        match text.strip_prefix('!') {
            Some(key) => term(key, None, true),
            None => term(text, None, false),
        }
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let found = match (&self.values, value) {
            (Some(values), Some(value)) => values.iter().any(|wanted| wanted == value),
            (Some(_), None) => false,
            (None, value) => value.is_some(),
        };
        found != self.negated
    }
}

fn unparsable(text: &str) -> Failure {
    Failure::bad_request(format!("unable to parse requirement: {text}"))
}

#[cfg(test)]
mod tests {
    use super::Selector;

    #[track_caller]
    fn check(selector: &str, labels: &[(&str, &str)], expected: bool) {
        let selector = Selector::parse(selector).unwrap();
        let value = |key: &str| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        assert_eq!(selector.matches(value), expected);
    }

    #[test]
    fn every_term_must_hold() {
        let web = [("app", "web"), ("tier", "front")];
        check("", &web, true);
        check("app=web,tier==front", &web, true);
        check("app=web,tier!=front", &web, false);
        check("app in (db, web),tier", &web, true);
        check("app notin (db,web)", &web, false);
        check("!app", &web, false);
        check("other!=x,!other", &web, true);
        assert!(Selector::parse("app in web").is_err());
    }
}
