//! `cargo xtask bench`: the figures of docs/performance.md.

use anyhow::Result;

use crate::{images, shell, tools};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these figures: create, idle, pods, writes, services, size
    only: Vec<String>,
}

/// The measuring program needs clients of the API and of etcd. It is built only when it is wanted, so that
/// `cargo xtask test` starts at once.
pub(crate) fn run(args: &Args) -> Result<()> {
    tools::kubectls()?;
    images::all()?;
    let etcd = tools::etcd()?;
    // In one build, so that what both use is built once.
    let packages = ["--release", "--package", "skiff", "--package", "skiff-e2e"];
    shell::run(&mut shell::cargo(&[&["build"], &packages[..], &["--bins", "--benches"]].concat()))?;
    let mut bench =
        shell::cargo(&["bench", "--quiet", "--package", "skiff", "--package", "skiff-e2e", "--bench", "figures", "--"]);
    shell::run(bench.env("SKIFF_BENCH_ETCD", etcd).args(&args.only))
}
