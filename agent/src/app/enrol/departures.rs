//! Pods that have left and are not out of the kernel yet. Pure.

use std::collections::BTreeMap;

use crate::model::NamespacedName;

/// By name, each with how it goes.
#[derive(Debug, Default)]
pub(super) struct Departures(BTreeMap<NamespacedName, Departure>);

#[derive(Debug, Default)]
struct Departure {
    /// Not before its last process has ended.
    when_empty: bool,
    /// The last attempt failed.
    error: Option<String>,
}

impl Departures {
    /// It goes now.
    pub(super) fn at_once(&mut self, name: &NamespacedName) {
        drop(self.0.insert(name.clone(), Departure::default()));
    }

    /// It goes when its last process has ended.
    pub(super) fn when_empty(&mut self, name: &NamespacedName) {
        let departure = Departure {
            when_empty: true,
            error: None,
        };
        drop(self.0.insert(name.clone(), departure));
    }

    /// Keeps only those for whom `stays` says so; the others are wanted again.
    pub(super) fn retain(&mut self, stays: impl Fn(&NamespacedName) -> bool) {
        self.0.retain(|name, _| stays(name));
    }

    /// Who is to be taken out now.
    pub(super) fn due(&self, inhabited: impl Fn(&NamespacedName) -> bool) -> Vec<NamespacedName> {
        let due = self
            .0
            .iter()
            .filter(|(name, it)| !it.when_empty || !inhabited(name));
        due.map(|(name, _)| name.clone()).collect()
    }

    /// It is out.
    pub(super) fn done(&mut self, name: &NamespacedName) {
        drop(self.0.remove(name));
    }

    /// It could not be taken out. Returns whether that is new.
    pub(super) fn failed(&mut self, name: &NamespacedName, error: &str) -> bool {
        let Some(departure) = self.0.get_mut(name) else {
            return false;
        };
        let new = departure.error.as_deref() != Some(error);
        departure.error = Some(error.to_owned());
        new
    }

    /// What stands against one of them, in a sentence.
    pub(super) fn error(&self) -> Option<String> {
        let mut failed = self.0.iter();
        failed.find_map(|(name, departure)| {
            let error = departure.error.as_ref()?;
            Some(format!(
                "the pod {name} can't be taken out of the kernel: {error}"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_once_and_tried_again() {
        let (mut departures, web) = (Departures::default(), NamespacedName::new("shop", "web"));
        departures.at_once(&web);
        assert_eq!(departures.due(|_| true), std::slice::from_ref(&web));
        assert!(departures.failed(&web, "no"));
        assert!(!departures.failed(&web, "no"));
        assert!(
            departures
                .error()
                .is_some_and(|text| text.contains("shop/web"))
        );
        assert_eq!(departures.due(|_| true), std::slice::from_ref(&web));
        departures.done(&web);
        assert_eq!(
            (departures.error(), departures.due(|_| true)),
            (None, vec![])
        );
    }

    #[test]
    fn who_still_runs_is_waited_for() {
        let (mut departures, web) = (Departures::default(), NamespacedName::new("shop", "web"));
        departures.when_empty(&web);
        assert_eq!(departures.due(|_| true), []);
        assert_eq!(departures.due(|_| false), [web]);
        departures.retain(|_| false);
        assert_eq!(departures.due(|_| false), []);
    }
}
