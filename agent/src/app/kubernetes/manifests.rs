//! The manifests of `deploy/`, as they are there when this program is built.

use anyhow::{Context as _, ensure};
use serde::Deserialize as _;
use serde_json::Value;

/// In the order in which they are applied: kinds before objects, a namespace before what
/// is in it.
const FILES: &[(&str, &str)] = &[
    (
        "crds/authorizationpolicies.yaml",
        include_str!("../../../../deploy/crds/authorizationpolicies.yaml"),
    ),
    (
        "crds/meshpolicies.yaml",
        include_str!("../../../../deploy/crds/meshpolicies.yaml"),
    ),
    (
        "crds/trafficpolicies.yaml",
        include_str!("../../../../deploy/crds/trafficpolicies.yaml"),
    ),
    (
        "base/namespace.yaml",
        include_str!("../../../../deploy/base/namespace.yaml"),
    ),
    (
        "base/priority.yaml",
        include_str!("../../../../deploy/base/priority.yaml"),
    ),
    (
        "base/agent-rbac.yaml",
        include_str!("../../../../deploy/base/agent-rbac.yaml"),
    ),
    (
        "base/ca-rbac.yaml",
        include_str!("../../../../deploy/base/ca-rbac.yaml"),
    ),
    (
        "base/ca.yaml",
        include_str!("../../../../deploy/base/ca.yaml"),
    ),
    (
        "base/agent.yaml",
        include_str!("../../../../deploy/base/agent.yaml"),
    ),
];
const CLEANUP: (&str, &str) = (
    "cleanup/cleanup.yaml",
    include_str!("../../../../deploy/cleanup/cleanup.yaml"),
);

/// What of the manifests can be had otherwise. Fields that are not given are as in
/// `deploy/`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The image of agents and authority.
    pub image: Option<String>,
    /// The trust domain of the mesh.
    pub trust_domain: Option<String>,
    /// Where the nodes keep CNI plugins.
    pub cni_bin_dir: Option<String>,
    /// Where the nodes keep the configuration of CNI.
    pub cni_conf_dir: Option<String>,
    /// Do without the CNI plugin.
    pub without_cni: bool,
}

/// Every object, with the settings in it.
pub fn render(settings: &Settings) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for (file, text) in FILES {
        objects.extend(parse(file, text)?);
    }
    for object in &mut objects {
        settings.put_into(object)?;
    }
    Ok(objects)
}

/// The DaemonSet that removes every trace from the nodes.
pub(super) fn cleanup(settings: &Settings) -> anyhow::Result<Vec<Value>> {
    let mut objects = parse(CLEANUP.0, CLEANUP.1)?;
    for object in &mut objects {
        settings.put_into(object)?;
    }
    Ok(objects)
}

fn parse(file: &str, text: &str) -> anyhow::Result<Vec<Value>> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let values = documents.map(Value::deserialize);
    let values: Result<Vec<Value>, _> = values.collect();
    let values = values.with_context(|| format!("deploy/{file}"))?;
    Ok(values
        .into_iter()
        .filter(|value| !value.is_null())
        .collect())
}

impl Settings {
    /// The settings of an installation, by its agents' DaemonSet.
    pub(super) fn of_live(agents: &Value) -> Self {
        let container = agents.pointer("/spec/template/spec/containers/0");
        let arguments = container.and_then(|it| it["args"].as_array());
        let flag = |name: &str| {
            let found = arguments.into_iter().flatten().filter_map(Value::as_str);
            found
                .filter_map(|argument| argument.strip_prefix(name)?.strip_prefix('='))
                .map(str::to_owned)
                .next()
        };
        let directory = |name: &str| {
            let volumes = agents
                .pointer("/spec/template/spec/volumes")
                .and_then(Value::as_array);
            let volume = volumes.into_iter().flatten().find(|it| it["name"] == name);
            let path = volume.and_then(|it| it.pointer("/hostPath/path"));
            path.and_then(Value::as_str).map(str::to_owned)
        };
        Self {
            image: container
                .and_then(|it| it["image"].as_str())
                .map(str::to_owned),
            trust_domain: flag("--trust-domain"),
            cni_bin_dir: directory("cni-bin"),
            cni_conf_dir: directory("cni-conf"),
            without_cni: flag("--cni-bin-dir").is_none(),
        }
    }

