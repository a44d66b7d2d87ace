//! End-to-end tests. `cargo xtask test --only e2e --filter TEXT` prepares what they need and runs those with
//! TEXT in their name.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod aggregation;
mod api;
mod autoscaling;
mod clusters;
mod components;
mod control_planes;
mod crashes;
mod csi;
mod dashboard;
mod dual_stack;
mod etcd;
mod extension;
mod extension_server;
mod faults;
mod guides;
mod helm;
mod images;
mod ingress;
mod kubectl;
mod machines;
mod monitoring;
mod network;
mod network_policies;
mod node_failures;
mod runner;
mod scheduling;
mod server_side_apply;
mod services;
mod shared;
mod storage;
mod webhooks;
mod workload_kinds;
mod workloads;

use std::process::ExitCode;

/// A name and a function: the entry of a test in its module's `TESTS`.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        /// The tests of this module.
        pub(crate) const TESTS: &[crate::runner::Test] =
            &[$(crate::runner::Test { name: concat!(module_path!(), "::", stringify!($name)), run: $name }),*];
    };
}
pub(crate) use tests;

fn main() -> ExitCode {
    skiff_e2e::host::enter(
        || {
            skiff_e2e::home::clear_after_the_killed();
            let all = [
                &guides::tests(),
                workloads::TESTS,
                workload_kinds::TESTS,
                network::TESTS,
                network_policies::TESTS,
                services::TESTS,
                dual_stack::TESTS,
                ingress::TESTS,
                storage::TESTS,
                csi::TESTS,
                autoscaling::TESTS,
                monitoring::TESTS,
                helm::TESTS,
                scheduling::TESTS,
                crashes::TESTS,
                dashboard::TESTS,
                clusters::TESTS,
                images::TESTS,
                machines::TESTS,
                control_planes::TESTS,
                api::TESTS,
                server_side_apply::TESTS,
                faults::TESTS,
                node_failures::TESTS,
                components::TESTS,
                etcd::TESTS,
                extension::TESTS,
                kubectl::TESTS,
                webhooks::TESTS,
                aggregation::TESTS,
            ]
            .concat();
            runner::run(&all, shared::END)
        },
        || drop(shared::clear()),
    )
}
