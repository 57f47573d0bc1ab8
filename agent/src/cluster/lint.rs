//! `fairlead lint`: what the mesh would say of manifests, without an agent or a cluster.
//!
//! What an API server would refuse by the schemas of our kinds, the conversion refuses
//! too, by the same schemas, so that its problems are all verdicts in one.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::convert::{Converter, NetnsFrom};
use super::dir;
use super::files::{self, Content, Files};
use super::manifest;
use crate::model::TrustDomain;
use crate::state::{PolicyScope, Problem, Snapshot, Writer};

/// Stands for what comes by standard input.
const STDIN: &str = "-";

/// What is looked at, and how.
#[derive(Clone, Debug, Default)]
pub struct LintOptions {
    /// Files, directories of files, or `-` for standard input.
    pub paths: Vec<PathBuf>,
    /// They are not the whole cluster: a Service that a policy names may be elsewhere.
    pub partial: bool,
    /// Objects that the mesh has no use for are told of, too.
    pub ignored: bool,
}

/// What is said of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// Where, and what.
    #[serde(flatten)]
    pub problem: Problem,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// To be mended.
    Problem,
    /// The mesh has no use for the object.
    Ignored,
}

/// Everything that is to be said of the manifests, in the order of files and lines.
pub fn lint(options: &LintOptions, stdin: impl Read) -> Vec<Finding> {
    let (contents, unreadable) = contents(&options.paths, stdin);
    let mut files = Files::new(trust_domain());
    let mut writer = Writer::new();
    for (name, content) in &contents {
        for change in files.update(name, content.clone()) {
            writer.apply(change);
        }
    }
    let snapshot = writer.publish().unwrap_or_default();
    let problems = snapshot.problems.iter();
    let problems = problems.filter(|it| !(options.partial && is_elsewhere(&snapshot, it)));
    let problems = unreadable.into_iter().chain(problems.cloned());
    let ignored = contents.iter().filter(|_| options.ignored);
    let ignored = ignored.flat_map(|(name, content)| ignored_in(name, content));
    let findings = problems.map(|problem| (Level::Problem, problem));
    let findings = findings.chain(ignored.map(|problem| (Level::Ignored, problem)));
    let mut findings: Vec<Finding> = findings
        .map(|(level, problem)| Finding { level, problem })
        .collect();
    findings.sort_by(|one, other| one.problem.cmp(&other.problem));
    findings
}

fn trust_domain() -> TrustDomain {
    TrustDomain("cluster.local".into())
}

/// All files by name, and the paths that can't be read.
fn contents(
    paths: &[PathBuf],
    mut stdin: impl Read,
) -> (BTreeMap<Arc<str>, Content>, Vec<Problem>) {
    let mut contents = BTreeMap::new();
    let mut unreadable = Vec::new();
    for path in paths {
        let found = if path.as_os_str() == STDIN {
            read_stdin(&mut stdin).map(|content| vec![(STDIN.into(), content)])
        } else {
            read(path)
        };
        match found {
            Ok(found) => contents.extend(found),
            Err(error) => unreadable.push(Problem {
                file: path.display().to_string(),
                message: error.to_string(),
                ..Problem::default()
            }),
        }
    }
    (contents, unreadable)
}

fn read_stdin(stdin: &mut impl Read) -> io::Result<Content> {
    let mut bytes = Vec::new();
    stdin.read_to_end(&mut bytes)?;
    Ok(dir::content(bytes))
}

fn read(path: &Path) -> io::Result<Vec<(Arc<str>, Content)>> {
    let files = dir::list(path)?.into_iter();
    let read = files.map(|(_name, path)| {
        let content =
            dir::read(&path).unwrap_or_else(|error| Content::Unreadable(error.to_string()));
        (path.display().to_string().into(), content)
    });
    Ok(read.collect())
}

/// The problem is only that a policy names a Service which is not among the files.
fn is_elsewhere(snapshot: &Snapshot, problem: &Problem) -> bool {
    let authorization = snapshot.authorization_policies.iter();
    let authorization = authorization.map(|(name, it)| ("AuthorizationPolicy", name, &it.scope));
    let mesh = snapshot.mesh_policies.iter();
    let mesh = mesh.map(|(name, it)| ("MeshPolicy", name, &it.scope));
    let mut policies = authorization.chain(mesh);
    let mut traffic = snapshot.traffic_policies.values();
    let of_traffic = traffic.any(|policy| {
        let of_it = problem.kind == "TrafficPolicy" && problem.object == policy.name.to_string();
        let mut missing = snapshot.missing_traffic_targets(policy);
        of_it && missing.any(|it| problem.field == it.field())
    });
    if of_traffic {
        return true;
    }
    let names = |scope: &PolicyScope| matches!(scope, PolicyScope::Services(_));
    policies.any(|(kind, name, scope)| {
        let of_it = problem.kind == kind && problem.object == name.to_string() && names(scope);
        let mut missing = snapshot.missing_targets(&name.namespace, scope);
        of_it && missing.any(|(index, _)| problem.field == format!("spec.targetRefs[{index}].name"))
    })
}

/// Objects of kinds that the mesh has no use for.
fn ignored_in(file: &Arc<str>, content: &Content) -> Vec<Problem> {
    let Content::Text(text) = content else {
        return Vec::new();
    };
    let mut conversion = Converter::new(trust_domain(), NetnsFrom::Annotation);
    let documents = manifest::documents(text, files::format(file)).into_iter();
    let objects = documents.flat_map(|document| document.objects().unwrap_or_default());
    objects
        .filter_map(|raw| {
            let converted = conversion.value(&raw.value);
            let ignored = converted.key.is_none() && converted.problems.is_empty();
            ignored.then(|| Problem {
                file: file.to_string(),
                line: raw.line,
                kind: converted.kind.to_string(),
                object: converted.object_name(),
                field: String::new(),
                message: "is ignored: the mesh has no use for this kind".to_owned(),
            })
        })
        .collect()
}
