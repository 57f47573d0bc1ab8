//! Go: the `OpenAPI` definitions that the source package leaves out, then the server.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Recipe, Tree, remove};
use crate::ui;

/// How the source calls itself in its imports.
const ROOT: &str = "k8s.io/kubernetes";

/// Packages with this mark are described by `OpenAPI`.
const MARK: &str = "+k8s:openapi-gen=";

/// Where such packages are; `vendor/k8s.io` leads to `staging/`.
const MARKED: [&str; 2] = ["pkg", "vendor/k8s.io"];

/// Packages of the generators themselves and of examples.
const UNWANTED: [&str; 4] = [
    "code-generator",
    "gengo",
    "kube-openapi",
    "sample-apiserver",
];

/// Compiles the server into `output`. Compiled packages are kept in `cache`.
pub(super) fn run(tree: &Tree, cache: &Path, output: &Path, recipe: &Recipe) -> Result<()> {
    replace_library(tree, recipe)?;
    let generator = tree.go.join("openapi-gen");
    ui::step(
        "compile the generator of OpenAPI definitions",
        go(tree, cache, recipe)
            .args(["build", "-o"])
            .arg(&generator)
            .arg("./vendor/k8s.io/kube-openapi/cmd/openapi-gen"),
    )?;
    ui::step(
        "generate OpenAPI definitions",
        environment(Command::new(&generator), tree, cache, recipe)
            .args(["--logtostderr", "-O", "zz_generated.openapi"])
            .args(["-i", &marked_packages(&tree.source)?])
            .args(["-p", &format!("{ROOT}/pkg/generated/openapi")])
            .args([
                "-h",
                "vendor/k8s.io/code-generator/hack/boilerplate.go.txt",
                "-r",
                "violations",
            ]),
    )?;
    ui::step(
        &format!("compile {} (about four minutes)", super::title()),
        go(tree, cache, recipe)
            .args(["build", "-trimpath", "-ldflags", &linker_flags(recipe)?])
            .arg("-o")
            .arg(output)
            .arg("./cmd/kube-apiserver"),
    )
}

fn replace_library(tree: &Tree, recipe: &Recipe) -> Result<()> {
    let vendored = tree.source.join("vendor").join(recipe.replaced);
    let packaged = tree
        .system
        .join("usr/share/gocode/src")
        .join(recipe.replaced);
    remove(&vendored)?;
    fs::rename(&packaged, &vendored)
        .with_context(|| format!("Debian's package has no {}", recipe.replaced))
}

fn go(tree: &Tree, cache: &Path, recipe: &Recipe) -> Command {
    let program = tree
        .system
        .join("usr/lib")
        .join(recipe.go)
        .join("bin")
        .join("go");
    environment(Command::new(program), tree, cache, recipe)
}

/// In the source, with this Go alone and without a network.
fn environment(mut command: Command, tree: &Tree, cache: &Path, recipe: &Recipe) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GO") {
            let _: &mut Command = command.env_remove(name);
        }
    }
    let _: &mut Command = command
        .current_dir(&tree.source)
        .env("GOROOT", tree.system.join("usr/lib").join(recipe.go))
        .env("GOPATH", &tree.go)
        .env("GOCACHE", cache)
        .env("GOENV", "off")
        // As the source's own scripts compile it: everything is under `vendor/`.
        .env("GO111MODULE", "off")
        .env("CGO_ENABLED", "0");
    command
}

/// Smaller, and with the version that clients ask for.
fn linker_flags(recipe: &Recipe) -> Result<String> {
    let [major, minor, _] = recipe.version;
    let full = format!("v{}", recipe.version.join("."));
    let mut flags = "-s -w".to_owned();
    for package in ["client-go/pkg/version", "component-base/version"] {
        let variables = [
            ("gitVersion", full.as_str()),
            ("gitMajor", major),
            ("gitMinor", minor),
        ];
        for (variable, value) in variables {
            write!(
                flags,
                " -X {ROOT}/vendor/k8s.io/{package}.{variable}={value}"
            )?;
        }
    }
    Ok(flags)
}

/// The packages to describe, as the generator takes them.
fn marked_packages(source: &Path) -> Result<String> {
    let mut found = BTreeSet::new();
    for directory in MARKED {
        collect(source, &PathBuf::from(directory), &mut found)?;
    }
    ensure!(
        !found.is_empty(),
        "no package of the source has {MARK}: it is another version than the recipe's"
    );
    let names: Vec<String> = found
        .iter()
        .map(|package| format!("{ROOT}/{}", package.display()))
        .collect();
    Ok(names.join(","))
}

fn collect(source: &Path, directory: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(source.join(directory))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let path = directory.join(&name);
        // Follows the links of `vendor/k8s.io`.
        if fs::metadata(source.join(&path)).is_ok_and(|data| data.is_dir()) {
            if name != "testdata" && !UNWANTED.contains(&name.as_str()) {
                collect(source, &path, found)?;
            }
        } else if is_marked(&source.join(&path), &name)? {
            found.insert(directory.to_owned());
        }
    }
    Ok(())
}

fn is_marked(file: &Path, name: &str) -> Result<bool> {
    if file.extension() != Some(OsStr::new("go")) || name.ends_with("_test.go") {
        return Ok(false);
    }
    Ok(String::from_utf8_lossy(&fs::read(file)?).contains(MARK))
}
