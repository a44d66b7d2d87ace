//! `cargo xtask lint`: formatting, lints, licences.

use anyhow::Result;

use crate::{shell, test::section, tools};

pub(crate) fn run() -> Result<()> {
    section("format", format)?;
    section("lints", clippy)?;
    section("licences", licences)
}

pub(crate) fn format() -> Result<()> {
    shell::run(&mut shell::cargo(&["fmt", "--all", "--check"]))
}

pub(crate) fn clippy() -> Result<()> {
    shell::run(&mut shell::cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// Licences, sources and bans of dependencies. Not advisories: those need the network, and a new one
/// must not fail a change that has nothing to do with it.
pub(crate) fn licences() -> Result<()> {
    let mut deny = shell::command(tools::cargo_deny()?);
    shell::run(deny.args([
        "--offline",
        "--all-features",
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ]))
}
