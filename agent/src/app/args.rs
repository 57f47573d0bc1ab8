//! The flags of the processes that run: the agent and the certificate authority.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use tracing_subscriber::filter::EnvFilter;

use crate::cluster::kube::Access;
use crate::flow::AccessLogTo;

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceArg {
    /// The API server of Kubernetes.
    Kube,
    /// A directory of manifests.
    Directory(PathBuf),
}

impl FromStr for SourceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("dir:") {
            Some(path) if !path.is_empty() => Ok(Self::Directory(path.into())),
            None if text == "kube" => Ok(Self::Kube),
            _ => Err(
                "expected kube, the API server, or dir:PATH, a directory of manifests".to_owned(),
            ),
        }
    }
}

/// Where kubelet is, by which its probes are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KubeletArg {
    /// In this cgroup.
    Cgroup(PathBuf),
    /// Nowhere: nobody's connections are taken for probes.
    None,
}

impl FromStr for KubeletArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            path if path.starts_with('/') => Ok(Self::Cgroup(path.into())),
            _ => Err("expected the path of a cgroup, or none".to_owned()),
        }
    }
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogArg(pub AccessLogTo);

impl FromStr for AccessLogArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "stdout" => Ok(Self(AccessLogTo::Stdout)),
            path if path.starts_with('/') => Ok(Self(AccessLogTo::File(path.into()))),
            _ => Err("expected stdout, or the path of a file".to_owned()),
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, Args)]
pub struct LogArgs {
    /// How log lines look.
    #[arg(
        long,
        env = "FAIRLEAD_LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT"
    )]
    pub log_format: LogFormat,
    /// What is logged: a level, or levels by module such as `info,fairlead::proxy=debug`.
    #[arg(
        long,
        env = "FAIRLEAD_LOG_LEVEL",
        default_value = "info",
        value_name = "FILTER",
        value_parser = log_filter
    )]
    pub log_level: String,
}

/// Where the kernel side lives.
#[derive(Clone, Debug, Args)]
pub struct KernelArgs {
    /// The cgroup that holds the pods: connections of processes below it are seen. The
    /// kubelet's where it is not given, else the root of all.
    #[arg(long, env = "FAIRLEAD_CGROUP", value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Where the BPF file system is mounted.
    #[arg(
        long,
        env = "FAIRLEAD_BPFFS",
        default_value = "/sys/fs/bpf",
        value_name = "PATH"
    )]
    pub bpffs: PathBuf,
}

/// How the API server of Kubernetes is reached.
#[derive(Clone, Debug, Default, Args)]
pub struct KubeArgs {
    /// The kubeconfig to use, as kubectl's flag of this name.
    #[arg(long, env = "FAIRLEAD_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig to use; its current one where not given.
    #[arg(long, env = "FAIRLEAD_KUBE_CONTEXT", value_name = "NAME")]
    pub kube_context: Option<String>,
}

impl KubeArgs {
    /// The same for [`crate::cluster`].
    pub fn access(&self) -> Access {
        Access {
            kubeconfig: self.kubeconfig.clone(),
            context: self.kube_context.clone(),
        }
    }
}

