//! Ingress.

use serde_json::Value;

use crate::registry::{
    strategy::{Strategy, col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    prepare_create: |o| o["status"] = serde_json::json!({"loadBalancer": {}}),
    columns: &[name_col(), col("Class"), col("Hosts"), col("Address"), col("Ports"), col("Age")],
    row: |o| {
        let rules = o["spec"]["rules"].as_array().into_iter().flatten();
        let hosts: Vec<&str> = rules.filter_map(|r| r["host"].as_str()).filter(|h| !h.is_empty()).collect();
        let hosts = match hosts.len() {
            0 => "*".to_owned(),
            n if n > 3 => format!("{} + {} more...", hosts[..3].join(","), n - 3),
            _ => hosts.join(","),
        };
        let addresses = o["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
        let addresses: Vec<&str> =
            addresses.filter_map(|i| i["ip"].as_str().or_else(|| i["hostname"].as_str())).collect();
        let tls = o["spec"]["tls"].as_array().is_some_and(|t| !t.is_empty());
        let class = table::text_or(&o["spec"]["ingressClassName"], "<none>");
        let cells: [Value; 6] = [
            o["metadata"]["name"].clone(),
            class,
            hosts.into(),
            addresses.join(",").into(),
            if tls { "80, 443".into() } else { "80".into() },
            table::created(o),
        ];
        cells.to_vec()
    },
    ..Strategy::DEFAULT
};
