//! What the parts of the local storage agree on: the provisioner makes volumes, the scheduler names their node, the
//! node makes and removes their directories.

/// The class that every cluster has, and that claims without a class get.
pub const CLASS: &str = "standard";

/// The provisioner of that class.
pub const PROVISIONER: &str = "skiff.local/local-path";

/// Label of a local volume: the node that has its directory.
pub const NODE_LABEL: &str = "skiff.local/node";

/// Finalizer of a local volume: taken away by its node once the directory is removed.
pub const DIRECTORY_FINALIZER: &str = "skiff.local/directory";

/// Where nodes keep the directories of local volumes. Nothing outside of it is ever removed.
pub const ROOT: &str = "/var/lib/skiff/storage";

/// Annotation of a claim: the node that the scheduler has chosen for its first consumer.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// Annotation of a claim: the binder has done its part.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

/// Annotation of a claim or a volume: the binder and not a user has named the other one.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

/// Annotation of a volume: the provisioner that has made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// Annotations of a claim: the provisioner that is to make its volume. The first one is of old.
pub const STORAGE_PROVISIONER: [&str; 2] =
    ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"];
