//! What policies that decide nothing saw: dry runs apart from the rest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Rules come and go; further ones than these are counted together.
const MOST: usize = 1_000;

/// Counts marks by rule. A clone counts into the same series.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    series: Family<Mark, Counter>,
    known: Arc<Mutex<HashMap<Arc<str>, Counter>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Mark {
    /// `namespace/name#rule`.
    policy: String,
    effect: String,
}

impl Marks {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "fairlead_policy_marks",
            "Connections and requests that AUDIT policies and dry runs matched, by rule and what \
             a dry run would have done",
            self.series.clone(),
        );
    }

    /// Counts what one decision left: `shop/p#0`, or `shop/p#0: would deny`.
    pub(super) fn count(&self, audit: &[Arc<str>]) {
        if audit.is_empty() {
            return;
        }
        // A panic under this lock would have ended the process.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for mark in audit {
            if let Some(count) = known.get(mark) {
                let _count = count.inc();
                continue;
            }
            let (policy, effect) = mark.split_once(": ").unwrap_or((mark, "audited"));
            let many = known.len() >= MOST;
            let count = self.series.get_or_create_owned(&Mark {
                policy: if many { "(others)" } else { policy }.to_owned(),
                effect: effect.replace(' ', "_"),
            });
            let _count = count.inc();
            if !many {
                let _new = known.insert(Arc::clone(mark), count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::Marks;

    #[test]
    fn dry_runs_are_counted_apart() {
        let marks = Marks::default();
        let mut registry = Registry::default();
        marks.register(&mut registry);
        marks.count(&["shop/a#0".into(), "shop/b#1: would deny".into()]);
        marks.count(&["shop/b#1: would deny".into()]);
        marks.count(&[]);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            r#"fairlead_policy_marks_total{policy="shop/a#0",effect="audited"} 1"#,
            r#"fairlead_policy_marks_total{policy="shop/b#1",effect="would_deny"} 2"#,
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn rules_without_number_are_counted_together() {
        let marks = Marks::default();
        for rule in 0..1_100 {
            marks.count(&[format!("shop/p#{rule}").into()]);
        }
        let mut registry = Registry::default();
        marks.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let series = text.lines().filter(|line| line.contains("policy=")).count();
        assert_eq!(series, 1_001);
        assert!(text.contains(r#"{policy="(others)",effect="audited"} 100"#));
    }
}
