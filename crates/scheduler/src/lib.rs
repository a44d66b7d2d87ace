//! The scheduler: pods that have no node get the best of those that they fit on.
//!
//! One loop takes pods from the [`queue`] by priority and age, asks every filter plugin for every node, lets the
//! score plugins choose among those that are left, and binds. Between the choice and the moment when the watch shows
//! it, the pod counts as being there ([`nodes`]), so that two pods never get the same room.
//!
//! A pod that fits nowhere waits until something changes that may help it: a node, or a pod that goes.

mod nodes;
mod plugins;
mod queue;
mod scheduler;

pub use scheduler::{SCHEDULER_NAME, run};
