//! NetworkPolicy. What it does to packets is the proxy's matter.

use serde_json::{Value, json};
use skiff_api::{
    names,
    validation::{Faults, FieldError},
};

use super::{Cidr, parse_cidr};
use crate::registry::{
    core::{default_field, each, list},
    meta,
    strategy::{Strategy, col, name_col},
    table,
};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    defaults,
    validate,
    columns: &[name_col(), col("Pod-Selector"), col("Age")],
    row: |o| vec![o["metadata"]["name"].clone(), table::selector(&o["spec"]["podSelector"]), table::created(o)],
    ..Strategy::DEFAULT
};

fn defaults(o: &mut Value) {
    let spec = &mut o["spec"];
    if !spec.is_object() {
        return;
    }
    for rules in ["ingress", "egress"] {
        for rule in each(spec, rules) {
            each(rule, "ports").for_each(|port| default_field(port, "protocol", "TCP"));
        }
    }
    if spec["policyTypes"].as_array().is_none_or(Vec::is_empty) {
        let egress = spec["egress"].as_array().is_some_and(|rules| !rules.is_empty());
        spec["policyTypes"] = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
    }
}

fn validate(o: &Value, faults: &mut Faults) {
    let spec = &o["spec"];
    meta::label_selector(&spec["podSelector"], "spec.podSelector", faults);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list(&spec[direction]).iter().enumerate() {
            let at = format!("spec.{direction}[{i}]");
            for (i, port) in list(&rule["ports"]).iter().enumerate() {
                validate_port(port, &format!("{at}.ports[{i}]"), faults);
            }
            for (i, peer) in list(&rule[peers]).iter().enumerate() {
                validate_peer(peer, &format!("{at}.{peers}[{i}]"), faults);
            }
        }
    }
    let types = list(&spec["policyTypes"]);
    if types.len() > 2 {
        faults.invalid("spec.policyTypes", spec["policyTypes"].clone(), "may not specify more than two policyTypes");
        return;
    }
    for (i, name) in types.iter().enumerate() {
        faults.one_of(&format!("spec.policyTypes[{i}]"), name.as_str().unwrap_or_default(), &["Ingress", "Egress"]);
    }
}

fn validate_port(port: &Value, at: &str, faults: &mut Faults) {
    if let Some(protocol) = port["protocol"].as_str() {
        faults.one_of(&format!("{at}.protocol"), protocol, &["TCP", "UDP", "SCTP"]);
    }
    let end = port["endPort"].as_i64();
    let end_at = || format!("{at}.endPort");
    match &port["port"] {
        Value::Null => {
            if let Some(end) = end {
                faults.invalid(end_at(), end, "may not be specified when `port` is not specified");
            }
        }
        Value::String(name) => {
            if let Some(end) = end {
                faults.invalid(end_at(), end, "may not be specified when `port` is non-numeric");
            }
            faults.rule(&format!("{at}.port"), name, names::port_name(name));
        }
        number => {
            let number = number.as_i64().unwrap_or(0);
            for message in names::port_number(number) {
                faults.invalid(format!("{at}.port"), number, message);
            }
            let Some(end) = end else { return };
            if end < number {
                faults.invalid(end_at(), number, "must be greater than or equal to `port`");
            }
            for message in names::port_number(end) {
                faults.invalid(end_at(), end, message);
            }
        }
    }
}

fn validate_peer(peer: &Value, at: &str, faults: &mut Faults) {
    let mut peers = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if peer[field].is_object() {
            peers += 1;
            meta::label_selector(&peer[field], &format!("{at}.{field}"), faults);
        }
    }
    let block = &peer["ipBlock"];
    if block.is_object() {
        peers += 1;
        validate_block(block, &format!("{at}.ipBlock"), faults);
    }
    if peers == 0 {
        faults.required(at, "must specify a peer");
    } else if peers > 1 && block.is_object() {
        faults.push(FieldError::forbidden(at, "may not specify both ipBlock and another peer"));
    }
}

