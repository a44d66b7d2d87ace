//! The kinds of the storage group.

pub(crate) mod csidriver;
pub(crate) mod csinode;
pub(crate) mod storageclass;
pub(crate) mod volumeattachment;
pub(crate) mod volumeattributesclass;
