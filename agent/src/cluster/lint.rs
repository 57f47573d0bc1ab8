//! `fairlead lint`: what would be reported of manifests, without an agent.

use std::path::Path;
use std::sync::Arc;

use super::dir;
use super::files::{Content, Files};
use crate::model::TrustDomain;
use crate::state::{Problem, Writer};

/// Everything that is wrong with a file, or with all manifests of a directory.
pub fn lint(path: &Path) -> Vec<Problem> {
    let mut files = Files::new(TrustDomain("cluster.local".into()));
    let mut writer = Writer::new();
    let names = match dir::list(path) {
        Ok(names) => names,
        Err(error) => {
            return vec![Problem {
                file: path.display().to_string(),
                message: error.to_string(),
                ..Problem::default()
            }];
        }
    };
    for (name, path) in names {
        let content =
            dir::read(&path).unwrap_or_else(|error| Content::Unreadable(error.to_string()));
        for change in files.update(&Arc::from(name), content) {
            writer.apply(change);
        }
    }
    let snapshot = writer.publish();
    snapshot
        .map(|snapshot| snapshot.problems.iter().cloned().collect())
        .unwrap_or_default()
}
