//! The guides' walkthroughs, as written there. `docs/guides.md` says which test shows which command, manifest and
//! claim; `cargo xtask guides` runs them all.

mod hello;

use std::time::Duration;

use skiff_e2e::{Kubectl, eventually, wait::check};

use crate::runner::Test;

/// The tests of all guides.
pub(crate) fn tests() -> Vec<Test> {
    hello::TESTS.to_vec()
}

/// Programs with interpreters, and databases that are made anew, on two shared cores.
const PATIENCE: Duration = Duration::from_secs(120);

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
