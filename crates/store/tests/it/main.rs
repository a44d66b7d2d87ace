//! The store's tests from outside, in one binary.

mod contract;
