//! What can go wrong with images.

use std::io;

/// Why an operation on images failed. The cause, where there is one, is the error's source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not an image reference. The wording is that of the Go reference library.
    #[error("couldn't parse image name {reference:?}: invalid reference format{detail}")]
    InvalidReference {
        /// What was given.
        reference: String,
        /// What exactly is wrong, starting with a colon, or nothing.
        detail: &'static str,
    },
    /// No image of that name or id is in the store.
    #[error("image {0:?} not found")]
    NotFound(String),
    /// A system call failed.
    #[error("cannot {what}")]
    Io {
        /// What was attempted, as a verb with its object.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The archive is not one of the two formats, or is damaged.
    #[error("not a usable image archive: {0}")]
    Archive(String),
    /// Content does not have the digest it is known by.
    #[error("{what} has digest {actual}, expected {expected}")]
    DigestMismatch {
        /// Which content.
        what: String,
        /// The digest it is known by.
        expected: String,
        /// What its bytes hash to.
        actual: String,
    },
    /// A layer holds an entry that would reach outside of its directory or that cannot be.
    #[error("layer entry {path:?} refused: {reason}")]
    UnsafeEntry {
        /// The entry's name.
        path: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// An entry of a layer could not be written.
    #[error("cannot unpack layer entry {path:?}")]
    Unpack {
        /// The entry's name.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A Dockerfile says what cannot be done.
    #[error(transparent)]
    Dockerfile(#[from] crate::build::DockerfileError),
    /// An instruction of a Dockerfile failed.
    #[error("dockerfile line {line}: {instruction}: {message}")]
    Step {
        /// Where the instruction begins.
        line: usize,
        /// As written.
        instruction: String,
        /// What went wrong.
        message: String,
    },
    /// Larger than is accepted, see [`Limits`](crate::Limits).
    #[error("{what} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit in force.
        limit: u64,
    },
    /// A manifest or configuration does not say what it must.
    #[error("invalid {what}: {reason}")]
    Manifest {
        /// Which document.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry does not have the image.
    #[error(
        "failed to pull and unpack image {reference:?}: failed to resolve reference {reference:?}: {reference}: not found"
    )]
    PullNotFound {
        /// The reference, normalised.
        reference: String,
    },
    /// The registry refuses these credentials, or anonymous access.
    #[error(
        "failed to pull and unpack image {reference:?}: failed to resolve reference {reference:?}: pull access denied, repository does not exist or may require authorization: {message}"
    )]
    PullDenied {
        /// The reference, normalised.
        reference: String,
        /// What the registry said.
        message: String,
    },
    /// The registry could not be reached or answered with an error.
    #[error("failed to pull and unpack image {reference:?}: failed to {step}: {message}")]
    Pull {
        /// The reference, normalised.
        reference: String,
        /// What was attempted: `resolve reference "…"` or `copy: …`.
        step: String,
        /// What went wrong, with its causes.
        message: String,
    },
    /// The registry could not be reached, or did not take the image.
    #[error("cannot push {reference:?}: cannot {step}: {message}")]
    Push {
        /// The reference, normalised.
        reference: String,
        /// What was attempted, as a verb with its object.
        step: String,
        /// What went wrong, with its causes.
        message: String,
    },
}

impl Error {
    /// For `map_err` on system calls.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}
