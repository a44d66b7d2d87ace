//! ImageLocality: a node that has a pod's images already is better, the more so the larger they are.

use std::collections::HashMap;

use crate::nodes::{NodeInfo, PodInfo};

const MIB: i64 = 1024 * 1024;
/// Images smaller than this make no difference; upstream's thresholds.
const LEAST: i64 = 23 * MIB;
/// More than this for each container makes none either.
const MOST: i64 = 1000 * MIB;

/// The name as nodes report it.
fn normalized(image: &str) -> String {
    let (path, has_tag) =
        (image, image.rsplit('/').next().is_some_and(|last| last.contains(':') || last.contains('@')));
    let first = path.split('/').next().unwrap_or_default();
    let full = match (path.contains('/'), first.contains('.') || first.contains(':') || first == "localhost") {
        (false, _) => format!("docker.io/library/{path}"),
        (true, false) => format!("docker.io/{path}"),
        (true, true) => path.to_owned(),
    };
    if has_tag { full } else { format!("{full}:latest") }
}

pub(super) fn score(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let containers = pod.pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    let images: Vec<String> = containers.filter_map(|c| c.image.as_deref()).map(normalized).collect();
    if images.is_empty() || nodes.len() < 2 {
        return vec![0; nodes.len()];
    }
    let known: Vec<HashMap<&str, i64>> = nodes
        .iter()
        .map(|n| {
            let listed = n.node.iter().flat_map(|n| n.status.iter().flat_map(|s| s.images.iter().flatten()));
            listed
                .flat_map(|i| i.names.iter().flatten().map(|name| (name.as_str(), i.size_bytes.unwrap_or(0))))
                .collect()
        })
        .collect();
    let spread = |image: &str| known.iter().filter(|k| k.contains_key(image)).count() as i64;
    let most = MOST * i64::try_from(images.len()).unwrap_or(1);
    known
        .iter()
        .map(|here| {
            // What few nodes have counts less, so that not everything ends up there.
            let sum: i64 = images
                .iter()
                .filter_map(|i| here.get(i.as_str()).map(|size| size / nodes.len() as i64 * spread(i)))
                .sum();
            100 * (sum.clamp(LEAST, most) - LEAST) / (most - LEAST)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::tests::pod, *};

    #[test]
    fn names_are_completed() {
        assert_eq!(normalized("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(normalized("bitnami/redis:7"), "docker.io/bitnami/redis:7");
        assert_eq!(normalized("registry.k8s.io/pause"), "registry.k8s.io/pause:latest");
        assert_eq!(normalized("localhost:5000/a:b"), "localhost:5000/a:b");
    }

    #[test]
    fn a_large_image_counts() {
        let node = |images: serde_json::Value| NodeInfo {
            node: Some(std::sync::Arc::new(
                serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"images": images}})).unwrap(),
            )),
            ..NodeInfo::default()
        };
        let with = node(json!([{"names": ["docker.io/library/big:1"], "sizeBytes": 900 * MIB}]));
        let without = node(json!([]));
        let pod = pod(json!({"containers": [{"name": "c", "image": "big:1"}]}));
        let scores = score(&pod, &[&with, &without]);
        assert!(scores[0] > 0 && scores[1] == 0, "{scores:?}");
    }
}
