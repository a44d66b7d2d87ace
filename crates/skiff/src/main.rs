//! skiff: Kubernetes as one binary.
fn main() {}
