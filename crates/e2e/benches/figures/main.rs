//! Measures the figures of docs/performance.md: `cargo xtask bench`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod api;
mod create;
mod etcd;
mod idle;
mod pods;
mod services;
mod writes;

use std::process::ExitCode;

/// A line of the table.
struct Figure {
    what: String,
    measured: String,
    goal: &'static str,
}

impl Figure {
    fn new(what: impl Into<String>, measured: impl Into<String>, goal: &'static str) -> Self {
        Self { what: what.into(), measured: measured.into(), goal }
    }
}

type Measure = fn() -> Vec<Figure>;

const ALL: [(&str, Measure); 6] = [
    ("size", size),
    ("create", create::measure),
    ("idle", idle::measure),
    ("pods", pods::measure),
    ("writes", writes::measure),
    ("services", services::measure),
];

fn main() -> ExitCode {
    skiff_e2e::host::enter(run, || ())
}

fn run() -> ExitCode {
    skiff_e2e::home::clear_after_the_killed();
    let chosen: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let mut figures = Vec::new();
    for (name, measure) in ALL {
        if chosen.is_empty() || chosen.iter().any(|wanted| wanted == name) {
            eprintln!("measuring {name}");
            figures.extend(measure());
        }
    }
    let width =
        |column: fn(&Figure) -> &str| figures.iter().map(|figure| column(figure).chars().count()).max().unwrap_or(0);
    let (what, measured) = (width(|figure| &figure.what), width(|figure| &figure.measured));
    println!("{:what$}   {:measured$}   goal", "figure", "measured");
    for figure in &figures {
        println!("{:what$}   {:measured$}   {}", figure.what, figure.measured, figure.goal);
    }
    ExitCode::SUCCESS
}

fn size() -> Vec<Figure> {
    let bytes = std::fs::metadata(skiff_e2e::host::skiff()).expect("it was built").len();
    vec![Figure::new("binary", format!("{:.1} MB", bytes as f64 / 1e6), "≤ 40 MB")]
}

/// The middle one of some measurements.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
