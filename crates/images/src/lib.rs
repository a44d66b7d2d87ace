//! OCI images: import, pull, unpack, store.
