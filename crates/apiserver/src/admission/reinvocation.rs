//! Asking a second time: whoever may change an object may want to see what others changed after him.

use std::collections::BTreeSet;

use serde_json::Value;

/// What one plugin has to know between the two times that it may be asked about a request.
#[derive(Default)]
pub(super) struct Reinvocation {
    /// Whether something changed that those before have not seen.
    pub(super) needed: bool,
    /// Asked before, and to be asked again if something changes.
    asked: BTreeSet<String>,
    /// To be asked again.
    due: BTreeSet<String>,
    /// The object as it was after the first time.
    left: Option<Value>,
}

impl Reinvocation {
    /// Begins the second time: what others have changed meanwhile is a reason for all to be asked.
    pub(super) fn begin_again(&mut self, value: &Value) {
        if self.left.as_ref().is_some_and(|left| left != value) {
            self.due.append(&mut self.asked);
        }
    }

    pub(super) fn is_due(&self, who: &str) -> bool {
        self.due.contains(who)
    }

    /// Somebody changed the object: all that were asked before are to be asked again.
    pub(super) fn changed(&mut self) {
        self.due.append(&mut self.asked);
        self.needed = true;
    }

    /// Somebody was asked who wants to see what changes after him.
    pub(super) fn wants_more(&mut self, who: &str) {
        self.asked.insert(who.to_owned());
    }

    /// All were asked.
    pub(super) fn end(&mut self, value: &Value) {
        self.left = Some(value.clone());
    }
}
