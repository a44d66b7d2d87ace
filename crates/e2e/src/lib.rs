//! The harness of the end-to-end tests and of the measurements: it drives the real `skiff` binary and
//! Debian's `kubectl` as a user does, and takes away whatever it made, also after a failure.
//!
//! Everything runs in a network namespace of its own ([`host`]): ports of 127.0.0.1 there belong to the
//! tests, so that port 80 is free, and no address of a cluster ever exists on the machine itself.

// A test program talks to whoever called it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

pub mod browser;
pub mod cluster;
pub mod command;
pub mod home;
pub mod host;
pub mod kubectl;
pub mod leftovers;
pub mod machine;
pub mod server;
pub mod wait;

pub use cluster::Cluster;
pub use command::Output;
pub use home::Home;
pub use kubectl::{Kubectl, Version};
pub use machine::{LoadBalancer, Machine, Wire};
pub use server::Server;
pub use wait::eventually;
