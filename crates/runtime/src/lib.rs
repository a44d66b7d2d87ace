//! The built-in container runtime: a CRI implementation on namespaces, cgroups and overlayfs.
