//! Server-side apply and field ownership (`metadata.managedFields`), as functions on values and the table of types.
//!
//! The rules are upstream's: who changes a field owns it; who applies a configuration owns what is in it, conflicts
//! with whoever owns what it would change, and takes away what it applied before and nobody owns any more.

mod managed;
mod merge;
mod schema;
mod set;

pub use self::{
    managed::{ApplyError, Conflict, LAST_APPLIED, Managed, Writer},
    merge::{Difference, atomics, compare, fields_of, merge},
    schema::Schema,
    set::FieldSet,
};

#[cfg(test)]
mod tests;
