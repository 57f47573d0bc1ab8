//! What crossed a link: tcpdump and a reader of its file.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::place::Place;
use crate::process::Process;
use crate::wait;
use crate::world::{Node, World};

/// A port that nothing else in a world uses.
const LAST: u16 = 9;

/// A running capture of a link.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
    here: Place,
    peer: IpAddr,
}

impl Capture {
    /// Captures all TCP on a device of a node that leads to another; returns once it has begun.
    pub fn start(world: &World, node: &Node, device: &str, name: &str) -> Result<Self> {
        let file = world.directory().join(format!("{name}.pcap"));
        let path = file.display().to_string();
        let arguments = [
            "tcpdump",
            "-i",
            device,
            "-w",
            &path,
            "-U",
            "-s",
            "0",
            "-B",
            "16384",
            "-Z",
            "root",
            "--immediate-mode",
            "tcp",
        ];
        let mut process = node.host.spawn(name, &arguments)?;
        process.wait_for("listening on", Duration::from_secs(30))?;
        let peer = world.peer_behind(device).context("a link's device")?.ip4;
        Ok(Self {
            process,
            file,
            here: node.host.clone(),
            peer: peer.into(),
        })
    }

    /// Ends the capture and reads it.
    pub fn stop(mut self) -> Result<Traffic> {
        self.catch_up()?;
        self.process.signal(Signal::INT)?;
        let _: ExitStatus = self.process.wait(Duration::from_secs(30))?;
        let log = self.process.output();
        ensure!(
            log.contains("\n0 packets dropped by kernel"),
            "the capture is incomplete:\n{log}"
        );
        Traffic::read(&fs::read(&self.file)?)
    }

    /// Sends a packet over the link and waits until the capture has it: tcpdump forgets
    /// what it has not read yet when it is stopped.
    fn catch_up(&self) -> Result<()> {
        let url = format!("http://{}:{LAST}/", self.peer);
        // Nobody listens there.
        let knock = ["curl", "-s", "--connect-timeout", "5", &url];
        drop(self.here.run(&knock)?);
        wait::until_ok("the last packet", Duration::from_secs(30), || {
            let traffic = Traffic::read(&fs::read(&self.file)?)?;
            let last = |(_, to): &(SocketAddr, SocketAddr)| to.port() == LAST;
            ensure!(traffic.streams.keys().any(last), "it is not there yet");
            Ok(())
        })
    }
}

/// The bytes that crossed a link, by direction of a connection.
#[derive(Debug, Default)]
pub struct Traffic {
    streams: BTreeMap<(SocketAddr, SocketAddr), Vec<u8>>,
}

impl Traffic {
    /// Reads a file in the format of tcpdump, of Ethernet frames.
    fn read(file: &[u8]) -> Result<Self> {
        let magic = file.get(..4).context("an empty capture file")?;
        ensure!(
            magic == 0xa1b2_c3d4_u32.to_le_bytes(),
            "no capture file of this machine"
        );
        let mut traffic = Self::default();
        let mut rest = file.get(24..).unwrap_or_default();
        while let Some((frame, after)) = record(rest) {
            rest = after;
            if let Some((key, payload)) = segment(frame) {
                traffic
                    .streams
                    .entry(key)
                    .or_default()
                    .extend_from_slice(payload);
            }
        }
        Ok(traffic)
    }

    /// Some connection carried these bytes as they are.
    pub fn contains(&self, marker: &str) -> bool {
        let marker = marker.as_bytes();
        let has = |stream: &Vec<u8>| stream.windows(marker.len()).any(|window| window == marker);
        self.streams.values().any(has)
    }

    /// Bytes of application data, by both directions.
    pub fn bytes(&self) -> usize {
        self.streams.values().map(Vec::len).sum()
    }

    /// How many TLS records were sent to a port.
    pub fn tls_records_to(&self, port: u16) -> usize {
        let streams = self.streams.iter();
        streams
            .filter(|((_, to), _)| to.port() == port)
            .map(|(_, bytes)| tls_records(bytes))
            .sum()
    }

    /// The ports that were dialled or answered from, with something other than TLS on them.
    pub fn plaintext_streams(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let plain = |(_, bytes): &(_, &Vec<u8>)| !bytes.is_empty() && tls_records(bytes) == 0;
        self.streams
            .iter()
            .filter(plain)
            .map(|(&key, _)| key)
            .collect()
    }
}

fn record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
    bytes.get(16..)?.split_at_checked(length.try_into().ok()?)
}

/// The addresses and the payload of a frame that is TCP over IPv4 or IPv6.
fn segment(frame: &[u8]) -> Option<((SocketAddr, SocketAddr), &[u8])> {
    let packet = frame.get(14..)?;
    let (from, to, tcp): (IpAddr, IpAddr, &[u8]) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let length = usize::from(be16(packet, 2)?);
            // A length of 0 is a packet bigger than 64 KiB that the link cut itself.
            let end = if length == 0 { packet.len() } else { length };
            let address = |at| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
            (
                address(12)?.into(),
                address(16)?.into(),
                packet.get(header..end)?,
            )
        }
        [0x86, 0xdd] => {
            let length = usize::from(be16(packet, 4)?);
            let end = if length == 0 {
                packet.len()
            } else {
                40 + length
            };
            let address = |at| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?));
            (
                address(8)?.into(),
                address(24)?.into(),
                packet.get(40..end)?,
            )
        }
        _ => return None,
    };
    let offset = usize::from(tcp.get(12)? >> 4) * 4;
    let key = (
        SocketAddr::new(from, be16(tcp, 0)?),
        SocketAddr::new(to, be16(tcp, 2)?),
    );
    Some((key, tcp.get(offset..)?))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk::<2>()?))
}

/// Whole TLS records from the beginning of a stream, 0 where it does not begin with one.
fn tls_records(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let [20..=23, 3, 1..=4, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(after) = rest.get(length..) else {
            break;
        };
        bytes = after;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::{Traffic, tls_records};

    #[test]
    fn counts_whole_records_only() {
        let hello = [22, 3, 1, 0, 2, 9, 9];
        let data = [23, 3, 3, 0, 1, 7];
        let cut = [23, 3, 3, 0, 9, 7];
        assert_eq!(tls_records(&[&hello[..], &data, &cut].concat()), 2);
        assert_eq!(tls_records(b"GET / HTTP/1.1\r\n"), 0);
    }

    #[test]
    fn finds_a_marker_across_segments() {
        let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        file.extend([0; 20]);
        for part in [b"mar".as_slice(), b"ker"] {
            let frame = frame(part);
            let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
            file.extend([[0; 4], [0; 4], length, length].concat());
            file.extend(frame);
        }
        let traffic = Traffic::read(&file).unwrap();
        assert!(traffic.contains("marker"));
        assert!(!traffic.contains("maker"));
        assert_eq!(traffic.plaintext_streams().len(), 1);
    }

    fn frame(payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(40 + payload.len()).unwrap().to_be_bytes();
        let ethernet = [[0; 12].as_slice(), &[8, 0]].concat();
        let ip = [
            &[0x45, 0, length[0], length[1]],
            [0; 8].as_slice(),
            &[10, 0, 0, 1],
            &[10, 0, 0, 2],
        ]
        .concat();
        let tcp = [&[0, 80, 1, 0], [0; 8].as_slice(), &[0x50, 0], &[0; 6]].concat();
        [ethernet, ip, tcp, payload.to_vec()].concat()
    }
}
