//! The scheduler: pods that have no node get the best of those that they fit on.
//!
//! One loop takes pods from the [`queue`] by priority and age, asks every filter plugin for every node, lets the
//! score plugins choose among those that are left, and binds. Between the choice and the moment when the watch shows
//! it, the pod counts as being there ([`nodes`]), so that two pods never get the same room.
//!
//! A pod that fits nowhere may have pods of lower priority go ([`preemption`]); otherwise it waits until something
//! changes that may help it: a node, a volume, a pod that comes or goes. What is written once a node is chosen, volumes
//! first, is in [`binding`].

mod binding;
mod nodes;
mod plugins;
mod preemption;
mod queue;
mod scheduler;

pub use scheduler::{SCHEDULER_NAME, run};
