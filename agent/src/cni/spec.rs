//! The CNI specification's side of a call: pure.
//! <https://www.cni.dev/docs/spec/>

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::protocol::PodRef;

/// Versions whose results this plugin passes on. From 0.3.0 on a chained plugin gets the
/// result of the one before it.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// What an absent version means.
const OLDEST: &str = "0.1.0";

/// Codes of errors that the specification gives.
pub(super) mod code {
    pub(in super::super) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(in super::super) const ENVIRONMENT: u32 = 4;
    pub(in super::super) const IO: u32 = 5;
    pub(in super::super) const DECODING: u32 = 6;
    pub(in super::super) const CONFIGURATION: u32 = 7;
    pub(in super::super) const TRY_AGAIN: u32 = 11;
    /// The first that are the plugin's own.
    pub(in super::super) const NOT_ENROLLED: u32 = 100;
}

/// Why a call failed, as the runtime reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u32,
    pub(super) message: String,
    pub(super) details: String,
}

impl Failure {
    pub(super) fn new(code: u32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: String::new(),
        }
    }

    /// The object that goes to standard output.
    pub(super) fn json(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "code": self.code,
            "msg": self.message,
            "details": self.details,
        })
    }
}

/// What the runtime wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

/// One call of the plugin.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Invocation {
    pub(super) verb: Verb,
    pub(super) config: Config,
    pub(super) container: String,
    pub(super) netns: String,
    pub(super) interface: String,
    /// None where the runtime is not Kubernetes'.
    pub(super) pod: Option<PodRef>,
}

/// The plugin's part of the network configuration.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Config {
    #[serde(default)]
    pub(super) cni_version: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    pub(super) prev_result: Option<Map<String, Value>>,
    #[serde(default = "default_run_dir")]
    pub(super) run_dir: String,
    #[serde(default)]
    pub(super) decisions: Option<String>,
    #[serde(default)]
    pub(super) timeout_seconds: Option<u64>,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Attachment>>,
    /// Its name before the specification was mended.
    #[serde(default, rename = "cni.dev/attachments")]
    attachments: Option<Vec<Attachment>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container: String,
}

fn default_run_dir() -> String {
    "/run/fairlead".to_owned()
}

impl Config {
    /// The version of what is answered.
    pub(super) fn version(&self) -> &str {
        if self.cni_version.is_empty() {
            OLDEST
        } else {
            &self.cni_version
        }
    }

    /// The ids of all sandboxes, where the runtime tells.
    pub(super) fn valid(&self) -> Option<Vec<String>> {
        let list = self.valid.as_ref().or(self.attachments.as_ref())?;
        Some(list.iter().map(|it| it.container.clone()).collect())
    }

    /// The result of the plugins before this one, as this one's.
    pub(super) fn passed_on(&self) -> Value {
        let mut result = self.prev_result.clone().unwrap_or_default();
        drop(result.insert("cniVersion".to_owned(), self.version().into()));
        Value::Object(result)
    }

    /// The addresses inside the sandbox: those of its main interface, where results say
    /// which are whose; they may speak of the other end and of the node as well.
    pub(super) fn ips(&self, interface: &str) -> Vec<IpAddr> {
        let result = self.prev_result.as_ref();
        let list = |key: &str| {
            let found = result.and_then(|result| result.get(key));
            found.and_then(Value::as_array).cloned().unwrap_or_default()
        };
        let interfaces = list("interfaces");
        let place = |ip: &Value| {
            let index = usize::try_from(ip["interface"].as_u64()?).ok()?;
            interfaces.get(index)
        };
        let inside = |it: &Value| it["sandbox"].as_str().is_some_and(|path| !path.is_empty());
        let main = |it: &Value| it["name"].as_str() == Some(interface);
        let address = |ip: &Value| {
            let text = ip["address"].as_str()?;
            let net: Option<IpNet> = text.parse().ok();
            let ip = net.map(|net| net.addr()).or_else(|| text.parse().ok())?;
            Some(ip.to_canonical())
        };
        let all = list("ips");
        let of = |fits: &dyn Fn(&Value) -> bool| -> Vec<IpAddr> {
            let chosen = all.iter().filter(|ip| fits(ip));
            chosen.filter_map(address).collect()
        };
        let exact = of(&|ip| place(ip).is_some_and(|it| inside(it) && main(it)));
        if !exact.is_empty() {
            return exact;
        }
        of(&|ip| place(ip).is_none_or(inside))
    }
}

impl Invocation {
    /// What the environment and the standard input say.
    pub(super) fn read(
        variable: impl Fn(&str) -> Option<String>,
        input: &str,
    ) -> Result<Self, Failure> {
        let given = |name: &str| variable(name).unwrap_or_default();
        let verb = match &*given("CNI_COMMAND") {
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            "STATUS" => Verb::Status,
            "GC" => Verb::Gc,
            "VERSION" => Verb::Version,
            other => {
                let text = format!("CNI_COMMAND \"{other}\" is none that this plugin knows");
                return Err(Failure::new(code::ENVIRONMENT, text));
            }
        };
        let config: Config = serde_json::from_str(input).map_err(|error| {
            let text = format!("the network configuration on standard input: {error}");
            Failure::new(code::DECODING, text)
        })?;
        let call = Self {
            verb,
            config,
            container: given("CNI_CONTAINERID"),
            netns: given("CNI_NETNS"),
            interface: given("CNI_IFNAME"),
            pod: pod(&given("CNI_ARGS")),
        };
        call.check()?;
        Ok(call)
    }

    fn check(&self) -> Result<(), Failure> {
        if self.verb == Verb::Version {
            return Ok(());
        }
        let version = self.config.version();
        if !VERSIONS.contains(&version) {
            let all = VERSIONS.join(", ");
            let text = format!("cniVersion {version} is not one of {all}");
            return Err(Failure::new(code::INCOMPATIBLE_VERSION, text));
        }
        if self.config.name.is_empty() {
            let text = "the network configuration has no name";
            return Err(Failure::new(code::CONFIGURATION, text));
        }
        let of_sandbox = [
            ("CNI_CONTAINERID", &self.container),
            ("CNI_IFNAME", &self.interface),
            ("CNI_NETNS", &self.netns),
        ];
        let needed = match self.verb {
            Verb::Add | Verb::Check => &of_sandbox[..],
            // The namespace may have gone.
            Verb::Del => &of_sandbox[..2],
            Verb::Status | Verb::Gc | Verb::Version => &[],
        };
        if let Some((name, _)) = needed.iter().find(|(_, value)| value.is_empty()) {
            let text = format!("{name} is not set");
            return Err(Failure::new(code::ENVIRONMENT, text));
        }
        let chained = matches!(self.verb, Verb::Add | Verb::Check);
        if chained && self.config.prev_result.is_none() {
            let text = "there is no prevResult: this plugin makes no network, it must come after \
                        one that does";
            return Err(Failure::new(code::CONFIGURATION, text));
        }
        Ok(())
    }

    /// The answer to [`Verb::Version`].
    pub(super) fn versions(&self) -> Value {
        json!({"cniVersion": self.config.version(), "supportedVersions": VERSIONS})
    }
}

/// Of `CNI_ARGS`: pairs with `;` between them.
fn pod(arguments: &str) -> Option<PodRef> {
    let value = |key: &str| {
        let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        let mut found = pairs
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value);
        found.next().filter(|value| !value.is_empty())
    };
    Some(PodRef {
        namespace: value("K8S_POD_NAMESPACE")?.to_owned(),
        name: value("K8S_POD_NAME")?.to_owned(),
        uid: value("K8S_POD_UID").map(str::to_owned),
    })
}
