//! The TLS certificates of the service itself, signed by its own authority.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;

use crate::identity::{Authority, Clock, TlsTime, provider};

/// A certificate of the service is used for half of this.
const TTL: Duration = Duration::from_hours(24);

/// One configuration for each local address that is dialled: a certificate names the
/// address, and a service that listens on all of them can't know before.
#[derive(Debug)]
pub(super) struct ServerCertificates {
    names: Vec<String>,
    clock: Arc<dyn Clock>,
    made: Mutex<HashMap<IpAddr, Made>>,
}

#[derive(Debug)]
struct Made {
    /// Who signed it: where that is another one now, it is made anew.
    authority: Arc<Authority>,
    config: Arc<ServerConfig>,
    from: SystemTime,
    until: SystemTime,
}

/// Why the service has no TLS certificate for a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("the authority is not open yet")]
    Absent,
    #[error(transparent)]
    Authority(#[from] crate::identity::AuthorityError),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

impl ServerCertificates {
    pub(super) fn new(names: Vec<String>, clock: Arc<dyn Clock>) -> Self {
        let mut all = vec!["fairlead-ca".to_owned(), "localhost".to_owned()];
        all.extend(names.into_iter().filter(|name| !name.is_empty()));
        all.dedup();
        Self {
            names: all,
            clock,
            made: Mutex::default(),
        }
    }

    /// The configuration for connections to `address`.
    pub(super) fn config(
        &self,
        authority: &Arc<Authority>,
        address: IpAddr,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let now = self.clock.now();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.get(&address)
            && Arc::ptr_eq(&made.authority, authority)
            && (made.from..made.until).contains(&now)
        {
            return Ok(Arc::clone(&made.config));
        }
        let issued = authority.issue_server(&self.names, &[address], TTL)?;
        let life = issued.issued.not_after.duration_since(now);
        let time = Arc::new(TlsTime(Arc::clone(&self.clock)));
        let mut config = ServerConfig::builder_with_details(provider(), time)
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(issued.issued.chain.clone(), issued.key_der())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let config = Arc::new(config);
        let kept = Made {
            authority: Arc::clone(authority),
            config: Arc::clone(&config),
            from: now,
            until: now + life.unwrap_or_default() / 2,
        };
        made.insert(address, kept);
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SystemClock;

    #[test]
    fn a_certificate_is_made_once_for_each_authority() {
        let open = || Arc::new(Authority::open(tempfile::tempdir().unwrap().path()).unwrap());
        let (first, second) = (open(), open());
        let certificates = ServerCertificates::new(Vec::new(), Arc::new(SystemClock));
        let config = |authority| {
            let config = certificates.config(authority, [10, 0, 0, 1].into());
            config.unwrap()
        };
        let (one, other) = (config(&first), config(&second));
        assert!(!Arc::ptr_eq(&one, &other));
        assert!(Arc::ptr_eq(&config(&second), &other));
    }
}
