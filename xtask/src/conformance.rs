//! docs/conformance.md names tests that exist.

use std::{collections::BTreeSet, fs};

use crate::shell;

#[test]
fn every_line_is_shown_by_a_test() {
    let text = fs::read_to_string(shell::root().join("docs/conformance.md")).unwrap();
    let mut lines = BTreeSet::new();
    for row in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| line")) {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [line, _, test] = cells.as_slice() else { panic!("{row}") };
        assert!(lines.insert((*line).to_owned()), "{line} is there twice");
        let (module, name) = test.trim_matches('`').split_once("::").unwrap();
        let tests = fs::read_to_string(shell::root().join(format!("crates/e2e/tests/e2e/{module}.rs"))).unwrap();
        assert!(tests.contains(&format!("fn {name}()")), "{line}: there is no test {test}");
    }
    assert!(!lines.is_empty());
}
