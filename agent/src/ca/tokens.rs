//! Who a caller is: bearer tokens, one for each node, in the files of a directory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use crate::identity::{Stamp, warn_of_mode};
use crate::model::NodeName;

/// Longer than any token.
const MAX_TOKEN: u64 = 64 * 1024;
/// Shorter ones can be guessed.
const MIN_TOKEN: usize = 16;

/// The tokens in force, as hashes. Immutable.
#[derive(Debug, Default)]
pub(super) struct Tokens(Vec<(NodeName, [u8; 32])>);

impl Tokens {
    /// The node that the token is of. The time that it takes does not depend on the token:
    /// all are compared, and by their hashes, whose bytes nobody can steer.
    pub(super) fn node(&self, token: &str) -> Option<&NodeName> {
        let hash = hash(token);
        let mut found = u32::MAX;
        for (index, (_, known)) in (0_u32..).zip(&self.0) {
            found.conditional_assign(&index, known.ct_eq(&hash));
        }
        let index = usize::try_from(found).ok()?;
        self.0.get(index).map(|(node, _)| node)
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// The directory, which is followed.
#[derive(Debug)]
pub(super) struct TokenDir {
    path: PathBuf,
    stamps: BTreeMap<String, Stamp>,
    current: Arc<Tokens>,
}

impl TokenDir {
    /// Reads all tokens.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let stamps = stamps(&path)?;
        let current = Arc::new(read(&path, &stamps));
        if current.0.is_empty() {
            tracing::warn!(path = %path.display(), "no node has a token: nobody will be served");
        }
        Ok(Self {
            path,
            stamps,
            current,
        })
    }

    /// The tokens in force.
    pub(super) fn current(&self) -> Arc<Tokens> {
        Arc::clone(&self.current)
    }

    /// Looks at the directory. True where other tokens are in force now. A directory that
    /// can't be read has none: a token must not outlive its file.
    pub(super) fn refresh(&mut self) -> bool {
        let stamps = stamps(&self.path).unwrap_or_else(|error| {
            if !self.stamps.is_empty() {
                tracing::error!(path = %self.path.display(), %error, "no token is valid");
            }
            BTreeMap::new()
        });
        if stamps == self.stamps {
            return false;
        }
        self.current = Arc::new(read(&self.path, &stamps));
        self.stamps = stamps;
        tracing::info!(
            nodes = self.current.0.len(),
            "the node tokens were read again"
        );
        true
    }
}

/// The files that are named as nodes. Those that begin with a dot are how Kubernetes
/// swaps the content of a volume.
fn stamps(path: &Path) -> io::Result<BTreeMap<String, Stamp>> {
    let mut stamps = BTreeMap::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let file = fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_file());
        if !name.starts_with('.')
            && file
            && let Some(stamp) = Stamp::of(&entry.path())
        {
            stamps.insert(name, stamp);
        }
    }
    Ok(stamps)
}

/// What is no usable token is left out, and said.
fn read(path: &Path, names: &BTreeMap<String, Stamp>) -> Tokens {
    let mut nodes: BTreeMap<[u8; 32], Vec<NodeName>> = BTreeMap::new();
    for name in names.keys() {
        match token(&path.join(name)) {
            Ok(token) => nodes
                .entry(hash(&token))
                .or_default()
                .push(NodeName(name.as_str().into())),
            Err(reason) => tracing::error!(node = %name, reason, "the node has no usable token"),
        }
    }
    let mut tokens = Vec::with_capacity(nodes.len());
    for (hash, mut nodes) in nodes {
        let first = nodes.swap_remove(0);
        if nodes.is_empty() {
            tokens.push((first, hash));
        } else {
            tracing::error!(node = %first, others = ?nodes, "nodes share a token: none of them is served");
        }
    }
    Tokens(tokens)
}

fn token(path: &Path) -> Result<String, String> {
    warn_of_mode(path);
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_TOKEN {
        return Err("the file is too large for a token".to_owned());
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let token = text.trim();
    if token.is_empty() {
        return Err("the file is empty".to_owned());
    }
    if token.len() < MIN_TOKEN {
        tracing::warn!(path = %path.display(), "this token is so short that it can be guessed");
    }
    Ok(token.to_owned())
}
