//! Who is compared, and on what path of the topology.

use clap::ValueEnum;

/// One way to get from the client to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Contender {
    /// No proxy, across the two nodes.
    Direct,
    /// Two Envoys, TCP over mTLS, across the two nodes.
    Envoy,
    /// Two agents, across the two nodes.
    Fairlead,
    /// No proxy, both pods on one node.
    DirectLocal,
    /// One agent, both pods on its node.
    FairleadLocal,
}

impl Contender {
    /// All of them, in the order of columns.
    pub(super) const ALL: [Self; 5] = [
        Self::Direct,
        Self::Envoy,
        Self::Fairlead,
        Self::DirectLocal,
        Self::FairleadLocal,
    ];

    /// Its name for people.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Envoy => "Envoy pair",
            Self::Fairlead => "Fairlead",
            Self::DirectLocal => "direct, 1 node",
            Self::FairleadLocal => "Fairlead, 1 node",
        }
    }

    /// Its name in JSON and on the command line.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Envoy => "envoy",
            Self::Fairlead => "fairlead",
            Self::DirectLocal => "direct-local",
            Self::FairleadLocal => "fairlead-local",
        }
    }

    /// What it is compared with: no proxy on the same path.
    pub(super) fn base(self) -> Self {
        match self {
            Self::Direct | Self::Envoy | Self::Fairlead => Self::Direct,
            Self::DirectLocal | Self::FairleadLocal => Self::DirectLocal,
        }
    }

    /// Whether it is the one that this project is about.
    pub(super) fn is_fairlead(self) -> bool {
        matches!(self, Self::Fairlead | Self::FairleadLocal)
    }
}
