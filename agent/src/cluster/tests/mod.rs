//! Manifests to state.

mod api;
mod bounds;
mod convert;
mod cost;
mod dir;
mod files;
mod lint;
mod manifest;
mod policy;
mod requests;
mod routes;
mod rules;
mod schema;
mod spelling;
mod traffic;
mod traffic_api;

use std::sync::Arc;

use super::files::{Content, Files};
use crate::model::TrustDomain;
use crate::state::{Problem, Snapshot, Writer};

fn trust_domain() -> TrustDomain {
    TrustDomain("cluster.local".into())
}

/// Files and the state that they make.
struct World {
    files: Files,
    writer: Writer,
}

impl World {
    fn new() -> Self {
        Self {
            files: Files::new(trust_domain()),
            writer: Writer::new(),
        }
    }

    /// A world of one file `a.yaml`.
    fn of(text: &str) -> Snapshot {
        Self::new().put("a.yaml", text)
    }

    fn put(&mut self, file: &str, text: &str) -> Snapshot {
        self.update(file, Content::Text(text.to_owned()))
    }

    fn update(&mut self, file: &str, content: Content) -> Snapshot {
        for change in self.files.update(&Arc::from(file), content) {
            self.writer.apply(change);
        }
        self.writer.publish().expect("something changed")
    }
}

/// Problems as `file:line kind object field: message`.
fn problems(snapshot: &Snapshot) -> Vec<String> {
    let text = |p: &Problem| {
        let parts = [&p.kind, &p.object, &p.field].map(String::as_str);
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        format!("{}:{} {}: {}", p.file, p.line, parts.join(" "), p.message)
    };
    snapshot.problems.iter().map(text).collect()
}

#[track_caller]
fn check_problems(snapshot: &Snapshot, expected: &[&str]) {
    assert_eq!(problems(snapshot), expected);
}
