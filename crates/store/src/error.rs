//! What can go wrong, with the code, key and revision that the API server needs for its answer.

use std::path::PathBuf;

use crate::{LeaseId, Revision};

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of a failure, for mapping it to an API status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The revision asked for is older than the compaction: list again.
    Compacted,
    /// The revision asked for has not been reached.
    FutureRevision,
    /// The watcher did not keep up and was ended: list again.
    SlowWatcher,
    /// The request makes no sense whatever the store's state.
    InvalidArgument,
    /// The request is larger than the store takes.
    TooLarge,
    /// No such lease, or it ended.
    LeaseNotFound,
    /// A lease of this name exists.
    LeaseExists,
    /// The disk is full; the write did not happen. Works again once there is space.
    NoSpace,
    /// The store cannot serve now (an I/O error, or it is being closed); try again.
    Unavailable,
    /// Another process has the file open.
    Locked,
    /// The file is damaged; the store refuses to serve it.
    Corrupt,
    /// A value is encrypted with a key that is not there.
    Undecryptable,
}

/// A failed operation. A failed compare is not an error: see
/// [`TxnOutcome::Failed`](crate::TxnOutcome::Failed).
///
/// Errors are `Clone` because one failed group commit answers many writers.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// See [`Code::Compacted`].
    #[error("required revision {requested} has been compacted, the oldest is {compacted}")]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// The revision of the last compaction.
        compacted: Revision,
    },
    /// See [`Code::FutureRevision`].
    #[error("required revision {requested} is a future revision, the store is at {current}")]
    FutureRevision {
        /// The revision asked for.
        requested: Revision,
        /// The last acknowledged revision.
        current: Revision,
    },
    /// See [`Code::SlowWatcher`].
    #[error(
        "watch of {prefix:?} ended after revision {last}: the watcher is {queued_bytes} bytes behind, \
         {budget_bytes} are allowed"
    )]
    SlowWatcher {
        /// What was watched.
        prefix: String,
        /// The last revision that was delivered in full.
        last: Revision,
        /// Bytes waiting when the watch was ended.
        queued_bytes: usize,
        /// Bytes allowed to wait.
        budget_bytes: usize,
    },
    /// See [`Code::InvalidArgument`].
    #[error("invalid request: {what}")]
    InvalidArgument {
        /// What is wrong with it.
        what: String,
        /// The key concerned, if it is about one.
        key: Option<String>,
    },
    /// See [`Code::TooLarge`].
    #[error("request is too large: {what} of {size} exceeds the limit of {limit}")]
    TooLarge {
        /// What was measured.
        what: &'static str,
        /// The size found.
        size: usize,
        /// The size allowed.
        limit: usize,
        /// The key concerned, if it is about one.
        key: Option<String>,
    },
    /// See [`Code::LeaseNotFound`].
    #[error("requested lease {lease} not found")]
    LeaseNotFound {
        /// The lease asked for.
        lease: LeaseId,
    },
    /// See [`Code::LeaseExists`].
    #[error("lease {lease} already exists")]
    LeaseExists {
        /// The lease asked for.
        lease: LeaseId,
    },
    /// See [`Code::NoSpace`].
    #[error("no space left for the store at {}: the write was not done", path.display())]
    NoSpace {
        /// The store's file.
        path: PathBuf,
    },
    /// See [`Code::Unavailable`].
    #[error("the store is unavailable: {what}")]
    Unavailable {
        /// What failed.
        what: String,
    },
    /// See [`Code::Locked`].
    #[error("the store at {} is in use by another process{holder}", path.display())]
    Locked {
        /// The store's file.
        path: PathBuf,
        /// ` (process N)` when known.
        holder: String,
    },
    /// See [`Code::Corrupt`].
    #[error(
        "the store at {} is damaged: {what}; refusing to serve it. To go back to the last snapshot: \
         stop skiff, move the file away, and run `skiff snapshot restore`", path.display()
    )]
    Corrupt {
        /// The store's file.
        path: PathBuf,
        /// The record or page concerned and what is wrong with it.
        what: String,
        /// The damaged record's key, if known.
        key: Option<String>,
        /// The damaged record's revision, if known.
        revision: Option<Revision>,
    },
    /// See [`Code::Undecryptable`].
    #[error("the value of {key:?} cannot be decrypted: {what}")]
    Undecryptable {
        /// What does not fit.
        what: String,
        /// The value's key in the store.
        key: String,
        /// The revision that wrote it.
        revision: Revision,
    },
}

impl Error {
    /// The kind of failure.
    pub fn code(&self) -> Code {
        match self {
            Error::Compacted { .. } => Code::Compacted,
            Error::FutureRevision { .. } => Code::FutureRevision,
            Error::SlowWatcher { .. } => Code::SlowWatcher,
            Error::InvalidArgument { .. } => Code::InvalidArgument,
            Error::TooLarge { .. } => Code::TooLarge,
            Error::LeaseNotFound { .. } => Code::LeaseNotFound,
            Error::LeaseExists { .. } => Code::LeaseExists,
            Error::NoSpace { .. } => Code::NoSpace,
            Error::Unavailable { .. } => Code::Unavailable,
            Error::Locked { .. } => Code::Locked,
            Error::Corrupt { .. } => Code::Corrupt,
            Error::Undecryptable { .. } => Code::Undecryptable,
        }
    }

    /// The key concerned, if the failure is about one.
    pub fn key(&self) -> Option<&str> {
        match self {
            Error::InvalidArgument { key, .. } | Error::TooLarge { key, .. } | Error::Corrupt { key, .. } => {
                key.as_deref()
            }
            Error::SlowWatcher { prefix: key, .. } | Error::Undecryptable { key, .. } => Some(key),
            _ => None,
        }
    }

    /// The revision concerned: for [`Error::Compacted`] the oldest one that can be had, for
    /// [`Error::FutureRevision`] the newest.
    pub fn revision(&self) -> Option<Revision> {
        match self {
            Error::Compacted { compacted, .. } => Some(*compacted),
            Error::FutureRevision { current, .. } => Some(*current),
            Error::SlowWatcher { last, .. } => Some(*last),
            Error::Corrupt { revision, .. } => *revision,
            Error::Undecryptable { revision, .. } => Some(*revision),
            _ => None,
        }
    }

    pub(crate) fn unavailable(what: impl Into<String>) -> Error {
        Error::Unavailable { what: what.into() }
    }
}
