//! `cargo xtask bench`: the figures of docs/performance.md.

use anyhow::Result;

use crate::{images, shell, tools};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these figures: create, idle, pods, writes, size
    only: Vec<String>,
}

/// The measuring program needs clients of the API and of etcd. It is built only when it is wanted, so that
/// `cargo xtask test` starts at once.
pub(crate) fn run(args: &Args) -> Result<()> {
    tools::kubectls()?;
    images::all()?;
    let etcd = tools::tool("etcd", |path| tools::from_package("trixie", "etcd-server", "usr/bin/etcd", path))?;
    shell::run(&mut shell::cargo(&["build", "--release", "--package", "skiff"]))?;
    let mut bench = shell::cargo(&["bench", "--quiet", "--package", "skiff-e2e", "--bench", "figures", "--"]);
    shell::run(bench.env("SKIFF_BENCH_ETCD", etcd).args(&args.only))
}