    /// These, and those of `other` where these say nothing.
    #[must_use]
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            image: self.image.or(other.image),
            trust_domain: self.trust_domain.or(other.trust_domain),
            cni_bin_dir: self.cni_bin_dir.or(other.cni_bin_dir),
            cni_conf_dir: self.cni_conf_dir.or(other.cni_conf_dir),
            without_cni: self.without_cni || other.without_cni,
        }
    }

    fn put_into(&self, object: &mut Value) -> anyhow::Result<()> {
        let Some(pod) = object.pointer_mut("/spec/template/spec") else {
            return Ok(());
        };
        for list in ["initContainers", "containers"] {
            let containers = pod[list].as_array_mut();
            for container in containers.into_iter().flatten() {
                self.put_into_container(container)?;
            }
        }
        if let Some(volumes) = pod["volumes"].as_array_mut() {
            self.put_into_volumes(volumes);
        }
        Ok(())
    }

    fn put_into_container(&self, container: &mut Value) -> anyhow::Result<()> {
        if let Some(image) = &self.image {
            container["image"] = image.as_str().into();
        }
        let arguments = container["args"].as_array_mut();
        let arguments = arguments.context("a container without args")?;
        if let Some(domain) = &self.trust_domain {
            ensure!(is_domain(domain), "{domain:?} is no trust domain");
            for argument in arguments.iter_mut() {
                if argument
                    .as_str()
                    .is_some_and(|it| it.starts_with("--trust-domain="))
                {
                    *argument = format!("--trust-domain={domain}").into();
                }
            }
        }
        if self.without_cni {
            arguments.retain(|it| !it.as_str().is_some_and(|it| it.starts_with("--cni-")));
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.retain(|mount| !is_cni(mount));
            }
        }
        Ok(())
    }

    fn put_into_volumes(&self, volumes: &mut Vec<Value>) {
        if self.without_cni {
            volumes.retain(|volume| !is_cni(volume));
        }
        for volume in volumes {
            let path = match volume["name"].as_str() {
                Some("cni-bin") => &self.cni_bin_dir,
                Some("cni-conf") => &self.cni_conf_dir,
                _ => &None,
            };
            if let Some(path) = path {
                volume["hostPath"]["path"] = path.as_str().into();
            }
        }
    }
}

fn is_cni(named: &Value) -> bool {
    named["name"]
        .as_str()
        .is_some_and(|name| name.starts_with("cni-"))
}

fn is_domain(text: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    !text.is_empty() && text.len() <= 255 && text.chars().all(good)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::{CLEANUP, FILES, Settings, cleanup, render};
    use crate::cluster::kube::Place;

    fn agents(settings: &Settings) -> Value {
        let all = render(settings).unwrap();
        let found = all.into_iter().find(|it| it["kind"] == "DaemonSet");
        found.unwrap()
    }

    #[test]
    fn every_file_of_the_kustomization_is_here() {
        let text = include_str!("../../../../deploy/kustomization.yaml");
        let kustomization: Value = serde_yaml_ng::from_str(text).unwrap();
        let listed = kustomization["resources"].as_array().unwrap().iter();
        let listed: BTreeSet<_> = listed.map(|it| it.as_str().unwrap()).collect();
        let here: BTreeSet<_> = FILES.iter().map(|(file, _)| *file).collect();
        assert_eq!(here, listed);
    }

    #[test]
    fn every_object_has_a_place_of_its_own() {
        let objects = render(&Settings::default()).unwrap();
        let places: BTreeSet<String> = objects
            .iter()
            .map(|it| Place::of(it).unwrap().to_string())
            .collect();
        assert_eq!(places.len(), objects.len());
    }

    #[test]
    fn the_image_is_of_this_version() {
        let expected = format!("ghcr.io/fairlead/fairlead:{}", env!("CARGO_PKG_VERSION"));
        let texts = FILES.iter().chain([&CLEANUP]).map(|(_, text)| text);
        let images: BTreeSet<&str> = texts
            .flat_map(|text| text.lines())
            .filter_map(|line| line.trim().strip_prefix("image: "))
            .collect();
        assert_eq!(images, [expected.as_str()].into());
    }

    #[test]
    fn settings_reach_every_container_and_can_be_read_back() {
        let settings = Settings {
            image: Some("registry.example/f:2".to_owned()),
            trust_domain: Some("example.org".to_owned()),
            cni_bin_dir: Some("/var/lib/cni/bin".to_owned()),
            cni_conf_dir: Some("/var/lib/cni/net.d".to_owned()),
            without_cni: false,
        };
        assert_eq!(Settings::of_live(&agents(&settings)), settings);
        let all = render(&settings).unwrap();
        let text = serde_json::to_string(&all).unwrap();
        assert!(!text.contains("ghcr.io"), "{text}");
        assert_eq!(text.matches("--trust-domain=example.org").count(), 2);
        let text = serde_json::to_string(&cleanup(&settings).unwrap()).unwrap();
        assert!(text.contains("/var/lib/cni/net.d") && !text.contains("ghcr.io"));
    }

    #[test]
    fn nothing_of_cni_is_left_without_it() {
        let settings = Settings {
            without_cni: true,
            ..Settings::default()
        };
        let live = agents(&settings);
        assert!(!live.to_string().contains("cni"), "{live}");
        assert!(Settings::of_live(&live).without_cni);
    }

    #[test]
    fn what_is_not_given_stays_as_it_was_installed() {
        let live = Settings {
            image: Some("a".to_owned()),
            trust_domain: Some("b".to_owned()),
            ..Settings::default()
        };
        let given = Settings {
            image: Some("c".to_owned()),
            ..Settings::default()
        };
        let both = given.or(live);
        assert_eq!(both.image.as_deref(), Some("c"));
        assert_eq!(both.trust_domain.as_deref(), Some("b"));
    }

    #[test]
    fn a_trust_domain_cannot_bring_flags_along() {
        let settings = Settings {
            trust_domain: Some("a --x".to_owned()),
            ..Settings::default()
        };
        assert!(render(&settings).is_err());
    }
}
