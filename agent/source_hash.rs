// The hash of the sources that the kernel's programs are built of. Included by
// `xtask/src/bpf.rs`, which writes it beside the object, and by `agent/build.rs`,
// which embeds an object only where it is still theirs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// What counts as source, from the root of the repository.
pub(crate) const SOURCES: [&str; 5] = [
    "common/Cargo.toml",
    "common/src",
    "ebpf/Cargo.lock",
    "ebpf/Cargo.toml",
    "ebpf/src",
];

/// SHA-256 over the names and contents of all sources, in hexadecimal.
pub(crate) fn source_hash(root: &Path) -> std::io::Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file);
        let content = std::fs::read(&file)?;
        hash.update(name.as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update(content.len().to_be_bytes());
        hash.update(&content);
    }
    let mut text = String::new();
    for byte in hash.finalize() {
        // Writing into a string can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !path.is_dir() {
        // Tests run on the host and are no part of the object.
        if !path.ends_with("tests.rs") {
            files.push(path.to_owned());
        }
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}
