//! Runs tests, several at a time. Cargo's own runner cannot run something after the last test, which is
//! when what they share has to go, and its going is a test too.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::Mutex,
    thread,
    time::Instant,
};

/// One test.
#[derive(Clone, Copy)]
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) run: fn(),
}

/// Tests mostly wait; more at once would wait for each other.
const AT_ONCE: usize = 4;

/// Runs those whose names contain an argument of the command line, and afterwards `end`.
pub(crate) fn run(tests: &[Test], end: Test) -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let filters: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen = tests.iter().filter(|test| filters.is_empty() || filters.iter().any(|part| test.name.contains(*part)));
    let queue: Mutex<VecDeque<Test>> = Mutex::new(chosen.copied().collect());
    if args.iter().any(|arg| arg == "--list") {
        for test in queue.lock().expect("no test holds it").iter() {
            println!("{}: test", test.name);
        }
        return ExitCode::SUCCESS;
    }
    let failed = Mutex::new(Vec::new());
    let one = |test: Test| {
        let started = Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(test.run)).is_ok();
        skiff_e2e::kubectl::delete_new_namespaces();
        let verdict = if passed { "ok" } else { "FAILED" };
        println!("test {} ... {verdict} ({:.1} s)", test.name, started.elapsed().as_secs_f64());
        if !passed {
            failed.lock().expect("no test holds it").push(test.name);
        }
    };
    let one = &one;
    let next = || queue.lock().expect("no test holds it").pop_front();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(test) = next() {
                    // A thread for each, with its name, which is what a panic's message begins with.
                    let named = thread::Builder::new().name(test.name.to_owned());
                    named.spawn_scoped(scope, move || one(test)).expect("a thread").join().expect("panics are caught");
                }
            });
        }
    });
    one(end);
    let failed = failed.into_inner().expect("all threads have ended");
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("\nfailed: {failed:#?}");
    ExitCode::FAILURE
}
