//! Manifests.

use std::sync::Arc;

use super::files::{Content, Files};
use crate::model::TrustDomain;
use crate::state::{Snapshot, Writer};

/// What files come to, each a name and its text.
pub(crate) fn snapshot<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Snapshot {
    let mut known = Files::new(TrustDomain("cluster.local".into()));
    let mut writer = Writer::new();
    for (file, text) in files {
        for change in known.update(&Arc::from(file), Content::Text(text.to_owned())) {
            writer.apply(change);
        }
    }
    writer.publish().unwrap_or_default()
}
