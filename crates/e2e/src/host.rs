//! The "machine" that the tests run on: a network namespace with a loopback device and nothing else.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use nix::sys::signal::{SigSet, Signal};
use skiff_network::NetNs;

const INSIDE: &str = "SKIFF_E2E_HOST";

/// Runs `main` in a new network namespace, by executing this program again there. Must be called before
/// any thread is started. `clean_up` runs when the program is told to end.
pub fn enter(main: impl FnOnce() -> ExitCode, clean_up: fn()) -> ExitCode {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().expect("these can be blocked");
    if std::env::var_os(INSIDE).is_some() {
        std::thread::spawn(move || {
            let signal = signals.wait().expect("these can be waited for");
            eprintln!("ended by {signal}");
            clean_up();
            std::process::exit(130);
        });
        return main();
    }
    let host = NetNs::create().expect("root may create network namespaces");
    let mut again = Command::new(std::env::current_exe().expect("has a path"));
    again.args(std::env::args_os().skip(1)).env(INSIDE, std::process::id().to_string());
    // A signal from the terminal reaches both; one to this process alone ends this one, and then the
    // namespace still lives as long as the other.
    let status = host.run(|| again.status()).expect("can be entered").expect("runs again");
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("crates/e2e is in the repository").to_owned()
}

/// Something below cargo's target folder that `cargo xtask test` puts there.
pub fn prepared(path: &str) -> PathBuf {
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::path::absolute(dir).expect("there is a working directory"),
        None => root().join("target"),
    };
    let path = target.join(path);
    assert!(path.exists(), "{} is missing: run `cargo xtask test --only e2e` first", path.display());
    path
}

/// The binary that is tested, of the profile that this program is built with.
pub fn skiff() -> PathBuf {
    built("skiff")
}

/// A program of the repository, of the profile that this program is built with.
pub fn built(name: &str) -> PathBuf {
    let here = std::env::current_exe().expect("has a path");
    let profile = here.ancestors().nth(2).expect("PROFILE/deps/THIS");
    let program = profile.join(name);
    assert!(program.exists(), "{} is missing: run `cargo build --workspace --bins` first", program.display());
    program
}
