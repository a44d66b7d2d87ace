//! `cargo xtask guides`: everything that docs/guides.md says the guides show.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result, bail};

use crate::{shell, test};

/// Runs all tests that the table names.
pub(crate) fn run() -> Result<()> {
    let rows = rows()?;
    let tests: BTreeSet<&str> = rows.iter().flat_map(Row::tests).collect();
    for state in STATES {
        println!("{:>4} rows: {state}", rows.iter().filter(|row| row.state == state).count());
    }
    for row in rows.iter().filter(|row| row.state == "partly" || row.state == "not yet") {
        println!("{}: {}: {}", row.state, row.what, row.shown_by);
    }
    test::section("guides", || test::e2e(&tests.into_iter().collect::<Vec<_>>()))
}

const STATES: [&str; 6] = ["holds", "by hand", "partly", "not yet", "cannot", "other"];

/// A row of the tables.
struct Row {
    what: String,
    state: String,
    shown_by: String,
}

impl Row {
    /// What stands in backticks and has the form of a test's name.
    fn tests(&self) -> impl Iterator<Item = &str> {
        self.shown_by.split('`').skip(1).step_by(2).filter(|word| word.contains("::"))
    }
}

fn rows() -> Result<Vec<Row>> {
    let text = fs::read_to_string(shell::root().join("docs/guides.md")).context("cannot read docs/guides.md")?;
    let mut rows = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("| ") && !line.contains(" | state | ")) {
        // A pipe of a command is written with a backslash.
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
        let [what, state, shown_by] = cells.as_slice() else { bail!("docs/guides.md: not a row: {line}") };
        rows.push(Row { what: what.clone(), state: state.clone(), shown_by: shown_by.clone() });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_state_and_a_test_that_exists() {
        let rows = rows().unwrap();
        assert!(rows.len() > 300, "the guides have more than {} rows", rows.len());
        for row in &rows {
            assert!(STATES.contains(&row.state.as_str()), "{}", row.what);
            assert!(row.state != "holds" || row.tests().count() >= 1, "{} has no test", row.what);
            assert!(!row.shown_by.is_empty(), "{} has no reason", row.what);
            for test in row.tests() {
                let (module, name) = test.rsplit_once("::").unwrap();
                let file = format!("crates/e2e/tests/e2e/{}.rs", module.replace("::", "/"));
                let tests =
                    fs::read_to_string(shell::root().join(&file)).unwrap_or_else(|_| panic!("there is no {file}"));
                assert!(tests.contains(&format!("fn {name}()")), "{}: there is no test {test}", row.what);
            }
        }
    }
}
