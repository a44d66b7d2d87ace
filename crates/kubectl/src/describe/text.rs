//! The text of a description, aligned when it is complete.

use serde_json::Value;

use super::{keys, show};
use crate::print::tabs::Tabs;

/// Longer annotations go on a line of their own, and are cut there.
const MAX_ANNOTATION: usize = 140;
const HIDDEN: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Lines with tabs between their cells.
#[derive(Debug, Default)]
pub(super) struct Text {
    aligned: String,
    pending: String,
}

/// Writes a line at a level; each is two spaces.
macro_rules! line {
    ($w:expr, $level:expr, $($arg:tt)*) => { $w.line($level, format_args!($($arg)*)) };
}
pub(super) use line;

impl Text {
    pub(super) fn line(&mut self, level: usize, text: std::fmt::Arguments<'_>) {
        use std::fmt::Write as _;
        self.pending.extend(std::iter::repeat_n("  ", level));
        // Writing to a string does not fail.
        let _ = writeln!(self.pending, "{text}");
    }

    /// Aligns what is there; columns begin anew behind it.
    pub(super) fn flush(&mut self) {
        let aligned = Tabs::of_descriptions().align(&self.pending);
        self.aligned.push_str(&aligned);
        self.pending.clear();
    }

    pub(super) fn finish(mut self) -> String {
        self.flush();
        self.aligned
    }

    /// With the tabs as they are.
    pub(super) fn unaligned(self) -> String {
        self.aligned + &self.pending
    }

    /// A title, and each entry on a line behind it.
    pub(super) fn entries(&mut self, indent: &str, title: &str, entries: &[String]) {
        let Some((first, rest)) = entries.split_first() else {
            self.line(0, format_args!("{indent}{title}:\t<none>"));
            return;
        };
        self.line(0, format_args!("{indent}{title}:\t{first}"));
        for entry in rest {
            self.line(0, format_args!("{indent}\t{entry}"));
        }
    }

    pub(super) fn labels(&mut self, title: &str, labels: &Value) {
        self.labels_at("", title, labels);
    }

    pub(super) fn labels_at(&mut self, indent: &str, title: &str, labels: &Value) {
        let entries: Vec<_> = keys(labels).into_iter().map(|key| format!("{key}={}", show(&labels[key]))).collect();
        self.entries(indent, title, &entries);
    }

    pub(super) fn annotations(&mut self, title: &str, annotations: &Value) {
        let mut entries = Vec::new();
        for key in keys(annotations).into_iter().filter(|key| *key != HIDDEN) {
            let value = show(&annotations[key]);
            let value = value.strip_suffix('\n').unwrap_or(&value);
            if value.len() + key.len() + 2 > MAX_ANNOTATION || value.contains('\n') {
                entries.push(format!("{key}:"));
                entries.extend(value.split('\n').map(|line| format!("  {}", shorten(line, MAX_ANNOTATION - 2))));
            } else {
                entries.push(format!("{key}: {value}"));
            }
        }
        self.entries("", title, &entries);
    }
}

fn shorten(text: &str, length: usize) -> String {
    if text.len() <= length {
        return text.to_owned();
    }
    let end = (0..=length).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}...", &text[..end])
}
