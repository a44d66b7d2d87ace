//! Endpoints.

use serde_json::Value;

use crate::registry::{
    strategy::{Strategy, col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    create_on_update: true,
    warnings: |_| vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".into()],
    columns: &[name_col(), col("Endpoints"), col("Age")],
    row: |o| vec![o["metadata"]["name"].clone(), addresses(o).into(), table::created(o)],
    ..Strategy::DEFAULT
};

/// The first three endpoints and how many more there are.
fn addresses(o: &Value) -> String {
    const SHOWN: usize = 3;
    let mut list = Vec::new();
    for subset in o["subsets"].as_array().into_iter().flatten() {
        let ports: Vec<i64> =
            subset["ports"].as_array().into_iter().flatten().filter_map(|p| p["port"].as_i64()).collect();
        for address in subset["addresses"].as_array().into_iter().flatten() {
            let ip = address["ip"].as_str().unwrap_or_default();
            if ports.is_empty() {
                list.push(ip.to_owned());
            }
            list.extend(
                ports.iter().map(|p| if ip.contains(':') { format!("[{ip}]:{p}") } else { format!("{ip}:{p}") }),
            );
        }
    }
    match list.len() {
        0 => "<none>".into(),
        n if n > SHOWN => format!("{} + {} more...", list[..SHOWN].join(","), n - SHOWN),
        _ => list.join(","),
    }
}
