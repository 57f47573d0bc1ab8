//! The seeds, and bytes that are almost those.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::TARGETS;
use crate::proxy::tests::noise::Noise;

/// How many changes of each seed are tried. A fuzzer tries more, and better ones.
const CHANGES: usize = 40;

fn seeds_of(name: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/seeds")
        .join(name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// Runs the target over its seeds and what is almost one of them.
fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.expect("a target of this name");
    let mut noise = Noise::new(11);
    for file in seeds_of(target.name) {
        let seed = std::fs::read(&file).unwrap();
        println!("{}", file.display());
        (target.run)(&seed);
        for _ in 0..CHANGES {
            let mut bytes = seed.clone();
            noise.spoil(&mut bytes);
            println!("{}", bytes.escape_ascii());
            (target.run)(&bytes);
        }
    }
}

#[test]
fn every_target_has_seeds_and_every_seed_a_target() {
    let folders = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds"));
    let names = folders.unwrap().map(|folder| folder.unwrap().file_name());
    let names: BTreeSet<String> = names.map(|name| name.into_string().unwrap()).collect();
    let targets = TARGETS
        .iter()
        .map(|target| target.name.to_owned())
        .collect();
    assert_eq!(names, targets);
    assert!(names.iter().all(|name| !seeds_of(name).is_empty()));
}

#[test]
fn authority() {
    replay("authority");
}

#[test]
fn certificate() {
    replay("certificate");
}

#[test]
fn connect() {
    replay("connect");
}

#[test]
fn deadline() {
    replay("deadline");
}

#[test]
fn external() {
    replay("external");
}

#[test]
fn first_bytes() {
    replay("first_bytes");
}

#[test]
fn framing() {
    replay("framing");
}

#[test]
fn grpc_web() {
    replay("grpc_web");
}

#[test]
fn headers() {
    replay("headers");
}

#[test]
fn http2_bytes() {
    replay("http2_bytes");
}

#[test]
fn http2_frames() {
    replay("http2_frames");
}

#[test]
fn jwt() {
    replay("jwt");
}

#[test]
fn key_set() {
    replay("key_set");
}

#[test]
fn manifests() {
    replay("manifests");
}

#[test]
fn path() {
    replay("path");
}

#[test]
fn policies() {
    replay("policies");
}

#[test]
fn server() {
    replay("server");
}

#[test]
fn session() {
    replay("session");
}

#[test]
fn spiffe_id() {
    replay("spiffe_id");
}

#[test]
fn tokens() {
    replay("tokens");
}
