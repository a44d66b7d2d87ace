//! Ingress.

pub(crate) mod ingress;
