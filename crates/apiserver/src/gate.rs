//! Stopping the API server while the process goes on: clients in the same process are then cut off as those on the
//! network are, answers that are under way included.

use futures::StreamExt as _;
use http::Response;
use http_body::Body as _;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use tokio::sync::watch;

use crate::http::{Body, BoxError};

/// Whether the server answers.
pub(crate) struct Gate {
    open: watch::Sender<bool>,
}

impl Default for Gate {
    fn default() -> Self {
        Gate { open: watch::Sender::new(true) }
    }
}

impl Gate {
    pub(crate) fn set(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// What a client on the network would see, if it is closed.
    pub(crate) fn pass(&self, address: std::net::SocketAddr) -> Result<(), BoxError> {
        match *self.open.borrow() {
            true => Ok(()),
            false => Err(format!("dial tcp {address}: connect: connection refused").into()),
        }
    }

    /// Ends an endless answer when the gate is closed.
    pub(crate) fn guard(&self, response: Response<Body>) -> Response<Body> {
        if response.body().size_hint().exact().is_some() {
            return response;
        }
        let mut open = self.open.subscribe();
        let closed = async move {
            // An error is the end of the server, which ends the answer as well.
            let _ = open.wait_for(|open| !*open).await;
        };
        response.map(|body| StreamBody::new(BodyStream::new(body).take_until(Box::pin(closed))).boxed_unsync())
    }
}
