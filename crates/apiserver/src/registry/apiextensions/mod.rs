//! The kinds of the group `apiextensions.k8s.io`.

pub(crate) mod customresourcedefinition;
mod structural;
