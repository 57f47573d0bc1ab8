//! The flags that choose records, of `fairlead flows` and `fairlead tap`.

use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use crate::flow::{
    Direction, Filter, FlowProtocol, PathFilter, PodFilter, RecordKind, StatusFilter, Verdict,
};

/// Which records.
#[derive(Clone, Debug, Args)]
pub(super) struct FilterFlags {
    /// Only with the client or the server in this namespace.
    #[arg(short, long, env = "FAIRLEAD_NAMESPACE")]
    namespace: Option<String>,
    /// Only with this pod at either end.
    #[arg(short, long, env = "FAIRLEAD_POD", value_name = "[NAMESPACE/]NAME")]
    pod: Option<PodFilter>,
    /// Only to this Service.
    #[arg(short, long, env = "FAIRLEAD_SERVICE", value_name = "[NAMESPACE/]NAME")]
    service: Option<PodFilter>,
    /// Only to this port, as the client dialled it.
    #[arg(long, env = "FAIRLEAD_PORT")]
    port: Option<u16>,
    /// Only those that ended so.
    #[arg(long, env = "FAIRLEAD_VERDICT")]
    verdict: Option<Verdict>,
    /// Only those that were reported from this side.
    #[arg(long, env = "FAIRLEAD_DIRECTION")]
    direction: Option<Direction>,
    /// Only those that carried this.
    #[arg(long, env = "FAIRLEAD_PROTOCOL")]
    protocol: Option<FlowProtocol>,
    /// Only requests with this method; several with commas.
    #[arg(
        long,
        env = "FAIRLEAD_METHOD",
        value_delimiter = ',',
        help_heading = "Of requests"
    )]
    method: Vec<String>,
    /// Only requests below this path, or, with a *, of which the whole path matches.
    #[arg(
        long,
        env = "FAIRLEAD_PATH",
        value_name = "PREFIX|PATTERN",
        help_heading = "Of requests"
    )]
    path: Option<PathFilter>,
    /// Only requests to this host name.
    #[arg(long, env = "FAIRLEAD_HOST", help_heading = "Of requests")]
    host: Option<String>,
    /// Only requests with this answer, such as 404 or 5xx; several with commas. 0 is none.
    #[arg(
        long,
        env = "FAIRLEAD_STATUS",
        value_delimiter = ',',
        value_name = "CODE|CLASS",
        help_heading = "Of requests"
    )]
    status: Vec<StatusFilter>,
    /// Only requests that a rule with this in its name matched, such as shop/web.
    #[arg(
        long,
        env = "FAIRLEAD_ROUTE",
        value_name = "TEXT",
        help_heading = "Of requests"
    )]
    route: Option<String>,
    /// Only requests that took so long at least, such as 250ms.
    #[arg(
        long,
        env = "FAIRLEAD_MIN_LATENCY",
        value_parser = humantime::parse_duration,
        value_name = "TIME",
        help_heading = "Of requests"
    )]
    min_latency: Option<Duration>,
}

impl FilterFlags {
    /// The filter, but for times and counts.
    pub(super) fn filter(&self) -> Filter {
        Filter {
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            service: self.service.clone(),
            port: self.port,
            verdict: self.verdict,
            direction: self.direction,
            protocol: self.protocol,
            kind: None,
            method: self.method.iter().map(|it| it.to_uppercase()).collect(),
            path: self.path.clone(),
            host: self.host.clone(),
            status: self.status.clone(),
            route: self.route.clone(),
            min_latency: self.min_latency,
            since: None,
            last: None,
        }
    }
}

macro_rules! value_enum {
    ($type:ty) => {
        impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                Self::ALL
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(self.as_str().into())
            }
        }
    };
}

value_enum!(Verdict);
value_enum!(Direction);
value_enum!(FlowProtocol);
value_enum!(RecordKind);
value_enum!(crate::admin::Kind);
