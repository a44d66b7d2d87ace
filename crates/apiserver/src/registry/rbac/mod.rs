//! Roles and their bindings.

pub(crate) mod role;
pub(crate) mod rolebinding;
