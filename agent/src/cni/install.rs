//! The plugin on the node: its binary, and its entry in the network configuration.
//!
//! A runtime takes the first file of its directory, by name. Ours is no file of its own
//! there: the plugin is appended to whatever list is the first. Where that is a single
//! plugin's configuration, a list of it and ours is written beside it, under a name that
//! comes just before. Other installers write there too, at any time: a file is replaced by
//! exchanging it, so that what was displaced can be looked at, and put back where it is a
//! change that came between.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::conflist::{
    ConfigurationError, Shape, is_valid, listed, shape, with_plugin, without_plugin,
};
use super::{DECISIONS, PLUGIN};

/// Ends the names of lists that are made of a single plugin's configuration. A dash comes
/// before the dot that ends the other's name.
const DERIVED: &str = "-fairlead.conflist";
/// What is ours in the directory of configurations. Runtimes read no directories.
const OWN_DIRECTORY: &str = "fairlead.d";
/// Times in a row that others may write while a file is being changed.
pub(super) const RACES: u32 = 8;
/// The wait after the first of them is two of these, after each further one twice as long.
const PAUSE: Duration = Duration::from_millis(1);

/// Why the plugin is not in place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file can't be read or written.
    #[error("cannot {step} {path}")]
    File {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The plugin can't be added to the node's network configuration.
    #[error("the network configuration {path} {reason}")]
    Configuration {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// There is none yet.
    #[error("{path} has no network configuration to add the plugin to, yet")]
    NoNetwork {
        /// The directory.
        path: PathBuf,
    },
    /// Others write it all the time.
    #[error("{path} is being written by others")]
    Busy {
        /// The file.
        path: PathBuf,
    },
}

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

/// Where the plugin goes.
#[derive(Clone, Debug)]
pub struct Installer {
    /// The directory of the runtime's plugins; left alone where not given.
    pub bin_dir: Option<PathBuf>,
    /// The directory of its network configurations; left alone where not given.
    pub conf_dir: Option<PathBuf>,
    /// Where the plugin finds the agent.
    pub run_dir: PathBuf,
}

impl Installer {
    /// Where the agent keeps what the plugin goes by while the agent is away.
    pub fn decisions(&self) -> PathBuf {
        match &self.conf_dir {
            Some(directory) => directory.join(OWN_DIRECTORY).join(DECISIONS),
            None => self.run_dir.join(DECISIONS),
        }
    }

    /// By this the installed program is told from another one; `None` where there is none.
    pub(super) fn binary_stamp(&self) -> Option<Stamp> {
        let path = self.bin_dir.as_ref()?.join(PLUGIN);
        let data = fs::metadata(path).ok()?;
        Some(Stamp {
            inode: data.ino(),
            bytes: data.len(),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }

    /// Copies `program` to where the runtime looks for the plugin. Returns whether it was
    /// another one that was there.
    pub fn install_binary(&self, program: &Path) -> Result<bool, InstallError> {
        let Some(directory) = &self.bin_dir else {
            return Ok(false);
        };
        let path = directory.join(PLUGIN);
        if is_same(program, &path).unwrap_or(false) {
            return Ok(false);
        }
        let copy = || {
            let mut fresh = temporary(directory)?;
            let _length = io::copy(&mut File::open(program)?, &mut fresh)?;
            finish(fresh, &path, 0o755)
        };
        copy().map_err(failed("install the plugin as", &path))?;
        Ok(true)
    }

    /// Puts the plugin into the configuration that the runtime takes. Returns the file,
    /// if it had to be changed.
    pub fn install_configuration(&self) -> Result<Option<PathBuf>, InstallError> {
        let Some(directory) = &self.conf_dir else {
            return Ok(None);
        };
        let files = configurations(directory)?;
        let Some((name, shape)) = files.iter().find(|(name, shape)| {
            let text = fs::read(directory.join(name)).unwrap_or_default();
            !name.ends_with(DERIVED) && is_valid(&text, *shape).is_ok()
        }) else {
            return Err(InstallError::NoNetwork {
                path: directory.clone(),
            });
        };
        let path = directory.join(name);
        let entry = self.entry();
        let (changed, derived) = match shape {
            Shape::List => (
                edit(&path, |text| with_plugin(text, &entry))?.then_some(path),
                None,
            ),
            Shape::Single => {
                let target = derived_from(&path);
                let text = fs::read(&path).map_err(failed("read", &path))?;
                let list = listed(&text, &entry).map_err(wrong(&path))?;
                let same = fs::read(&target).is_ok_and(|old| old == list);
                if !same {
                    write_atomically(&target, &list, 0o644).map_err(failed("write", &target))?;
                }
                ((!same).then(|| target.clone()), Some(target))
            }
        };
        // What was first before, and is not any more.
        for (other, _) in files.iter().filter(|(other, _)| other != name) {
            let other = directory.join(other);
            if Some(&other) != derived.as_ref() {
                drop(take_out(&other));
            }
        }
        Ok(changed)
    }

    /// Our entry in the list of plugins.
    fn entry(&self) -> Value {
        json!({
            "type": PLUGIN,
            "runDir": self.run_dir,
            "decisions": self.decisions(),
        })
    }
}

/// Takes the plugin off the node: first out of every network configuration of `conf_dir`,
/// with what is ours beside them, then out of `bin_dir`. Returns what was removed or
/// changed.
pub fn uninstall(
    bin_dir: Option<&Path>,
    conf_dir: Option<&Path>,
) -> Result<Vec<PathBuf>, InstallError> {
    let mut done = Vec::new();
    if let Some(directory) = conf_dir {
        for (name, _) in configurations(directory)? {
            let path = directory.join(name);
            if take_out(&path)? {
                done.push(path);
            }
        }
        let own = directory.join(OWN_DIRECTORY);
        match fs::remove_dir_all(&own) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => {
                other.map_err(failed("remove", &own))?;
                done.push(own);
            }
        }
    }
    if let Some(directory) = bin_dir {
        let path = directory.join(PLUGIN);
        if remove(&path)? {
            done.push(path);
        }
    }
    Ok(done)
}

/// Takes our entry out of one file, or the file away where it is one that we made.
fn take_out(path: &Path) -> Result<bool, InstallError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with(DERIVED) {
        return remove(path);
    }
    if shape(&name) != Some(Shape::List) {
        return Ok(false);
    }
    // A list that nobody can read has no entry that anybody would run.
    edit(path, |text| Ok(without_plugin(text).unwrap_or_default()))
}

fn remove(path: &Path) -> Result<bool, InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true).map_err(failed("remove", path)),
    }
}

