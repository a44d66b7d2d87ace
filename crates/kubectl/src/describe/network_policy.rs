//! NetworkPolicies.

use serde_json::Value;

use super::{
    array, int, joined, or_none, selector, show, str,
    text::{Text, line},
};

pub(super) fn network_policy(policy: &Value) -> String {
    let (metadata, spec) = (&policy["metadata"], &policy["spec"]);
    let mut text = Text::default();
    let w = &mut text;
    line!(w, 0, "Name:\t{}", str(&metadata["name"]));
    line!(w, 0, "Namespace:\t{}", str(&metadata["namespace"]));
    let created = str(&metadata["creationTimestamp"]).parse::<jiff::Timestamp>();
    let created =
        created.map(|time| time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string());
    line!(w, 0, "Created on:\t{}", created.unwrap_or_default());
    w.labels("Labels", &metadata["labels"]);
    w.annotations("Annotations", &metadata["annotations"]);
    line!(w, 0, "Spec:");
    match selector(&spec["podSelector"]) {
        none if none.is_empty() => {
            line!(w, 1, "PodSelector:     <none> (Allowing the specific traffic to all pods in this namespace)");
        }
        chosen => line!(w, 1, "PodSelector:     {chosen}"),
    }
    let types = &spec["policyTypes"];
    for (kind, word, rules, peers) in
        [("Ingress", "ingress", &spec["ingress"], "from"), ("Egress", "egress", &spec["egress"], "to")]
    {
        match array(types).iter().any(|known| known == kind) {
            true => {
                line!(w, 1, "Allowing {word} traffic:");
                self::rules(w, array(rules), word, peers);
            }
            false => line!(w, 1, "Not affecting {word} traffic"),
        }
    }
    line!(w, 1, "Policy Types: {}", or_none(&joined(types, ", ")));
    text.finish()
}

fn rules(w: &mut Text, rules: &[Value], word: &str, peers: &str) {
    if rules.is_empty() {
        line!(w, 2, "<none> (Selected pods are isolated for {word} connectivity)");
    }
    for (i, rule) in rules.iter().enumerate() {
        if array(&rule["ports"]).is_empty() {
            line!(w, 2, "To Port: <any> (traffic allowed to all ports)");
        }
        for port in array(&rule["ports"]) {
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            let number = if port["port"].is_null() { "<nil>".to_owned() } else { show(&port["port"]) };
            match port["endPort"].is_null() {
                true => line!(w, 2, "To Port: {number}/{protocol}"),
                false => line!(w, 2, "To Port Range: {number}-{}/{protocol}", int(&port["endPort"])),
            }
        }
        let title = if peers == "from" { "From" } else { "To" };
        let end = if peers == "from" { "source" } else { "destination" };
        if array(&rule[peers]).is_empty() {
            line!(w, 2, "{title}: <any> (traffic not restricted by {end})");
        }
        for peer in array(&rule[peers]) {
            line!(w, 2, "{title}:");
            for (title, field) in [("NamespaceSelector", "namespaceSelector"), ("PodSelector", "podSelector")] {
                if peer[field].is_object() {
                    line!(w, 3, "{title}: {}", or_none(&selector(&peer[field])));
                }
            }
            if peer["ipBlock"].is_object() {
                line!(w, 3, "IPBlock:");
                line!(w, 4, "CIDR: {}", str(&peer["ipBlock"]["cidr"]));
                line!(w, 4, "Except: {}", joined(&peer["ipBlock"]["except"], ", "));
            }
        }
        if i + 1 < rules.len() {
            line!(w, 2, "----------");
        }
    }
}
