//! Embeds the kernel's programs into the agent.
//!
//! `cargo xtask bpf` builds them into `<target>/bpf/`, with the hash of their
//! sources. An object that is there and belongs to these sources is embedded. Else
//! nothing is, and the agent says so when it is started: building the agent needs
//! neither the toolchain of the kernel's programs nor anything else.

use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "source_hash.rs"]
mod source_hash;

use source_hash::{SOURCES, source_hash};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo::rerun-if-changed=source_hash.rs");
    let target = target_directory(&out);
    let object = target.join("bpf/fairlead.bpf.o");
    let recorded = target.join("bpf/fairlead.bpf.o.sources");
    // The hash is written last. A file that is not there makes cargo run this
    // script at each build, so that a new object is seen.
    println!("cargo::rerun-if-changed={}", recorded.display());
    let embedded = match fs::read_to_string(&recorded) {
        Err(_) => Err("they have not been built"),
        Ok(_) if !object.is_file() => Err("they have not been built"),
        Ok(hash) if source_hash(&root).is_ok_and(|now| now == hash.trim()) => Ok(object),
        Ok(_) => Err("their sources have changed since they were built"),
    };
    let expression = match embedded {
        Ok(path) => {
            let copy = out.join("fairlead.bpf.o");
            fs::copy(&path, &copy).expect("the object can be copied into OUT_DIR");
            format!("Ok(aya::include_bytes_aligned!(\"{}\"))", copy.display())
        }
        Err(reason) => format!("Err({reason:?})"),
    };
    fs::write(out.join("object.in.rs"), expression).expect("OUT_DIR is writable");
}

/// `<target>` of `<target>/[<triple>/]<profile>/build/<package>/out`: the nearest
/// one above that has the programs, else the one that a plain build has.
fn target_directory(out: &Path) -> PathBuf {
    let mut above = out.ancestors().skip(4);
    let nearest = above.next().unwrap_or(out);
    let with_triple = above.next().filter(|path| path.join("bpf").is_dir());
    if nearest.join("bpf").is_dir() {
        nearest.to_owned()
    } else {
        with_triple.unwrap_or(nearest).to_owned()
    }
}
