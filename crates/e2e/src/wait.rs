//! Waiting for a condition, never for time.

use std::{
    thread,
    time::{Duration, Instant},
};

const PAUSE: Duration = Duration::from_millis(50);

/// Tries until `attempt` succeeds, and panics with its last complaint when it does not in time.
#[track_caller]
pub fn eventually<T>(patience: Duration, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(complaint) if Instant::now() >= deadline => panic!("not within {patience:?}: {complaint}"),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// For `eventually`: the condition, or what was seen instead.
pub fn check(holds: bool, seen: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(seen()) }
}
