//! The connections over which Services are asked, each of one pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Uri};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use crate::model::NamespacedName;
use crate::proxy::caller::{CallError, Caller};
use crate::proxy::lock::lock;
use crate::proxy::reach::Reached;

/// A server that acknowledges nothing of what it was sent for this long is gone. There are
/// no PINGs: servers of gRPC take them for a flood.
const PATIENCE: Duration = Duration::from_secs(10);

/// A port of a Service, and the method of gRPC.
type Called = (NamespacedName, u16, &'static str);

/// The connections of one pod. They end with it.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Channels(Mutex<HashMap<Called, Kept>>);

/// A connection, and which server it was dialled to last, over what.
#[derive(Clone, Debug)]
struct Kept {
    channel: Channel,
    to: Arc<Mutex<Option<Reached>>>,
}

impl Channels {
    /// The connection to a Service, which is dialled when it is first used, and again when
    /// it has ended, or when its server is reached another way by now.
    pub(super) fn to(
        &self,
        caller: &Caller,
        (service, port): (&NamespacedName, u16),
        method: &'static str,
    ) -> Option<Channel> {
        let key = (service.clone(), port, method);
        let mut channels = lock(&self.0);
        if let Some(kept) = channels.get(&key)
            && lock(&kept.to).as_ref().is_none_or(|to| caller.reaches(to))
        {
            return Some(kept.channel.clone());
        }
        let kept = Kept::new(caller, (service, port), method)?;
        let channel = kept.channel.clone();
        let _before = channels.insert(key, kept);
        Some(channel)
    }
}

impl Kept {
    fn new(
        caller: &Caller,
        (service, port): (&NamespacedName, u16),
        method: &'static str,
    ) -> Option<Self> {
        let authority = format!("{}.{}.svc:{port}", service.name, service.namespace);
        let origin = Uri::builder().scheme("http").authority(authority);
        let origin = origin.path_and_query("/").build().ok()?;
        let to = Arc::new(Mutex::new(None));
        let (caller, service, dialled) = (caller.clone(), service.clone(), Arc::clone(&to));
        let connector = tower::service_fn(move |_origin: Uri| {
            let (caller, service) = (caller.clone(), service.clone());
            let dialled = Arc::clone(&dialled);
            async move {
                let bound = caller.bind((&service, port), &Method::POST, method)?;
                *lock(&dialled) = Some(bound.to());
                let io = bound.dial().await?;
                io.give_up_after(PATIENCE);
                Ok::<_, CallError>(TokioIo::new(io))
            }
        });
        let channel = Endpoint::from(origin).connect_with_connector_lazy(connector);
        Some(Self { channel, to })
    }
}
