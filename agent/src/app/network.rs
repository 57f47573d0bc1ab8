//! The kernel side's handle of a pod's network, as the proxy asks for it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::flow::KernelStats;
use crate::model::{ClientAddr, OrigDst};
use crate::proxy::{Family, PodNetwork, TcpInfo};
use crate::redirect::Network;

/// One pod's network.
#[derive(Debug)]
pub(super) struct Adaptor(pub(super) Network);

impl PodNetwork for Adaptor {
    fn socket(&self, family: Family) -> io::Result<OwnedFd> {
        self.0.socket(matches!(family, Family::V4))
    }

    fn original_destination(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<OrigDst>> {
        self.0.original_destination(accepted)
    }

    fn is_probe(&self, accepted: BorrowedFd<'_>) -> io::Result<bool> {
        self.0.is_probe(accepted)
    }

    fn present_client(&self, socket: BorrowedFd<'_>, client: ClientAddr) -> io::Result<()> {
        self.0.present_client(socket, client)
    }

    fn is_listening(&self, address: SocketAddr) -> bool {
        self.0.is_listening(address)
    }

    fn forget_listener(&self, port: u16) {
        self.0.forget_listener(port);
    }

    fn tcp_info(&self, socket: BorrowedFd<'_>) -> Option<TcpInfo> {
        let (srtt_us, retransmits, unacknowledged) = self.0.tcp_info(socket)?;
        Some(TcpInfo {
            stats: KernelStats {
                srtt_us,
                retransmits,
            },
            unacknowledged,
        })
    }
}
