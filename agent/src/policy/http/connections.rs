//! The routes of one port of a Service that decide per connection.

use std::collections::HashMap;
use std::sync::Arc;

use super::backend::CompiledRule;
use crate::state::{Route, RouteKind};

/// `TLSRoute`s or `TCPRoute`s of a Service's port.
#[derive(Debug)]
pub struct ConnectionRoutes {
    by_name: bool,
    /// Of the names as they are, without the `*` of those that stand for any below.
    exact: HashMap<Arc<str>, Arc<CompiledRule>>,
    below: HashMap<Arc<str>, Arc<CompiledRule>>,
    any: Option<Arc<CompiledRule>>,
}

impl ConnectionRoutes {
    /// The first rule of each of these routes, which are of one kind. Where two are for the
    /// same, the older route is in force.
    pub(in crate::policy) fn new<'r>(
        routes: impl IntoIterator<Item = (&'r Route, &'r [Arc<CompiledRule>])>,
    ) -> Self {
        let mut routes: Vec<_> = routes.into_iter().collect();
        routes.sort_by_key(|(route, _)| (route.created, &route.name));
        let mut all = Self {
            by_name: false,
            exact: HashMap::new(),
            below: HashMap::new(),
            any: None,
        };
        for (route, rules) in routes {
            all.by_name |= route.kind == RouteKind::Tls;
            let Some(rule) = rules.first() else { continue };
            if route.hostnames.is_empty() {
                all.any.get_or_insert_with(|| Arc::clone(rule));
            }
            for name in &route.hostnames {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut all.below, Arc::from(parent)),
                    None => (&mut all.exact, Arc::clone(name)),
                };
                names.entry(name).or_insert_with(|| Arc::clone(rule));
            }
        }
        all
    }

    /// The rule depends on the name that the client asks for (SNI).
    pub fn by_name(&self) -> bool {
        self.by_name
    }

    /// The rule of a connection: of the name as it is, else of the longest name that it is
    /// below, else of any. `None`: there are routes, and none is for it.
    pub fn find(&self, name: Option<&str>) -> Option<&Arc<CompiledRule>> {
        let Some(name) = name else {
            return self.any.as_ref();
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let parents = std::iter::successors(Some(&*name), |name| Some(name.split_once('.')?.1));
        let below = || parents.skip(1).find_map(|parent| self.below.get(parent));
        let found = self.exact.get(&*name).or_else(below);
        found.or(self.any.as_ref())
    }
}
