//! Snapshots: the current state in a file of its own, and back.
