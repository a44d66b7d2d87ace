//! Every manifest of the guides, as printed there, is taken or refused as upstream takes or refuses it.

use std::{fs, path::PathBuf};

use skiff_e2e::{Kubectl, Server, Version};

use super::manifest;
use crate::tests;

tests![every_manifest];

/// The guides' own mistakes, and kinds that are other projects'; all others are taken.
pub(super) const REFUSED: &[(&str, &[&str])] = &[
    // Notes stand in the file behind the manifest.
    ("architecture-deployment-webapp", &["error parsing", "did not find expected key"]),
    ("architecture-pod-nginx", &["error parsing", "could not find expected ':'"]),
    ("architecture-service-db-2", &["error parsing", "could not find expected ':'"]),
    ("architecture-statefulset-postgres-2", &["error parsing", "did not find expected key"]),
    // Broken off.
    ("hardware-customresourcedefinition-postgresqls.database.example.com", &["error parsing"]),
    ("architecture-pod-unnamed", &["resource name may not be empty"]),
    ("hardware-deployment-app-with-ambassador", &["spec.selector: Required value", "`selector` does not match"]),
    (
        "hardware-deployment-app-with-init",
        &["spec.selector: Required value", "initContainers[1].volumeMounts[0].name: Not found: \"app-config\""],
    ),
    (
        "hardware-deployment-vcluster-tenant-b",
        &["`selector` does not match template `labels`", "containers[0].volumeMounts[0].name: Not found: \"data\""],
    ),
    ("notes-deployment-my-service", &["spec.selector: Required value"]),
    ("notes-deployment-web", &["spec.selector: Required value"]),
    ("notes-service-my-app", &["The Service \"my-app\" is invalid: spec.ports: Required value"]),
    ("hardware-apiserversource-k8s-events", &["no matches for kind \"ApiServerSource\" in version", CRDS]),
    ("hardware-application-web-app", &["no matches for kind \"Application\" in version", CRDS]),
    ("hardware-constrainttemplate-k8srequiredresources", &["no matches for kind \"ConstraintTemplate\"", CRDS]),
    ("hardware-k8srequiredresources-must-have-resources", &["no matches for kind \"K8sRequiredResources\"", CRDS]),
    ("hardware-networkchaos-network-partition", &["no matches for kind \"NetworkChaos\"", CRDS]),
    ("hardware-podchaos-pod-kill-example", &["no matches for kind \"PodChaos\"", CRDS]),
    ("hardware-stresschaos-cpu-stress", &["no matches for kind \"StressChaos\"", CRDS]),
    ("hardware-scaledobject-message-processor-scaler", &["no matches for kind \"ScaledObject\"", CRDS]),
    // Before its definition is there; with it: extension::a_custom_kind_works_like_a_built_in_one.
    ("hardware-postgresql-user-database", &["no matches for kind \"PostgreSQL\"", CRDS]),
    // v1.36 has it as v1 alone; as that: extension::a_policy_denies_and_allows.
    (
        "hardware-validatingadmissionpolicy-require-labels",
        &["no matches for kind \"ValidatingAdmissionPolicy\" in version \"admissionregistration.k8s.io/v1alpha1\""],
    ),
    ("network-applicationset-fastapi-multicluster", &["no matches for kind \"ApplicationSet\"", CRDS]),
    ("notes-application-myapp", &["no matches for kind \"Application\"", CRDS]),
    ("notes-clusterpolicy-require-ingress-tls", &["no matches for kind \"ClusterPolicy\"", CRDS]),
    ("notes-externalsecret-database-credentials", &["no matches for kind \"ExternalSecret\"", CRDS]),
    ("notes-rollout-unnamed", &["no matches for kind \"Rollout\"", CRDS]),
];

const CRDS: &str = "ensure CRDs are installed first";

fn every_manifest() {
    let folder = PathBuf::from(manifest("all"));
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let name = |file: &PathBuf| file.file_stem().unwrap().to_str().unwrap().to_owned();
    for (refused, _) in REFUSED {
        assert!(files.iter().any(|file| name(file) == *refused), "there is no manifest {refused}");
    }
    // On a control plane of its own, which knows no kinds but its own: nothing is to come of them.
    let server = Server::start();
    for version in Version::ALL {
        let kubectl = server.kubectl().version(version);
        account_of("default", &kubectl);
        for file in &files {
            namespace_of(file, &kubectl);
            let refused = REFUSED.iter().find(|(refused, _)| *refused == name(file));
            let output = kubectl.run(&["apply", "--dry-run=server", "--validate=strict", "-f", file.to_str().unwrap()]);
            match refused {
                None => drop(output.ok()),
                Some((_, why)) => {
                    let said = output.fails();
                    assert!(why.iter().all(|why| said.contains(why)), "{}: {said}", name(file));
                }
            }
        }
    }
}

/// Makes the namespace that a manifest names.
pub(super) fn namespace_of(file: &PathBuf, kubectl: &Kubectl) {
    let text = fs::read_to_string(file).unwrap();
    if let Some(name) = text.lines().find_map(|line| line.strip_prefix("  namespace: ")) {
        // It may be there already.
        let _ = kubectl.run(&["create", "namespace", name.trim()]);
        account_of(name.trim(), kubectl);
    }
}

/// Pods are refused until a controller has made the account that they run as.
pub(super) fn account_of(namespace: &str, kubectl: &Kubectl) {
    kubectl.run(&["wait", "--for=create", "serviceaccount/default", "-n", namespace, "--timeout=30s"]).ok();
}
