//! The store's tests from outside, in one binary.

mod blockdev;
mod contract;
mod crash;
mod damage;
mod engine;
mod etcd;
mod full;
mod model;
mod power;
mod seen;
mod snapshot;
