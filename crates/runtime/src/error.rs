//! What the runtime answers when something does not work.

use std::error::Error as _;
use std::io;

use skiff_cri::Status;

use crate::client::CallError;
use crate::network::NetworkError;

/// Why a CRI call failed. Becomes a gRPC status in one place, with the causes in its text: the kubelet
/// shows it to users in events.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No such sandbox or container.
    #[error("an error occurred when try to find {kind} {id:?}: not found")]
    NotFound {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// What was asked for.
        id: String,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The name is taken.
    #[error("failed to reserve {kind} name {name:?}: name {name:?} is reserved for {id:?}")]
    Reserved {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// Not in this state.
    #[error("{0}")]
    Precondition(String),
    /// The container could not be started. In the words users know from elsewhere.
    #[error(
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: {0}: unknown"
    )]
    Start(String),
    /// Something in an image is wrong, or it is not there.
    #[error(transparent)]
    Image(#[from] skiff_images::Error),
    /// The network could not be set up or torn down.
    #[error("failed to {what} network for sandbox {id:?}")]
    Network {
        /// `setup` or `destroy`.
        what: &'static str,
        /// Sandbox.
        id: String,
        /// Why.
        #[source]
        source: NetworkError,
    },
    /// The supervisor could not do it.
    #[error("failed to {what}")]
    Supervisor {
        /// What was asked of it.
        what: String,
        /// Why.
        #[source]
        source: CallError,
    },
    /// A system call failed.
    #[error("failed to {what}")]
    Io {
        /// What was attempted.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("{0}")]
    Deadline(String),
    /// Not among the things this runtime does.
    #[error("{0}")]
    Unsupported(String),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err` on system calls.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    /// For `map_err` on calls of a supervisor.
    pub(crate) fn supervisor(what: impl Into<String>) -> impl FnOnce(CallError) -> Error {
        let what = what.into();
        move |source| Error::Supervisor { what, source }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(source) = cause {
            text = format!("{text}: {source}");
            cause = source.source();
        }
        match error {
            Error::NotFound { .. } => Status::not_found(text),
            Error::Invalid(_) => Status::invalid_argument(text),
            Error::Precondition(_) => Status::failed_precondition(text),
            Error::Deadline(_) => Status::deadline_exceeded(text),
            Error::Unsupported(_) => Status::unimplemented(text),
            Error::Image(skiff_images::Error::NotFound(_) | skiff_images::Error::PullNotFound { .. }) => {
                Status::not_found(text)
            }
            Error::Image(skiff_images::Error::InvalidReference { .. }) => Status::invalid_argument(text),
            _ => Status::unknown(text),
        }
    }
}
