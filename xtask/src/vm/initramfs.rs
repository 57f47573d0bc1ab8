//! The guest's first file system: busybox, kernel modules and three scripts, as a cpio archive.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::Job;
use super::kernel::Kernel;
use super::modules::Modules;

/// What Debian has as modules and the guest needs: its root file system, then what tests use.
/// Everything is loaded at boot, as there is no module loader later.
const MODULES: &[&str] = &[
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "veth",
    "bridge",
    "dummy",
    "inet_diag",
    "tcp_diag",
    "unix_diag",
    "netlink_diag",
    "sch_fq",
    "sch_netem",
    "tcp_bbr",
    "tls",
];

/// Builds the archive.
pub(super) fn build(busybox: &Path, kernel: &Kernel, job: &Job) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in [
        "bin", "dev", "modules", "host", "layer", "proc", "root", "sys",
    ] {
        archive.directory(directory);
    }
    let busybox =
        fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    archive.executable("bin/busybox", &busybox);
    let mut order = String::new();
    for module in Modules::index(&kernel.modules)?.in_load_order(MODULES)? {
        archive.executable(&format!("modules/{}.ko", module.name), &module.content);
        order.push_str(&module.name);
        order.push('\n');
    }
    archive.executable("modules/order", order.as_bytes());
    archive.executable("init", include_bytes!("init.sh"));
    archive.executable("guest.sh", include_bytes!("guest.sh"));
    archive.executable("job.sh", &script(job));
    Ok(archive.finish())
}

/// The job as a shell script.
fn script(job: &Job) -> Vec<u8> {
    let mut script = b"ulimit -n 1048576\n".to_vec();
    for (name, value) in &job.environment {
        script.extend_from_slice(b"export ");
        script.extend_from_slice(name.as_bytes());
        script.push(b'=');
        script.extend_from_slice(&quoted(value));
        script.push(b'\n');
    }
    script.extend_from_slice(b"cd ");
    script.extend_from_slice(&quoted(job.directory.as_os_str()));
    script.extend_from_slice(format!(" && exec timeout {}", job.timeout.as_secs()).as_bytes());
    for word in &job.command {
        script.push(b' ');
        script.extend_from_slice(&quoted(word));
    }
    script.push(b'\n');
    script
}

/// The word in single quotes, as a shell reads it back.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        if *byte == b'\'' {
            quoted.extend_from_slice(br"'\''");
        } else {
            quoted.push(*byte);
        }
    }
    quoted.push(b'\'');
    quoted
}

/// A cpio archive in the only format that the kernel reads: "newc",
/// <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: usize,
}

impl Archive {
    fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn executable(&mut self, name: &str, content: &[u8]) {
        self.entry(name, 0o100_755, content);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: usize, content: &[u8]) {
        self.entries += 1;
        let (uid, gid, links, mtime, device) = (0, 0, 1, 0, 0);
        let fields = [
            self.entries,
            mode,
            uid,
            gid,
            links,
            mtime,
            content.len(),
            device,
            device,
            device,
            device,
            name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Names and contents start at multiples of four bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::{Archive, quoted};

    #[test]
    fn entries_are_padded_and_ended() {
        let mut archive = Archive::default();
        archive.executable("ab", b"content");
        let bytes = archive.finish();
        assert!(bytes.starts_with(b"07070100000001000081ed"));
        assert_eq!(&bytes[110..116], b"ab\0\0\0\0".get(..6).unwrap());
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted(OsStr::new("it's")), br"'it'\''s'");
    }
}
