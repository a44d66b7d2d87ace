//! The Kubernetes API as data: kinds, their fields, metadata, selectors, quantities and patches; no I/O.
