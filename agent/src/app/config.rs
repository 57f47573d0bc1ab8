//! Flags to the configuration of each module, once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ipnet::IpNet;

use super::args::{AgentArgs, KernelArgs, KubeArgs, KubeletArg, SourceArg};
use crate::cluster::kube::Access;
use crate::flow::{AccessLogTo, Redaction};
use crate::model::{NodeName, TrustDomain};
use crate::state::ObjectKind;
use crate::{cluster, cni, identity, proxy, redirect};

/// What the agent is to do.
#[derive(Debug)]
pub(super) struct AgentConfig {
    pub(super) node: NodeName,
    pub(super) trust_domain: TrustDomain,
    pub(super) source: cluster::Config,
    pub(super) external_ips: Vec<IpNet>,
    pub(super) identity: identity::Config,
    pub(super) proxy: proxy::Config,
    pub(super) redirect: redirect::Config,
    pub(super) run_dir: PathBuf,
    pub(super) cni: cni::Installer,
    /// How to reach the API server, to remove the taint from this node.
    pub(super) taint: Option<Access>,
    pub(super) metrics_addr: SocketAddr,
    pub(super) flows_kept: usize,
    pub(super) redaction: Redaction,
    pub(super) access_log: AccessLogTo,
    pub(super) drain: Duration,
    pub(super) replace: bool,
}

impl AgentConfig {
    /// Of the flags; fails where they make no sense together.
    pub(super) fn new(args: AgentArgs) -> anyhow::Result<Self> {
        let node = NodeName(args.node.as_str().into());
        let trust_domain = trust_domain(&args.trust_domain)?;
        let ca = args.ca.parse::<identity::CaAddress>();
        let ca = ca.map_err(|reason| anyhow::anyhow!("--ca {}: {reason}", args.ca))?;
        let config = Self {
            source: source(args.source.as_ref(), &args.kube, cluster::AGENT_KINDS)?,
            external_ips: args.external_ips,
            identity: identity::Config {
                trust_domain: trust_domain.clone(),
                ca,
                node: node.clone(),
                token_file: args.ca_token_file,
                ca_root: args.ca_root,
                cluster_id: args.cluster_id,
                ttl: args.certificate_ttl,
                clock: Arc::new(identity::SystemClock),
            },
            proxy: proxy::Config {
                workers: workers(args.workers)?,
                connections_per_pod: usize::try_from(args.max_connections_per_pod)?,
                requests_per_pod: usize::try_from(args.max_requests_per_pod)?,
                turn: (!args.pod_turn.is_zero()).then_some(args.pod_turn),
                gateways: args.gateway_cidrs,
                jwks_networks: args.jwks_cidrs,
                ..proxy::Config::recommended(node.clone())
            },
            redirect: redirect::Config {
                kubelet: match args.kubelet_cgroup {
                    None => redirect::Kubelet::Find,
                    Some(KubeletArg::Cgroup(path)) => redirect::Kubelet::At(path),
                    Some(KubeletArg::None) => redirect::Kubelet::Nowhere,
                },
                ..redirect_config(&args.kernel, node.clone())?
            },
            cni: cni::Installer {
                bin_dir: args.cni_bin_dir,
                conf_dir: args.cni_conf_dir,
                run_dir: args.run_dir.clone(),
            },
            taint: args.remove_taint.then(|| args.kube.access()),
            run_dir: args.run_dir,
            metrics_addr: args.metrics_addr,
            flows_kept: args.flows_kept,
            redaction: Redaction::new(&args.tap_redact),
            access_log: args.access_log.0,
            drain: args.drain,
            replace: args.replace,
            node,
            trust_domain,
        };
        tracing::info!(
            node = %config.node,
            source = %config.source,
            external_ips = ?config.external_ips,
            ca = ?config.identity.ca,
            trust_domain = %config.trust_domain,
            certificate_ttl = ?config.identity.ttl,
            cgroup = %config.redirect.cgroup.display(),
            bpffs = %config.redirect.bpffs.display(),
            kubelet = ?config.redirect.kubelet,
            run_dir = %config.run_dir.display(),
            cni_bin_dir = ?config.cni.bin_dir,
            cni_conf_dir = ?config.cni.conf_dir,
            remove_taint = config.taint.is_some(),
            metrics_addr = %config.metrics_addr,
            flows_kept = config.flows_kept,
            redaction = ?config.redaction,
            access_log = ?config.access_log,
            connections_per_pod = config.proxy.connections_per_pod,
            requests_per_pod = config.proxy.requests_per_pod,
            pod_turn = ?config.proxy.turn,
            gateway_cidrs = ?config.proxy.gateways,
            jwks_cidrs = ?config.proxy.jwks_networks,
            drain = ?config.drain,
            "configuration"
        );
        Ok(config)
    }
}

/// Threads for connections: as told, else one for each processor that this process may use.
fn workers(told: Option<usize>) -> anyhow::Result<usize> {
    match told {
        Some(count) => Ok(count.max(1)),
        None => Ok(std::thread::available_parallelism()?.get()),
    }
}

/// Where the kernel side lives.
pub(super) fn redirect_config(
    args: &KernelArgs,
    node: NodeName,
) -> anyhow::Result<redirect::Config> {
    let cgroup = match &args.cgroup {
        Some(path) => path.clone(),
        None => redirect::default_attach_point()?,
    };
    Ok(redirect::Config {
        node,
        cgroup,
        bpffs: args.bpffs.clone(),
        kubelet: redirect::Kubelet::Nowhere,
        debug: tracing::enabled!(tracing::Level::DEBUG),
    })
}

/// Where objects come from; in a pod the API server where nothing else is said.
pub(super) fn source(
    given: Option<&SourceArg>,
    kube: &KubeArgs,
    kinds: &'static [ObjectKind],
) -> anyhow::Result<cluster::Config> {
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    match given {
        Some(SourceArg::Directory(path)) => Ok(cluster::Config::Directory(path.clone())),
        None if !in_pod => anyhow::bail!(
            "give --source dir:PATH or --source kube: only in a pod of a cluster, where \
             KUBERNETES_SERVICE_HOST is set, it may be left out"
        ),
        Some(SourceArg::Kube) | None => Ok(cluster::Config::Kube {
            access: kube.access(),
            kinds,
        }),
    }
}

/// The name, if an identity can be made with it.
pub(super) fn trust_domain(name: &str) -> anyhow::Result<TrustDomain> {
    let probe = format!("spiffe://{name}/ns/a/sa/a");
    let id: crate::model::SpiffeId = probe
        .parse()
        .with_context(|| format!("--trust-domain {name} is not the name of a trust domain"))?;
    Ok(id.trust_domain)
}
