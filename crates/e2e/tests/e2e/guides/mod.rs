//! The guides' walkthroughs, as written there. `docs/guides.md` says which test shows which command, manifest and
//! claim; `cargo xtask guides` runs them all.

mod broken;
mod clusters;
mod commands;
mod fastapi;
mod hello;
mod manifests;
mod operator;
mod releases;
mod three_tier;

use std::{path::PathBuf, time::Duration};

use skiff_e2e::{Kubectl, eventually, host, wait::check};

use crate::runner::Test;

/// The tests of all guides.
pub(crate) fn tests() -> Vec<Test> {
    [
        fastapi::TESTS,
        broken::TESTS,
        clusters::TESTS,
        operator::TESTS,
        three_tier::TESTS,
        hello::TESTS,
        commands::TESTS,
        manifests::TESTS,
        releases::TESTS,
    ]
    .concat()
}

/// Programs with interpreters, and databases that are made anew, on two shared cores.
const PATIENCE: Duration = Duration::from_secs(120);

/// A manifest of the guides.
fn manifest(name: &str) -> String {
    let path: PathBuf = host::root().join("crates/e2e/tests/e2e/guides/manifests").join(name);
    path.to_str().expect("UTF-8").to_owned()
}

/// Until `kubectl get WHAT` has a row whose cells begin with these.
fn rows(kubectl: &Kubectl, what: &[&str], columns: &[&str], row: &[&str]) {
    eventually(PATIENCE, || {
        let text = kubectl.run(&[&["get"], what].concat()).result()?;
        let header = text.lines().next().unwrap_or_default();
        check(header.split_whitespace().eq(columns.iter().copied()), || text.clone())?;
        let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let found =
            text.lines().map(cells).any(|cells| row.iter().zip(&cells).all(|(wanted, cell)| cell.starts_with(wanted)));
        check(found, || text.clone())
    });
}

const PODS: &[&str] = &["NAME", "READY", "STATUS", "RESTARTS", "AGE"];
const SERVICES: &[&str] = &["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"];