/// The files that a runtime would look at, in its order.
fn configurations(directory: &Path) -> Result<BTreeSet<(String, Shape)>, InstallError> {
    let read = failed("read", directory);
    let entries = fs::read_dir(directory).map_err(read)?;
    let mut found = BTreeSet::new();
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if let Some(shape) = shape(&name).filter(|_| entry.path().is_file()) {
            let _new = found.insert((name, shape));
        }
    }
    Ok(found)
}

fn derived_from(single: &Path) -> PathBuf {
    let stem = single.file_stem().unwrap_or_default().to_string_lossy();
    single.with_file_name(format!("{stem}{DERIVED}"))
}

/// Changes a file as `change` says, without losing what others put in its place meanwhile:
/// where they did, theirs is in force again, and the change is made anew.
pub(super) fn edit(
    path: &Path,
    change: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, ConfigurationError>,
) -> Result<bool, InstallError> {
    for race in 0..RACES {
        if race > 0 {
            std::thread::sleep(PAUSE * (1 << race));
        }
        let base = fs::read(path).map_err(failed("read", path))?;
        let Some(new) = change(&base).map_err(wrong(path))? else {
            return Ok(false);
        };
        let displaced = Displaced::by(new, path).map_err(failed("replace", path))?;
        if displaced.text == base {
            return Ok(true);
        }
        displaced.put_back(path).map_err(failed("restore", path))?;
    }
    Err(InstallError::Busy {
        path: path.to_owned(),
    })
}

/// The file that was in another's place before; removed when dropped.
pub(super) struct Displaced {
    text: Vec<u8>,
    file: NamedTempFile,
    /// What is in its place.
    by: Vec<u8>,
}

impl Displaced {
    /// Puts `text` in the place of the file at `path`.
    pub(super) fn by(text: Vec<u8>, path: &Path) -> io::Result<Self> {
        let mut fresh = temporary(path.parent().unwrap_or(Path::new("/")))?;
        fresh.write_all(&text)?;
        let mode = fs::metadata(path)?.permissions().mode() & 0o777;
        fresh
            .as_file()
            .set_permissions(Permissions::from_mode(mode))?;
        fresh.as_file().sync_all()?;
        Ok(Self {
            text: exchange(fresh.path(), path)?,
            file: fresh,
            by: text,
        })
    }

    /// Puts the file back, or what others have put in its place since. Theirs is never
    /// displaced for good: only what was there before it is.
    pub(super) fn put_back(mut self, path: &Path) -> io::Result<()> {
        loop {
            let found = match exchange(self.file.path(), path) {
                // The latest that others did was to remove it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                found => found?,
            };
            if found == self.by {
                return Ok(());
            }
            self.by = std::mem::replace(&mut self.text, found);
        }
    }
}

/// Gives each of two files the other's name. Returns what is in the first then.
fn exchange(one: &Path, other: &Path) -> io::Result<Vec<u8>> {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?;
    fs::read(one)
}

/// Replaces a file, whole or not at all.
pub(super) fn write_atomically(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let mut fresh = temporary(path.parent().unwrap_or(Path::new("/")))?;
    fresh.write_all(text)?;
    finish(fresh, path, mode)
}

/// A file that no runtime takes for a configuration.
fn temporary(directory: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".fairlead-")
        .suffix(".tmp")
        .tempfile_in(directory)
}

fn finish(fresh: NamedTempFile, path: &Path, mode: u32) -> io::Result<()> {
    let file = fresh.as_file();
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    fresh.persist(path).map(drop).map_err(|error| error.error)
}

/// Both files have the same bytes.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    const BLOCK: usize = 1 << 16;
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    loop {
        let (mut left, mut right) = (Vec::new(), Vec::new());
        let most = u64::try_from(BLOCK).unwrap_or(u64::MAX);
        let length = (&mut one).take(most).read_to_end(&mut left)?;
        let _length = (&mut other).take(most).read_to_end(&mut right)?;
        if left != right || length == 0 {
            return Ok(left == right);
        }
    }
}

fn failed(step: &'static str, path: &Path) -> impl Fn(io::Error) -> InstallError + use<> {
    let path = path.to_owned();
    move |source| InstallError::File {
        step,
        path: path.clone(),
        source,
    }
}

fn wrong(path: &Path) -> impl Fn(ConfigurationError) -> InstallError + use<> {
    let path = path.to_owned();
    move |error| InstallError::Configuration {
        path: path.clone(),
        reason: error.to_string(),
    }
}
