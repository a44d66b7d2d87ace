//! What many tests use: made when the first one wants it, taken away after the last.

use std::sync::OnceLock;

use parking_lot::Mutex;
use skiff_e2e::{Kubectl, Server, leftovers};

use crate::runner::Test;

static SERVER: OnceLock<Mutex<Option<Server>>> = OnceLock::new();

/// kubectl in a new namespace of a control plane without nodes.
pub(crate) fn server(namespace: &str) -> Kubectl {
    let server = SERVER.get_or_init(|| Mutex::new(Some(Server::start())));
    let kubectl = server.lock().as_ref().expect("taken only after the last test").kubectl();
    kubectl.in_new(namespace)
}

/// Takes everything away, and tells what is left.
pub(crate) fn clear() -> Vec<String> {
    let mut left = Vec::new();
    if let Some(server) = SERVER.get().and_then(|server| server.lock().take()) {
        drop(server);
    }
    left.extend(leftovers::devices().into_iter().map(|device| format!("network device {device}")));
    left
}

/// The last test.
pub(crate) const END: Test = Test { name: "nothing_is_left_behind", run: nothing_is_left_behind };

fn nothing_is_left_behind() {
    let left = clear();
    assert!(left.is_empty(), "{left:#?}");
}
