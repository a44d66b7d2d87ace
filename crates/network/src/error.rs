use std::io;

use crate::netlink::NetlinkError;

/// What went wrong while changing the network, and on what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a link, address, route, rule or connection-tracking request.
    #[error("cannot {action}")]
    Netlink {
        action: String,
        #[source]
        source: NetlinkError,
    },
    /// A system call outside netlink failed.
    #[error("cannot {action}")]
    Io {
        action: String,
        #[source]
        source: io::Error,
    },
    /// A link that has to exist does not.
    #[error("there is no network interface {0:?}")]
    NoSuchLink(String),
    /// Every address of the node's pod range is in use.
    #[error("no free address left in {range}")]
    AddressesExhausted { range: String },
    /// Two pods on one node want the same host port.
    #[error("host port {port}/{protocol} is already used by container {holder}")]
    HostPortTaken { port: u16, protocol: &'static str, holder: String },
    /// A value from configuration or a request cannot be used.
    #[error("{0}")]
    Invalid(String),
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn netlink(action: impl Into<String>) -> impl FnOnce(NetlinkError) -> Self {
        move |source| Self::Netlink { action: action.into(), source }
    }

    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action: action.into(), source }
    }

    /// The message with its causes, for places that keep only text (a CNI error, an Event).
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
