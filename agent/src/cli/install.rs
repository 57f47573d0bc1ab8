//! `fairlead install` and `fairlead upgrade`

use std::io::Write;
use std::time::Duration;

use clap::Args;

use super::output::{Format, FormatFlag, Paint, Printer, harmless};
use super::{Outcome, say};
use crate::app::KubeArgs;
use crate::app::kubernetes::{self, Change, Report, Settings};

const INSTALL_HELP: &str = "\
Examples:
  fairlead check --pre                  can it be installed here?
  fairlead install
  fairlead install --dry-run > fairlead.yaml      the manifests, for a repository
  kubectl label namespace shop fairlead.dev/mesh=enabled      mesh a namespace

The same manifests as `kubectl apply -k deploy/`. Objects are made by server-side apply:
fields that others set stay. An installation that is there keeps its settings where no
flag says otherwise. Ends with 1 where pods do not become ready in time.";

const UPGRADE_HELP: &str = "\
Examples:
  fairlead upgrade                      to the version of this program
  fairlead upgrade --image registry.example/fairlead:1.2.3

Node by node the new agent takes over before the old one ends: see docs/kubernetes.md.
Settings stay as they were installed where no flag says otherwise. Ends with 1 where pods
do not become ready in time.";

/// What of the manifests can be had otherwise.
#[derive(Debug, Args)]
struct SettingArgs {
    /// The image of agents and authority; that of this program's version where not given.
    #[arg(long, env = "FAIRLEAD_IMAGE", value_name = "IMAGE")]
    image: Option<String>,
    /// The trust domain of the mesh.
    #[arg(long, env = "FAIRLEAD_TRUST_DOMAIN", value_name = "NAME")]
    trust_domain: Option<String>,
    /// Where the nodes keep CNI plugins; /opt/cni/bin where not given.
    #[arg(long, env = "FAIRLEAD_CNI_BIN_DIR", value_name = "PATH")]
    cni_bin_dir: Option<String>,
    /// Where the nodes keep the configuration of CNI; /etc/cni/net.d where not given.
    #[arg(long, env = "FAIRLEAD_CNI_CONF_DIR", value_name = "PATH")]
    cni_conf_dir: Option<String>,
    /// Do without the CNI plugin: new pods talk plaintext until they are enrolled.
    #[arg(long, env = "FAIRLEAD_WITHOUT_CNI")]
    without_cni: bool,
}

impl SettingArgs {
    fn settings(self) -> Settings {
        Settings {
            image: self.image,
            trust_domain: self.trust_domain,
            cni_bin_dir: self.cni_bin_dir,
            cni_conf_dir: self.cni_conf_dir,
            without_cni: self.without_cni,
        }
    }
}

/// How long to wait for pods.
#[derive(Debug, Args)]
struct Patience {
    /// Wait so long for the pods to be ready; 0s does not wait.
    #[arg(
        long,
        env = "FAIRLEAD_WAIT",
        default_value = "5m",
        value_parser = humantime::parse_duration,
        value_name = "TIME"
    )]
    wait: Duration,
}

/// Install the mesh in a cluster and wait until it runs
#[derive(Debug, Args)]
#[command(after_help = INSTALL_HELP)]
pub(super) struct Install {
    #[command(flatten)]
    settings: SettingArgs,
    /// Print the manifests and change nothing. YAML, unless -o says otherwise.
    #[arg(long, env = "FAIRLEAD_DRY_RUN")]
    dry_run: bool,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    format: FormatFlag,
}

impl Install {
    pub(super) async fn run<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        let settings = self.settings.settings();
        if self.dry_run {
            let manifests = kubernetes::render(&settings)?;
            match self.format.output {
                Format::Json => {
                    let list = serde_json::json!({
                        "apiVersion": "v1", "kind": "List", "items": manifests,
                    });
                    printer.value(Format::Json, &list)?;
                }
                Format::Table | Format::Yaml => {
                    for manifest in &manifests {
                        printer.line("---")?;
                        printer.value(Format::Yaml, manifest)?;
                    }
                }
            }
            printer.flush()?;
            return Ok(Outcome::Done);
        }
        let access = self.kube.access();
        let report = kubernetes::install(&access, settings, self.patience.wait, &mut say).await?;
        finish(&report, self.format.output, &mut printer)
    }
}

/// Upgrade an installed mesh and wait until it runs
#[derive(Debug, Args)]
#[command(after_help = UPGRADE_HELP)]
pub(super) struct Upgrade {
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    format: FormatFlag,
}

impl Upgrade {
    pub(super) async fn run<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        let (access, settings) = (self.kube.access(), self.settings.settings());
        let report = kubernetes::upgrade(&access, settings, self.patience.wait, &mut say).await?;
        finish(&report, self.format.output, &mut printer)
    }
}

fn finish<W: Write>(
    report: &Report,
    format: Format,
    printer: &mut Printer<W>,
) -> anyhow::Result<Outcome> {
    match format {
        Format::Table => print(report, printer)?,
        Format::Json | Format::Yaml => printer.value(format, report)?,
    }
    printer.flush()?;
    Ok(if report.is_complete() {
        Outcome::Done
    } else {
        Outcome::Problem
    })
}

/// The report as a few lines.
pub(super) fn print<W: Write>(report: &Report, printer: &mut Printer<W>) -> anyhow::Result<()> {
    let changed = |change| {
        let of_it = report.objects.iter().filter(|it| it.change == change);
        of_it.count()
    };
    printer.line(&format!(
        "{} objects: {} created, {} changed, {} as they were",
        report.objects.len(),
        changed(Change::Created),
        changed(Change::Configured),
        changed(Change::Unchanged)
    ))?;
    match &report.image_before {
        Some(before) if *before != report.image => {
            let text = format!("From {before} to {}", report.image);
            printer.line(&harmless(&text))?;
        }
        _ => printer.line(&harmless(&format!("Image {}", report.image)))?,
    }
    for rollout in &report.rollouts {
        let text = format!(
            "{}: {} of {} ready",
            rollout.of, rollout.ready, rollout.wanted
        );
        let paint = if rollout.complete {
            Paint::Good
        } else {
            Paint::Bad
        };
        printer.painted(paint, &harmless(&text))?;
    }
    for reason in &report.not_ready {
        printer.painted(Paint::Bad, &format!("  {}", harmless(reason)))?;
    }
    if report.is_complete() {
        printer.line("Mesh a namespace: kubectl label namespace NAME fairlead.dev/mesh=enabled")?;
        printer.line("Look at it:       fairlead status -A, fairlead check -A")?;
    } else {
        printer.line("What to do: docs/troubleshooting.md#agents, fairlead check -A")?;
    }
    Ok(())
}