/// The flags of `fairlead agent`.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// The name of this node, as in the pods' spec.nodeName.
    #[arg(long, env = "FAIRLEAD_NODE", value_name = "NAME")]
    pub node: String,
    /// Where the kernel side lives.
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// The cgroup of kubelet, whose probes reach pods also where plaintext is refused;
    /// `none`: they do not. That of the process named kubelet where it is not given.
    #[arg(long, env = "FAIRLEAD_KUBELET_CGROUP", value_name = "PATH|none")]
    pub kubelet_cgroup: Option<KubeletArg>,
    /// Where objects come from: kube, the API server (what a pod has by default), or
    /// dir:PATH, a directory of manifests; both watched.
    #[arg(long, env = "FAIRLEAD_SOURCE", value_name = "SOURCE")]
    pub source: Option<SourceArg>,
    /// How the API server is reached.
    #[command(flatten)]
    pub kube: KubeArgs,
    /// Blocks of addresses that Services may claim by spec.externalIPs; without it that
    /// field has no effect, since whoever writes Services may write any address there.
    #[arg(
        long,
        env = "FAIRLEAD_EXTERNAL_IPS",
        value_delimiter = ',',
        value_name = "CIDR,…"
    )]
    pub external_ips: Vec<IpNet>,
    /// Who signs certificates: https://HOST:PORT, or dir:PATH to sign here.
    #[arg(long, env = "FAIRLEAD_CA", value_name = "CA")]
    pub ca: String,
    /// The file with this node's token for the CA.
    #[arg(long, env = "FAIRLEAD_CA_TOKEN_FILE", value_name = "FILE")]
    pub ca_token_file: Option<PathBuf>,
    /// The roots that the CA's own certificate must chain to; followed. Where it is the
    /// bundle of the mesh, what changes in it counts for peers too.
    #[arg(long, env = "FAIRLEAD_CA_ROOT", value_name = "FILE")]
    pub ca_root: Option<PathBuf>,
    /// What the CA knows this cluster as; matters to istiod and istio-csr alone.
    #[arg(
        long,
        env = "FAIRLEAD_CLUSTER_ID",
        default_value = "Kubernetes",
        value_name = "ID"
    )]
    pub cluster_id: String,
    /// The trust domain of the mesh.
    #[arg(
        long,
        env = "FAIRLEAD_TRUST_DOMAIN",
        default_value = "cluster.local",
        value_name = "NAME"
    )]
    pub trust_domain: String,
    /// How long certificates last; they are renewed at half of it.
    #[arg(
        long,
        env = "FAIRLEAD_CERTIFICATE_TTL",
        default_value = "24h",
        value_parser = humantime::parse_duration,
        value_name = "TIME"
    )]
    pub certificate_ttl: Duration,
    /// Where the agent keeps its socket.
    #[arg(
        long,
        env = "FAIRLEAD_RUN_DIR",
        default_value = "/run/fairlead",
        value_name = "PATH"
    )]
    pub run_dir: PathBuf,
    /// Where the container runtime looks for CNI plugins: the plugin is copied there.
    #[arg(long, env = "FAIRLEAD_CNI_BIN_DIR", value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// The container runtime's network configurations: the plugin is added to the one that
    /// is in force, and kept in it.
    #[arg(long, env = "FAIRLEAD_CNI_CONF_DIR", value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Remove the taint fairlead.dev/agent-not-ready from this node when the agent is ready.
    #[arg(long, env = "FAIRLEAD_REMOVE_TAINT")]
    pub remove_taint: bool,
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(
        long,
        env = "FAIRLEAD_METRICS_ADDR",
        default_value = "0.0.0.0:15020",
        value_name = "ADDR"
    )]
    pub metrics_addr: SocketAddr,
    /// How many ended connections `fairlead flows` can look back on, and how many requests.
    #[arg(
        long,
        env = "FAIRLEAD_FLOWS_KEPT",
        default_value_t = 10_000,
        value_name = "N"
    )]
    pub flows_kept: usize,
    /// Headers whose values `fairlead tap` never shows, beside those of credentials.
    #[arg(
        long,
        env = "FAIRLEAD_TAP_REDACT",
        value_delimiter = ',',
        value_name = "HEADER,…"
    )]
    pub tap_redact: Vec<String>,
    /// Where the access log goes, of which MeshPolicies say what is in it: stdout, or a file,
    /// which is made anew where it was moved away.
    #[arg(
        long,
        env = "FAIRLEAD_ACCESS_LOG",
        default_value = "stdout",
        value_name = "stdout|FILE"
    )]
    pub access_log: AccessLogArg,
    /// How many threads carry connections; as many as there are cores where not given.
    #[arg(long, env = "FAIRLEAD_WORKERS", value_name = "N")]
    pub workers: Option<usize>,
    /// How many connections one pod may have open at a time; further ones are reset.
    #[arg(
        long,
        env = "FAIRLEAD_MAX_CONNECTIONS_PER_POD",
        default_value_t = 32_768,
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "N"
    )]
    pub max_connections_per_pod: u32,
    /// How many requests one pod may have in flight at a time; further ones are answered
    /// 503, or `RESOURCE_EXHAUSTED`.
    #[arg(
        long,
        env = "FAIRLEAD_MAX_REQUESTS_PER_POD",
        default_value_t = 32_768,
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "N"
    )]
    pub max_requests_per_pod: u32,
    /// How long the connections of one pod have a thread while other pods wait for it; 0s:
    /// as long as they like, and `fairlead top` shows no times.
    #[arg(
        long,
        env = "FAIRLEAD_POD_TURN",
        default_value = "200us",
        value_parser = humantime::parse_duration,
        value_name = "TIME"
    )]
    pub pod_turn: Duration,
    /// Networks of peers that are no pods of this cluster, such as gateways: from there a
    /// certificate is believed by itself. From elsewhere only with the address of its pod.
    #[arg(
        long,
        env = "FAIRLEAD_GATEWAY_CIDRS",
        value_delimiter = ',',
        value_name = "CIDR,…"
    )]
    pub gateway_cidrs: Vec<IpNet>,
    /// Networks in which keys of tokens (jwksUri) may be fetched, though an address is the
    /// node's or the cloud's own, or a pod's or Service's that is not asked by the Service's
    /// name: whoever writes policies gets the agent to ask there.
    #[arg(
        long,
        env = "FAIRLEAD_JWKS_CIDRS",
        value_delimiter = ',',
        value_name = "CIDR,…"
    )]
    pub jwks_cidrs: Vec<IpNet>,
    /// Take over from an agent that runs on this node already, instead of refusing to
    /// start: it lets go once all pods are enrolled here, and must be stopped then.
    #[arg(long, env = "FAIRLEAD_REPLACE")]
    pub replace: bool,
    /// How long open connections may go on after the agent was asked to stop, or their
    /// pod left the mesh.
    #[arg(
        long,
        env = "FAIRLEAD_DRAIN",
        default_value = "5s",
        value_parser = humantime::parse_duration,
        value_name = "TIME"
    )]
    pub drain: Duration,
    /// What is logged, and how.
    #[command(flatten)]
    pub log: LogArgs,
}

fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::SourceArg;

    #[test]
    fn sources() {
        assert_eq!("kube".parse(), Ok(SourceArg::Kube));
        let directory = SourceArg::Directory("/a:b".into());
        assert_eq!("dir:/a:b".parse(), Ok(directory));
        for text in ["", "dir:", "kube:x", "/a", "file:/a"] {
            assert!(text.parse::<SourceArg>().is_err(), "{text}");
        }
    }
}
