//! CSINode.

use crate::registry::{
    strategy::{Strategy, col, int_col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    columns: &[name_col(), int_col("Drivers"), col("Age")],
    row: |o| {
        let drivers = o["spec"]["drivers"].as_array().map_or(0, Vec::len);
        vec![o["metadata"]["name"].clone(), drivers.into(), table::created(o)]
    },
    ..Strategy::DEFAULT
};
