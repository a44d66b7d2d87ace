//! Service accounts, roles and bindings.

use serde_json::Value;

use super::{
    array, go_list, str,
    text::{Text, line},
};

pub(super) fn service_account(w: &mut Text, account: &Value) {
    line!(w, 0, "Name:\t{}", str(&account["metadata"]["name"]));
    line!(w, 0, "Namespace:\t{}", str(&account["metadata"]["namespace"]));
    w.labels("Labels", &account["metadata"]["labels"]);
    w.annotations("Annotations", &account["metadata"]["annotations"]);
    let mut title = "Image pull secrets:";
    let secrets = array(&account["imagePullSecrets"]);
    if secrets.is_empty() {
        line!(w, 0, "{title}\t<none>");
    }
    for secret in secrets {
        line!(w, 0, "{title}\t{}", str(&secret["name"]));
        title = "                   ";
    }
}

/// A rule for one resource of one group, which is what rules are taken apart into.
#[derive(Clone, PartialEq)]
struct Rule {
    resource: String,
    urls: Value,
    names: Value,
    verbs: Vec<String>,
}

pub(super) fn role(role: &Value) -> String {
    let mut text = Text::default();
    let w = &mut text;
    head(w, role);
    line!(w, 0, "PolicyRule:");
    line!(w, 1, "Resources\tNon-Resource URLs\tResource Names\tVerbs");
    line!(w, 1, "---------\t-----------------\t--------------\t-----");
    for rule in compact(array(&role["rules"])) {
        let verbs = rule.verbs.join(" ");
        line!(w, 1, "{}\t{}\t{}\t[{verbs}]", rule.resource, go_list(&rule.urls), go_list(&rule.names));
    }
    text.finish()
}

/// Rules about the same thing become one.
fn compact(rules: &[Value]) -> Vec<Rule> {
    let mut single: Vec<Rule> = Vec::new();
    let mut add = |resource: String, urls: Value, names: Value, verbs: &[Value]| {
        let same = single.iter_mut().find(|rule| rule.resource == resource && rule.urls == urls && rule.names == names);
        let verbs = verbs.iter().map(|verb| str(verb).to_owned());
        match same {
            Some(rule) => rule.verbs.extend(verbs),
            None => single.push(Rule { resource, urls, names, verbs: verbs.collect() }),
        }
    };
    for rule in rules {
        let verbs = array(&rule["verbs"]);
        for group in array(&rule["apiGroups"]) {
            for resource in array(&rule["resources"]) {
                let (name, sub) = str(resource).split_once('/').map_or((str(resource), None), |(n, s)| (n, Some(s)));
                let mut full = name.to_owned();
                if !str(group).is_empty() {
                    full.push_str(&format!(".{}", str(group)));
                }
                if let Some(sub) = sub {
                    full.push_str(&format!("/{sub}"));
                }
                match array(&rule["resourceNames"]) {
                    [] => add(full, Value::Null, Value::Null, verbs),
                    names => names.iter().for_each(|name| {
                        add(full.clone(), Value::Null, Value::Array(vec![name.clone()]), verbs);
                    }),
                }
            }
        }
        for url in array(&rule["nonResourceURLs"]) {
            add(String::new(), Value::Array(vec![url.clone()]), Value::Null, verbs);
        }
    }
    single.sort_by_key(sort_key);
    single
}

/// Rules are sorted by the text that Go makes of them.
fn sort_key(rule: &Rule) -> String {
    let (resource, group) = match rule.resource.split_once('.') {
        Some((name, rest)) => match rest.split_once('/') {
            Some((group, sub)) => (format!("{name}/{sub}"), group.to_owned()),
            None => (name.to_owned(), rest.to_owned()),
        },
        None => (rule.resource.clone(), String::new()),
    };
    format!(
        "Verbs:[{}],APIGroups:[{group}],Resources:[{resource}],ResourceNames:{},NonResourceURLs:{},",
        rule.verbs.join(" "),
        go_list(&rule.names),
        go_list(&rule.urls),
    )
}

fn head(w: &mut Text, object: &Value) {
    line!(w, 0, "Name:\t{}", str(&object["metadata"]["name"]));
    w.labels("Labels", &object["metadata"]["labels"]);
    w.annotations("Annotations", &object["metadata"]["annotations"]);
}

pub(super) fn binding(binding: &Value) -> String {
    let mut text = Text::default();
    let w = &mut text;
    head(w, binding);
    line!(w, 0, "Role:");
    line!(w, 1, "Kind:\t{}", str(&binding["roleRef"]["kind"]));
    line!(w, 1, "Name:\t{}", str(&binding["roleRef"]["name"]));
    line!(w, 0, "Subjects:");
    line!(w, 1, "Kind\tName\tNamespace");
    line!(w, 1, "----\t----\t---------");
    for subject in array(&binding["subjects"]) {
        line!(w, 1, "{}\t{}\t{}", str(&subject["kind"]), str(&subject["name"]), str(&subject["namespace"]));
    }
    text.finish()
}
