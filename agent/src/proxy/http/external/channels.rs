//! The connections over which Services are asked, each of one pod.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{Method, Uri};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use crate::model::NamespacedName;
use crate::proxy::caller::Caller;

/// A peer that is gone is found out by this while there are calls.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A port of a Service, and the method of gRPC.
type Called = (NamespacedName, u16, &'static str);

/// The connections of one pod. They end with it.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Channels(Mutex<HashMap<Called, Channel>>);

impl Channels {
    /// The connection to a Service, which is dialled when it is first used, and again when
    /// it has ended.
    pub(super) fn to(
        &self,
        caller: &Caller,
        (service, port): (&NamespacedName, u16),
        method: &'static str,
    ) -> Option<Channel> {
        let key = (service.clone(), port, method);
        // A panic under this lock would have ended the process.
        let mut channels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&key) {
            return Some(channel.clone());
        }
        let authority = format!("{}.{}.svc:{port}", service.name, service.namespace);
        let origin = Uri::builder().scheme("http").authority(authority);
        let origin = origin.path_and_query("/").build().ok()?;
        let caller = caller.clone();
        let service = service.clone();
        let connector = tower::service_fn(move |_origin: Uri| {
            let (caller, service) = (caller.clone(), service.clone());
            async move {
                let call = caller.dial((&service, port), &Method::POST, method);
                call.await.map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from(origin)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let channel = endpoint.connect_with_connector_lazy(connector);
        let _before = channels.insert(key, channel.clone());
        Some(channel)
    }
}
