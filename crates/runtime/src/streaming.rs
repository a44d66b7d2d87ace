//! Where clients connect to stream: exec, attach and port-forward.

#![allow(dead_code)]

use std::io;

use skiff_cri::v1;

use crate::error::{Error, Result};
use crate::runtime::Runtime;

/// What a client is allowed to do with a URL it was given.
#[derive(Clone, Debug)]
pub(crate) enum Ticket {
    Exec(v1::ExecRequest),
    Attach(v1::AttachRequest),
    PortForward(v1::PortForwardRequest),
}

/// The server on loopback.
pub(crate) struct StreamingServer;

impl StreamingServer {
    pub(crate) async fn start(_: &Runtime) -> io::Result<StreamingServer> {
        Ok(StreamingServer)
    }
}

impl Runtime {
    pub(crate) fn streaming_url(&self, _: Ticket) -> Result<String> {
        Err(Error::Unsupported("streaming is not served yet".to_owned()))
    }
}
