//! The project's own tools: `cargo xtask help`.

// A tool talks to whoever called it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod apt;
mod bench;
#[cfg(test)]
mod conformance;
mod guides;
mod images;
#[cfg(test)]
mod layers;
mod lint;
mod shell;
mod test;
mod tools;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "skiff's own tools", max_term_width = 100)]
enum Xtask {
    /// Install what the tests need and run all of them, as CI does
    Test(test::Args),
    /// Formatting, lints, licences
    Lint,
    /// Build the images that the tests run, from Debian's packages
    Images(images::Args),
    /// Run everything that docs/guides.md says the guides show
    Guides,
    /// Measure the figures of docs/performance.md with the release build
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let done = match Xtask::parse() {
        Xtask::Test(args) => test::run(&args),
        Xtask::Lint => lint::run(),
        Xtask::Images(args) => images::run(&args),
        Xtask::Guides => guides::run(),
        Xtask::Bench(args) => bench::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
