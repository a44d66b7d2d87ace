//! Small helpers with no Kubernetes in them.
