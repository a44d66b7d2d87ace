//! What one kind adds to the engine.

use serde_json::Value;
use skiff_api::{names, validation::Faults};

use crate::object::plain_field;

/// The rules of a kind. Each function gets the whole object; the engine has checked its types before.
pub struct Strategy {
    /// Rule for `metadata.name`.
    pub names: fn(&str) -> Vec<String>,
    /// Fills in what the client left out.
    pub defaults: fn(&mut Value),
    /// Clears and sets what only the server decides, before a create.
    pub prepare_create: fn(&mut Value),
    /// The same before an update; the engine has already kept the status of the old object.
    pub prepare_update: fn(&mut Value, &Value),
    pub validate: fn(&Value, &mut Faults),
    /// What a deletion that was asked for leaves on the object, before it is carried out.
    pub prepare_delete: fn(&mut Value),
    /// Rules for a new object alone.
    pub validate_create: fn(&Value, &mut Faults),
    /// Rules between new and old; [`validate`](Strategy::validate) runs as well.
    pub validate_update: fn(&Value, &Value, &mut Faults),
    /// Rules for a write of the status.
    pub validate_status: fn(&Value, &Value, &mut Faults),
    /// Warnings for the client.
    pub warnings: fn(&Value) -> Vec<String>,
    /// Fields that selectors may name beside name and namespace.
    pub selectable: &'static [&'static str],
    pub field: fn(&Value, &str) -> String,
    pub columns: &'static [Column],
    /// The cells of a row, one for each column.
    pub row: fn(&Value) -> Vec<Value>,
    /// Whether `metadata.generation` counts the changes of the spec.
    pub generation: bool,
    /// Whether an update may leave out the resourceVersion.
    pub unconditional_update: bool,
    /// Whether an update of an object that is not there creates it.
    pub create_on_update: bool,
    /// How long an object stays after its deletion: `None` for kinds that go at once. Gets the object and what
    /// the client asked for, in seconds.
    pub grace: Option<fn(&Value, Option<i64>) -> i64>,
}

/// A column of `kubectl get`.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date`, …
    pub ty: &'static str,
    pub format: &'static str,
    /// 0 is always shown, more only with `-o wide`.
    pub priority: i32,
}

/// A column that is always shown.
pub const fn col(name: &'static str) -> Column {
    Column { name, ty: "string", format: "", priority: 0 }
}

/// The name column, which clients recognise by its format.
pub const fn name_col() -> Column {
    Column { name: "Name", ty: "string", format: "name", priority: 0 }
}

/// A column of whole numbers.
pub const fn int_col(name: &'static str) -> Column {
    Column { name, ty: "integer", format: "", priority: 0 }
}

/// A column of `-o wide`.
pub const fn wide(name: &'static str) -> Column {
    Column { name, ty: "string", format: "", priority: 1 }
}

/// Rules of kinds that have none of their own.
pub static DEFAULT: Strategy = Strategy::DEFAULT;

impl Strategy {
    pub const DEFAULT: Strategy = Strategy {
        names: names::dns1123_subdomain,
        defaults: |_| {},
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        prepare_delete: |_| {},
        validate: |_, _| {},
        validate_create: |_, _| {},
        validate_update: |_, _, _| {},
        validate_status: |_, _, _| {},
        warnings: |_| Vec::new(),
        selectable: &[],
        field: plain_field,
        columns: &[name_col(), Column { name: "Created At", ty: "date", format: "", priority: 0 }],
        row: |o| vec![o["metadata"]["name"].clone(), o["metadata"]["creationTimestamp"].clone()],
        generation: false,
        unconditional_update: true,
        create_on_update: false,
        grace: None,
    };
}
