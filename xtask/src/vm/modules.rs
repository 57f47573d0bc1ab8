//! Kernel modules with what they depend on, in load order.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The modules of one kernel package.
#[derive(Debug)]
pub(super) struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// A module, decompressed.
#[derive(Debug)]
pub(super) struct Module {
    /// As the kernel calls it: with underscores.
    pub(super) name: String,
    /// The ELF file.
    pub(super) content: Vec<u8>,
}

impl Modules {
    /// Indexes `lib/modules/<release>`.
    pub(super) fn index(directory: &Path) -> Result<Self> {
        let builtin = directory.join("modules.builtin");
        let builtin = fs::read_to_string(&builtin)
            .with_context(|| format!("cannot read {}", builtin.display()))?;
        let mut modules = Self {
            files: BTreeMap::new(),
            builtin: builtin
                .lines()
                .filter_map(|line| module_name(Path::new(line)))
                .collect(),
        };
        modules.collect(&directory.join("kernel"))?;
        Ok(modules)
    }

    fn collect(&mut self, directory: &Path) -> Result<()> {
        for entry in fs::read_dir(directory)
            .with_context(|| format!("cannot read {}", directory.display()))?
        {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                self.collect(&entry.path())?;
            } else if let Some(name) = module_name(&entry.path()) {
                let _previous = self.files.insert(name, entry.path());
            }
        }
        Ok(())
    }

    /// `wanted` and all that they depend on, each once, dependencies first. What is built in is left out.
    pub(super) fn in_load_order(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let mut seen = BTreeSet::new();
        let mut ordered = Vec::new();
        for name in wanted {
            self.append(name, &mut seen, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn append(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        ordered: &mut Vec<Module>,
    ) -> Result<()> {
        if self.builtin.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let file = self
            .files
            .get(name)
            .with_context(|| format!("the kernel has no module {name}"))?;
        let content = read(file)?;
        for dependency in dependencies(&content)
            .with_context(|| format!("{} has no list of dependencies", file.display()))?
        {
            self.append(&dependency, seen, ordered)?;
        }
        ordered.push(Module {
            name: name.to_owned(),
            content,
        });
        Ok(())
    }
}

/// `net/9p/9pnet-virtio.ko.xz` is `9pnet_virtio`.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let (stem, _compression) = name.split_once(".ko")?;
    Some(stem.replace('-', "_"))
}

fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension() != Some(OsStr::new("xz")) {
        return fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    let output = Command::new("xz")
        .arg("-dc")
        .arg(file)
        .output()
        .context("cannot run xz")?;
    ensure!(
        output.status.success(),
        "xz cannot decompress {}",
        file.display()
    );
    Ok(output.stdout)
}

/// The `depends=` entry of a module's `.modinfo` section, which is a list of NUL-terminated strings.
fn dependencies(content: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let start = content.windows(KEY.len()).position(|bytes| bytes == KEY)? + KEY.len();
    let length = content[start..].iter().position(|byte| *byte == 0)?;
    let list = std::str::from_utf8(&content[start..start + length]).ok()?;
    Some(
        list.split(',')
            .filter(|name| !name.is_empty())
            .map(|name| name.replace('-', "_"))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{dependencies, module_name};

    #[test]
    fn module_names_are_the_kernels() {
        let name = |path| module_name(Path::new(path));
        assert_eq!(name("kernel/net/veth.ko").as_deref(), Some("veth"));
        assert_eq!(name("net/9p/a-b.ko.xz").as_deref(), Some("a_b"));
        assert_eq!(name("modules.order"), None);
    }

    #[test]
    fn dependencies_come_from_modinfo() {
        let module = b"\x7fELF..license=GPL\0depends=netfs,9pnet\0retpoline=Y\0";
        assert_eq!(dependencies(module).unwrap(), ["netfs", "9pnet"]);
        assert!(dependencies(b"x\0depends=\0").unwrap().is_empty());
        assert!(dependencies(b"nothing").is_none());
    }
}
