//! Servers of the cluster's users that this one calls: webhooks, and servers of further APIs.

mod connection;
mod tls;

use std::sync::{Arc, OnceLock};

use http::{Request, Response};

use self::connection::Pool;
pub(crate) use self::tls::{Identity, Trust};
use crate::{endpoints::Address, http::Body};

/// A server by the name in its certificate, with the connections to it that are kept.
pub(crate) struct Server {
    name: String,
    trust: Trust,
    identity: Option<Arc<Identity>>,
    /// Made at the first call.
    tls: OnceLock<Result<Arc<rustls::ClientConfig>, String>>,
    pool: Arc<Pool>,
}

impl Server {
    /// A server that must show a certificate for `name`. It is shown `identity`, and nothing else of ours.
    pub(crate) fn new(name: String, trust: Trust, identity: Option<Arc<Identity>>) -> Server {
        Server { name, trust, identity, tls: OnceLock::new(), pool: Arc::default() }
    }

    /// Sends a request to one of these addresses. Once the answer's body has been read its connection is kept for the
    /// next request. The error is worded as upstream's client words it.
    pub(crate) async fn send(&self, request: Request<Body>, addresses: &[Address]) -> Result<Response<Body>, String> {
        let tls = self.tls.get_or_init(|| tls::client(&self.trust, self.identity.as_deref())).clone()?;
        self.pool.send(request, addresses, &tls, &self.name).await
    }
}
