//! The runtime as the kubelet sees it: pods are made and run through CRI, as root, in namespaces and
//! cgroups of the tests' own.
//!
//! Called with `serve <socket>` it serves CRI until it is interrupted, for trying crictl and critest by hand.
//!
//! This program plays three parts. Called by cargo it runs the tests. Executed again by the runtime it
//! is a supervisor. And it is the one program in the images of the tests, see `guest`.

mod guest;
mod harness;
mod lifecycle;
mod security;
mod speed;
mod streams;

use std::process::ExitCode;

/// A test: its name and what it does.
type Test = (&'static str, fn());

#[allow(clippy::print_stderr)]
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == "runtime-supervisor") {
        return skiff_runtime::supervisor_main();
    }
    if std::env::var("FROM").is_ok_and(|from| from == "image") {
        return guest::main(&args);
    }
    if let [_, serve, socket] = args.as_slice()
        && serve == "serve"
    {
        harness::serve(std::path::Path::new(socket));
        return ExitCode::SUCCESS;
    }
    // A harness of its own: cargo's would start threads before the parts above are told apart.
    let all = [lifecycle::TESTS, streams::TESTS, security::TESTS, speed::TESTS].concat();
    let filter: Vec<_> = args.iter().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if args.iter().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    let mut failed = Vec::new();
    for (name, test) in all {
        if !filter.is_empty() && !filter.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let start = std::time::Instant::now();
        let ok = std::panic::catch_unwind(test).is_ok();
        let verdict = if ok { "ok" } else { "FAILED" };
        eprintln!("test {name} ... {verdict} ({} ms)", start.elapsed().as_millis());
        if !ok {
            failed.push(name);
        }
    }
    let left = harness::clean_up();
    if left > 0 && failed.is_empty() {
        eprintln!("{left} cgroups were left");
        return ExitCode::FAILURE;
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        eprintln!("failed: {failed:?}");
        ExitCode::FAILURE
    }
}
