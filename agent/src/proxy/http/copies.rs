//! Copies of requests for the mirrors of a route: tasks of their own, whose answers are read
//! and dropped.

use std::sync::Arc;
use std::time::Duration;

use http::Version;
use http::request::Parts;
use http_body::Body as _;
use http_body_util::BodyExt as _;

use super::body::Body;
use super::filter::mirror::{tee, wanted};
use super::forward::{Asked, ServicePort, version_for};
use super::headers;
use super::interim::Interim;
use super::outbound::Outbound;
use super::record::Exchange;
use super::session::finish;
use super::tries::Target;
use crate::policy::{BackendTarget, Filter, Table};

/// A copy that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(30);

impl Outbound {
    /// Sends copies to the mirrors among these filters. The request's body is copied on its
    /// way; where its pod has no memory for that, there is no copy.
    pub(super) fn copy(&self, asked: &mut Asked, filters: &[Filter], label: &Arc<str>) {
        // What turns into something else has nothing to be copied.
        if headers::is_extended(&asked.parts.extensions) || headers::wants_upgrade(&asked.parts) {
            return;
        }
        for mirror in wanted(filters, rand::random) {
            let BackendTarget::Service { service, port } = &mirror.target else {
                continue;
            };
            let account = &self.dialler.client.account;
            let lag = if asked.body.is_end_stream() {
                0
            } else {
                self.dialler.shared.config.http.mirror_bytes
            };
            let (Some(this), Some(in_flight), Some(held)) =
                (self.this.upgrade(), account.request(), account.hold(lag))
            else {
                continue;
            };
            let (original, copy) = tee(std::mem::take(&mut asked.body), lag);
            asked.body = Body::tee(original);
            let mut parts = asked.parts.clone();
            let _hints_of_the_original = parts.extensions.remove::<Interim>();
            let sending = Copied {
                table: Arc::clone(&asked.table),
                service: (service.clone(), *port),
                label: Arc::clone(label),
                parts,
                body: Body::copy(copy),
            };
            self.dialler.shared.tasks.spawn(async move {
                let _until_its_end = (in_flight, held);
                let _over = tokio::time::timeout(PATIENCE, sending.send(&this)).await;
            });
        }
    }
}

/// A copy of a request.
struct Copied {
    table: Arc<Table>,
    service: ServicePort,
    label: Arc<str>,
    parts: Parts,
    body: Body,
}

impl Copied {
    async fn send(self, outbound: &Outbound) {
        let Self {
            table,
            service,
            label,
            mut parts,
            mut body,
        } = self;
        let upload = body.counted();
        let flows = &outbound.dialler.shared.flows;
        let mut exchange = Exchange::begin(Arc::clone(&outbound.ends), flows, &parts, upload);
        exchange.route = Some(label);
        let protocol = table.service_protocol(&service.0, service.1);
        let version = version_for(protocol, &parts);
        if let Err(reason) = headers::send(&mut parts, version, body.is_end_stream()) {
            return exchange.refused(&reason);
        }
        let target = Target {
            table: &table,
            dialled: &service,
            service: &service,
            rule: None,
            kept: None,
            version,
        };
        match outbound.try_all(&target, parts, body, &mut exchange).await {
            Err(refused) => exchange.refused(&refused.reason),
            Ok((sent, _address)) => {
                let mut body = finish(sent, exchange, Version::HTTP_2).response.into_body();
                while let Some(Ok(_frame)) = body.frame().await {}
            }
        }
    }
}
