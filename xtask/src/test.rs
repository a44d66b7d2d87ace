//! `cargo xtask test`: what CI runs.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::{images, lint, shell, tools};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this section; may be given several times
    #[arg(long, value_name = "SECTION")]
    only: Vec<Section>,
    /// Of the end-to-end tests, those with this in their name
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Section {
    /// Formatting
    Format,
    /// Compiler warnings and clippy's lints, which are errors
    Lints,
    /// Licences and sources of dependencies
    Licences,
    /// Unit and contract tests of all crates
    Unit,
    /// End-to-end tests with the real binary, kubectl and images
    E2e,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    for chosen in [Section::Format, Section::Lints, Section::Licences, Section::Unit, Section::E2e] {
        if !args.only.is_empty() && !args.only.contains(&chosen) {
            continue;
        }
        match chosen {
            Section::Format => section("format", lint::format)?,
            Section::Lints => section("lints", lint::clippy)?,
            Section::Licences => section("licences", lint::licences)?,
            Section::Unit => section("unit", unit)?,
            Section::E2e => section("e2e", || e2e(&args.filter.iter().map(String::as_str).collect::<Vec<_>>()))?,
        }
    }
    println!("\nAll passed in {:.0} s.", started.elapsed().as_secs_f64());
    Ok(())
}

/// Runs a part under a heading, and names it when it fails.
pub(crate) fn section(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n━━ {name} ━━");
    let started = Instant::now();
    run().with_context(|| format!("section {name:?} failed"))?;
    println!("━━ {name}: passed in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn unit() -> Result<()> {
    tools::programs()?;
    tools::etcd()?;
    // All packages are selected in both sections, so that both use one build: what features a dependency
    // has follows from the selection.
    shell::run(&mut shell::cargo(&[
        "test",
        "--quiet",
        "--workspace",
        "--lib",
        "--bins",
        "--tests",
        "--exclude",
        "skiff-e2e",
    ]))
}

/// The end-to-end tests with one of these in their names; all if none is given.
pub(crate) fn e2e(filters: &[&str]) -> Result<()> {
    tools::programs()?;
    tools::kubectls()?;
    tools::etcdctl()?;
    tools::etcd()?;
    tools::registry()?;
    tools::swagger_ui()?;
    tools::helm()?;
    images::all()?;
    shell::run(&mut shell::cargo(&["build", "--quiet", "--workspace", "--bins", "--tests"]))?;
    let mut tests = shell::cargo(&["test", "--quiet", "--workspace", "--test", "e2e", "--"]);
    shell::run(tests.args(filters))
}
