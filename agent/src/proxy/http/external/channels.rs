//! The connections over which Services are asked, each of one pod.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use http::Uri;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use crate::model::NamespacedName;
use crate::proxy::caller::Caller;

/// The connections of one pod. They end with it.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Channels(Mutex<HashMap<(NamespacedName, u16), Channel>>);

impl Channels {
    /// The connection to a Service, which is dialled when it is first used, and again when
    /// it has ended.
    pub(super) fn to(
        &self,
        caller: &Caller,
        service: &NamespacedName,
        port: u16,
    ) -> Option<Channel> {
        let key = (service.clone(), port);
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
            async move { caller.dial(&service, port).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from(origin).connect_with_connector_lazy(connector);
        let _before = channels.insert(key, channel.clone());
        Some(channel)
    }
}
