//! The Service proxy: Services and EndpointSlices into nftables rules.
