//! The flags of the certificate authority.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::args::{KubeArgs, LogArgs, SourceArg};
use crate::model::NamespacedName;

/// Where the CA's key and certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootArg {
    /// A directory, written as `dir:PATH`.
    Directory(PathBuf),
    /// A Secret, written as `secret:NAMESPACE/NAME`.
    Secret(NamespacedName),
}

impl FromStr for RootArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Directory(path.into())),
            Some(("secret", name)) => object_name(name).map(Self::Secret),
            _ => Err("expected dir:PATH or secret:NAMESPACE/NAME".to_owned()),
        }
    }
}

/// Where the roots are published, written as `configmap:NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleArg(pub NamespacedName);

impl FromStr for BundleArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("configmap", name)) => object_name(name).map(Self),
            _ => Err("expected configmap:NAMESPACE/NAME".to_owned()),
        }
    }
}

/// Who says which node a caller is, written as `kube` or `kube:AUDIENCE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticateArg {
    /// The audience that tokens must be for.
    pub audience: String,
}

impl FromStr for AuthenticateArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let audience = match text.split_once(':') {
            None if text == "kube" => "fairlead-ca",
            Some(("kube", audience)) if !audience.is_empty() => audience,
            _ => return Err("expected kube or kube:AUDIENCE".to_owned()),
        };
        Ok(Self {
            audience: audience.to_owned(),
        })
    }
}

fn object_name(text: &str) -> Result<NamespacedName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(NamespacedName::new(namespace, name))
        }
        _ => Err("expected NAMESPACE/NAME".to_owned()),
    }
}

/// The flags of `fairlead ca`.
#[derive(Clone, Debug, Args)]
pub struct CaArgs {
    /// Where objects come from: kube, the API server (what a pod has by default), or
    /// dir:PATH, a directory of manifests; both watched.
    #[arg(long, env = "FAIRLEAD_SOURCE", value_name = "SOURCE")]
    pub source: Option<SourceArg>,
    /// How the API server is reached.
    #[command(flatten)]
    pub kube: KubeArgs,
    /// The root's, or an intermediate's, key and certificate: dir:PATH or
    /// secret:NAMESPACE/NAME. Made where there is none.
    #[arg(long, env = "FAIRLEAD_ROOT", value_name = "ROOT")]
    pub root: RootArg,
    /// Where the roots are published for agents: configmap:NAMESPACE/NAME.
    #[arg(long, env = "FAIRLEAD_BUNDLE", value_name = "BUNDLE")]
    pub bundle: Option<BundleArg>,
    /// How long a new root is published before it signs: longer than any agent takes to
    /// read the bundle.
    #[arg(
        long,
        env = "FAIRLEAD_ROOT_OVERLAP",
        default_value = "1h",
        value_parser = humantime::parse_duration,
        value_name = "TIME"
    )]
    pub root_overlap: Duration,
    /// Where agents ask for certificates.
    #[arg(
        long,
        env = "FAIRLEAD_LISTEN",
        default_value = "0.0.0.0:15012",
        value_name = "ADDR"
    )]
    pub listen: SocketAddr,
    /// The directory with one token file for each node.
    #[arg(
        long,
        env = "FAIRLEAD_NODE_TOKENS",
        value_name = "DIR",
        required_unless_present = "authenticate",
        conflicts_with = "authenticate"
    )]
    pub node_tokens: Option<PathBuf>,
    /// Have the API server say whose a caller's token is: kube, or kube:AUDIENCE for an
    /// audience other than fairlead-ca.
    #[arg(long, env = "FAIRLEAD_AUTHENTICATE", value_name = "HOW")]
    pub authenticate: Option<AuthenticateArg>,
    /// The service account of the agents, the only one that is served with --authenticate.
    #[arg(
        long,
        env = "FAIRLEAD_AGENT_ACCOUNT",
        default_value = "fairlead-system/fairlead-agent",
        value_name = "NAMESPACE/NAME",
        value_parser = object_name
    )]
    pub agent_account: NamespacedName,
    /// A DNS name that agents reach this CA by; may be given several times.
    #[arg(
        long,
        env = "FAIRLEAD_SERVER_NAME",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub server_name: Vec<String>,
    /// Where /healthz and /readyz are served; nowhere where it is not given.
    #[arg(long, env = "FAIRLEAD_HEALTH_ADDR", value_name = "ADDR")]
    pub health_addr: Option<SocketAddr>,
    /// The trust domain of the mesh.
    #[arg(
        long,
        env = "FAIRLEAD_TRUST_DOMAIN",
        default_value = "cluster.local",
        value_name = "NAME"
    )]
    pub trust_domain: String,
    /// The longest that a certificate may last.
    #[arg(
        long,
        env = "FAIRLEAD_MAX_TTL",
        default_value = "24h",
        value_parser = humantime::parse_duration,
        value_name = "TIME"
    )]
    pub max_ttl: Duration,
    /// What is logged, and how.
    #[command(flatten)]
    pub log: LogArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check<T: FromStr<Err = String> + PartialEq + std::fmt::Debug>(
        good: &[(&str, T)],
        bad: &[&str],
    ) {
        for (text, expected) in good {
            assert_eq!(text.parse::<T>().as_ref(), Ok(expected));
        }
        for text in bad {
            assert!(text.parse::<T>().is_err(), "{text} was taken");
        }
    }

    #[test]
    fn takes_what_the_manifests_say() {
        let name = || NamespacedName::new("fairlead-system", "fairlead-ca");
        check(
            &[
                ("dir:/etc/ca", RootArg::Directory("/etc/ca".into())),
                (
                    "secret:fairlead-system/fairlead-ca",
                    RootArg::Secret(name()),
                ),
            ],
            &[
                "",
                "dir:",
                "secret:",
                "secret:fairlead-ca",
                "secret:/a",
                "secret:a/",
                "/etc/ca",
            ],
        );
        check(
            &[("configmap:fairlead-system/fairlead-ca", BundleArg(name()))],
            &["fairlead-system/fairlead-ca", "configmap:fairlead-ca"],
        );
        let audience = |audience: &str| AuthenticateArg {
            audience: audience.to_owned(),
        };
        check(
            &[
                ("kube", audience("fairlead-ca")),
                ("kube:istio-ca", audience("istio-ca")),
            ],
            &["", "kube:", "files", "kubernetes"],
        );
    }
}
