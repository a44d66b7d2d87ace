//! The store: etcd's semantics on an embedded engine.
