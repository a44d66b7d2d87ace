//! A crate uses the layers below it, never a sibling component: ARCHITECTURE.md.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::shell;

/// Crates of one layer, from the bottom. Within a layer, only what `FRIENDS` names is used.
const LAYERS: [(&str, &[&str]); 6] = [
    ("base", &["skiff-base"]),
    ("api", &["skiff-api", "skiff-descriptions"]),
    (
        "machinery",
        &[
            "skiff-store",
            "skiff-client",
            "skiff-pki",
            "skiff-streaming",
            "skiff-cri",
            "skiff-csi",
            "skiff-images",
            "skiff-runtime",
            "skiff-network",
        ],
    ),
    (
        "components",
        &[
            "skiff-apiserver",
            "skiff-scheduler",
            "skiff-controllers",
            "skiff-kubelet",
            "skiff-proxy",
            "skiff-dns",
            "skiff-ingress",
            "skiff-etcd",
            "skiff-cluster",
            "skiff-kubectl",
        ],
    ),
    ("bin", &["skiff"]),
    ("tools", &["skiff-csi-testdriver", "skiff-e2e", "xtask"]),
];
/// The runtime is made of these parts of its own layer.
const FRIENDS: [(&str, &[&str]); 1] =
    [("skiff-runtime", &["skiff-cri", "skiff-images", "skiff-streaming", "skiff-network"])];
/// Who may open the store besides the program that wires everything.
/// skiff-etcd is the store's own port, for clients outside of the cluster.
const STORE_USERS: [&str; 4] = ["skiff-apiserver", "skiff", "skiff-store", "skiff-etcd"];

/// The dependencies of each of our crates on others of ours; those of tests too.
fn dependencies(include_tests: bool) -> BTreeMap<String, Vec<String>> {
    let metadata =
        shell::output(&mut shell::cargo(&["metadata", "--format-version=1", "--no-deps", "--offline"])).unwrap();
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let ours: Vec<_> = packages.iter().map(name).collect();
    let of = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|dependency| include_tests || dependency["kind"].as_str() != Some("dev"))
            .map(name)
            .filter(|dependency| ours.contains(dependency))
            .collect()
    };
    packages.iter().map(|package| (name(package), of(package))).collect()
}

fn layer(name: &str) -> usize {
    let found = LAYERS.iter().position(|(_, crates)| crates.contains(&name));
    found.unwrap_or_else(|| panic!("{name} is in no layer: add it to LAYERS and to ARCHITECTURE.md"))
}

#[test]
fn arrows_point_down() {
    let mut wrong = Vec::new();
    for (user, used) in dependencies(false) {
        let friends = FRIENDS.iter().find(|(name, _)| *name == user).map_or(&[][..], |(_, friends)| friends);
        for used in used {
            if layer(&used) >= layer(&user) && !friends.contains(&used.as_str()) {
                wrong.push(format!("{user} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_the_api_server_uses_the_store() {
    let dependencies = dependencies(true);
    let users = dependencies.iter().filter(|(_, used)| used.iter().any(|used| used == "skiff-store"));
    let others: Vec<_> = users.map(|(user, _)| user).filter(|user| !STORE_USERS.contains(&user.as_str())).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn every_crate_is_in_the_code_map() {
    let text = std::fs::read_to_string(shell::root().join("ARCHITECTURE.md")).unwrap();
    let missing: Vec<_> = LAYERS
        .iter()
        .flat_map(|(_, crates)| *crates)
        .filter(|name| {
            let folder = name.strip_prefix("skiff-").map_or_else(
                || if **name == "xtask" { "xtask".into() } else { format!("crates/{name}") },
                |short| format!("crates/{short}"),
            );
            !text.contains(&format!("`{folder}`"))
        })
        .collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md says nothing of {missing:?}");
}
