//! Links, routes, nftables and the built-in CNI plugin.