fn validate_block(block: &Value, at: &str, faults: &mut Faults) {
    const NO_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let text = block["cidr"].as_str().unwrap_or_default();
    if text.is_empty() {
        return faults.required(format!("{at}.cidr"), "");
    }
    let Some(range) = parse_cidr(text) else {
        return faults.invalid(format!("{at}.cidr"), text, NO_CIDR);
    };
    for (i, except) in list(&block["except"]).iter().enumerate() {
        let text = except.as_str().unwrap_or_default();
        let at = format!("{at}.except[{i}]");
        match parse_cidr(text) {
            None => faults.invalid(at, text, NO_CIDR),
            Some(except) if !is_strictly_in(range, except) => {
                faults.invalid(at, text, "must be a strict subset of `cidr`");
            }
            Some(_) => {}
        }
    }
}

fn is_strictly_in(outer: Cidr, inner: Cidr) -> bool {
    outer.bits == inner.bits && outer.prefix < inner.prefix && outer.base == inner.base & outer.mask()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let mut o = json!({"spec": spec});
        defaults(&mut o);
        let mut faults = Faults::default();
        validate(&o, &mut faults);
        faults.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn types_follow_from_the_rules() {
        let with = |mut o: Value| {
            defaults(&mut o);
            o["spec"]["policyTypes"].clone()
        };
        assert_eq!(with(json!({"spec": {"podSelector": {}}})), json!(["Ingress"]));
        assert_eq!(with(json!({"spec": {"egress": [{}]}})), json!(["Ingress", "Egress"]));
        assert_eq!(with(json!({"spec": {"egress": [{}], "policyTypes": ["Egress"]}})), json!(["Egress"]));
        let mut o = json!({"spec": {"ingress": [{"ports": [{"port": 80}]}]}});
        defaults(&mut o);
        assert_eq!(o["spec"]["ingress"][0]["ports"][0]["protocol"], "TCP");
    }

    #[test]
    fn faults_are_upstreams() {
        assert_eq!(faults(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})), [""; 0]);
        assert_eq!(
            faults(json!({"policyTypes": ["In"]})),
            ["spec.policyTypes[0]: Unsupported value: \"In\": supported values: \"Ingress\", \"Egress\""]
        );
        assert_eq!(
            faults(
                json!({"ingress": [{"from": [{}], "ports": [{"port": 90, "endPort": 80}, {"endPort": 1}, {"port": "web", "endPort": 3}]}]})
            ),
            [
                "spec.ingress[0].ports[0].endPort: Invalid value: 90: must be greater than or equal to `port`",
                "spec.ingress[0].ports[1].endPort: Invalid value: 1: may not be specified when `port` is not specified",
                "spec.ingress[0].ports[2].endPort: Invalid value: 3: may not be specified when `port` is non-numeric",
                "spec.ingress[0].from[0]: Required value: must specify a peer",
            ]
        );
        let block = |block: Value| faults(json!({"egress": [{"to": [{"ipBlock": block}]}]}));
        assert_eq!(block(json!({"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]})), [""; 0]);
        assert_eq!(block(json!({"cidr": "fd00::/8", "except": ["fd01::/16"]})), [""; 0]);
        let at = "spec.egress[0].to[0].ipBlock";
        assert_eq!(block(json!({})), [format!("{at}.cidr: Required value")]);
        assert_eq!(
            block(json!({"cidr": "10.0.0.0"})),
            [format!(
                "{at}.cidr: Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
            )]
        );
        assert_eq!(
            block(json!({"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]})),
            [format!("{at}.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`")]
        );
        assert_eq!(
            faults(json!({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]})),
            ["spec.egress[0].to[0]: Forbidden: may not specify both ipBlock and another peer"]
        );
    }

    #[test]
    fn columns() {
        let o = json!({"metadata": {"name": "p"}, "spec": {"podSelector": {"matchLabels": {"app": "api"}}}});
        assert_eq!((STRATEGY.row)(&o)[..2], [json!("p"), json!("app=api")]);
        let o = json!({"metadata": {"name": "p"}, "spec": {"podSelector": {}}});
        assert_eq!((STRATEGY.row)(&o)[1], "<none>");
    }
}
