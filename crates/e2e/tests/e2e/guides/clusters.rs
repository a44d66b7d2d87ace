//! "Example 3: Multi-Cluster Deployment", with the program called as `kind`.

use skiff_e2e::{Home, Kubectl, Version, cluster::curl, eventually, host};

use super::{
    PATIENCE, PODS, SERVICES,
    fastapi::{listening, send},
    manifest, rows,
};
use crate::tests;

tests![example_3_two_clusters];

/// The clusters' names, the ports that lead to them, and what is sold there.
const REGIONS: [(&str, u16, &str); 2] = [
    ("us-east", 8080, r#"{"name": "US Product", "description": "Sold in USA", "price": 99.99}"#),
    ("eu-west", 8081, r#"{"name": "EU Product", "description": "Sold in Europe", "price": 79.99}"#),
];

fn example_3_two_clusters() {
    let home = Home::new();
    home.kind(&["version"]).prints(&["kind"]);
    for (region, ..) in REGIONS {
        let created = home.kind(&["create", "cluster", "--config", &manifest(&format!("{region}-cluster.yaml"))]);
        let told = created.stderr.clone();
        created.ok();
        assert!(told.contains(&format!("Set kubectl context to \"kind-{region}\"")), "{told}");
    }
    let kubectl =
        Kubectl { version: Version::V1_32, kubeconfig: home.kubeconfig(), home: home.dir.clone(), namespace: None };
    let contexts = kubectl.run(&["config", "get-contexts"]).ok();
    let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let found: Vec<_> = contexts.lines().map(cells).collect();
    assert_eq!(found[0], ["CURRENT", "NAME", "CLUSTER", "AUTHINFO", "NAMESPACE"]);
    assert_eq!(found[1], ["*", "kind-eu-west", "kind-eu-west", "kind-eu-west"]);
    assert_eq!(found[2], ["kind-us-east", "kind-us-east", "kind-us-east"]);
    assert_eq!(home.kind(&["get", "clusters"]).ok(), "eu-west\nus-east\n");

    for (region, ..) in REGIONS {
        for image in ["postgres", "fastapi-demo"] {
            let archive = host::prepared(&format!("images/{image}.tar"));
            home.kind(&["load", "image-archive", archive.to_str().unwrap(), "--name", region]).ok();
        }
        kubectl
            .run(&["config", "use-context", &format!("kind-{region}")])
            .prints(&[&format!("Switched to context \"kind-{region}\".")]);
        kubectl
            .run(&["apply", "-f", &manifest(&format!("{region}-deployment.yaml"))])
            .prints(&["namespace/fastapi created"]);
    }
    for (region, port, product) in REGIONS {
        let kubectl = Context { kubectl: &kubectl, name: format!("kind-{region}") }.in_fastapi();
        rows(&kubectl, &["pods"], PODS, &["postgres-", "1/1", "Running"]);
        rows(&kubectl, &["deployments"], &["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"], &["fastapi-app", "2/2"]);
        rows(&kubectl, &["services"], SERVICES, &["fastapi-service", "NodePort", "10.", "<none>", "8000:30080/TCP"]);
        kubectl.run(&["get", "pods", "-o", "wide"]).prints(&["NODE", &format!("{region}-worker")]);
        let url = format!("http://localhost:{port}");
        assert!(eventually(PATIENCE, || curl(&[&url]).result()).contains("\"status\":\"running\""));
        eventually(PATIENCE, || curl(&[&format!("{url}/health")]).result());
        // The tables are made when an instance starts; one that started before its database has none.
        kubectl.run(&["rollout", "restart", "deployment/fastapi-app"]).ok();
        kubectl.run(&["rollout", "status", "deployment/fastapi-app", "--timeout=60s"]).ok();
        listening(&kubectl);
        eventually(PATIENCE, || send("POST", &format!("{url}/items/"), product).result());
    }
    for (region, port, product) in REGIONS {
        let name = product.split('"').nth(3).unwrap();
        let items = curl(&[&format!("http://localhost:{port}/items/")]).ok();
        assert_eq!(items.matches("\"id\"").count(), 1, "{region}: {items}");
        assert!(items.contains(name), "{region}: {items}");
    }

    for (region, ..) in REGIONS {
        let deleted = home.kind(&["delete", "cluster", "--name", region]);
        assert!(deleted.stderr.contains(&format!("Deleting cluster \"{region}\" ...")), "{}", deleted.stderr);
        deleted.ok();
    }
    let none = home.kind(&["get", "clusters"]);
    assert_eq!((none.stdout.as_str(), none.stderr.as_str()), ("", "No kind clusters found.\n"));
    let left = home.clear();
    assert!(left.is_empty(), "{left:#?}");
}

/// `kubectl --context NAME`.
struct Context<'a> {
    kubectl: &'a Kubectl,
    name: String,
}

impl Context<'_> {
    /// A kubectl whose kubeconfig has this context as the current one.
    fn in_fastapi(&self) -> Kubectl {
        let view = ["config", "view", "--raw", "--minify", "--context", &self.name];
        let kubeconfig = self.kubectl.home.join(format!("{}.kubeconfig", self.name));
        std::fs::write(&kubeconfig, self.kubectl.run(&view).ok()).unwrap();
        let used = self.kubectl.run(&["--context", &self.name, "get", "pods", "-n", "fastapi"]).ok();
        assert!(used.contains("fastapi-app-"), "{used}");
        Kubectl { kubeconfig, namespace: Some("fastapi".to_owned()), ..self.kubectl.clone() }
    }
}
