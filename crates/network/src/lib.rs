//! Links, routes, nftables and the built-in CNI plugin.
//!
//! Everything the node does to the kernel's network goes through here, over small synchronous netlink
//! sockets: no tool is executed and no library is loaded. The layers, bottom up:
//!
//! - [`netlink`]: messages, attributes and sockets.
//! - [`netns`]: creating, pinning and entering network namespaces.
//! - [`links`]: bridges, veth pairs, VXLAN, addresses, routes, neighbours.
//! - [`nft`]: nftables tables, chains, rules, sets and maps in atomic batches.
//! - [`conntrack`]: forgetting flows whose destination is gone.
//! - [`ipam`], [`hostport`], [`pod`], [`cni`]: the pod network of one node, as a library and as a CNI plugin.
//! - [`nodes`]: reaching the pods of the other nodes.
#![allow(unsafe_code)]

pub mod cni;
pub mod conntrack;
mod error;

pub mod hostport;
pub mod ipam;
pub mod links;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod nodes;
pub mod pod;

pub mod subnet;
pub mod sysctl;

pub use error::{Error, Result};
pub use netns::NetNs;

pub use pod::{PodNetwork, PodNetworkConfig};
pub use subnet::Subnet;
