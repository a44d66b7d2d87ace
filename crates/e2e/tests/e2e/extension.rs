//! What a cluster is extended with: custom kinds and admission policies, as the guides write them.

use std::time::Duration;

use skiff_e2e::{Kubectl, eventually, kubectl::Version, wait::check};

use crate::{shared, tests};

tests![
    a_custom_kind_works_like_a_built_in_one,
    custom_objects_are_validated,
    custom_objects_go_with_owners_namespaces_and_definitions,
    schemas_without_fields_take_anything,
    a_policy_denies_and_allows,
];

const PATIENCE: Duration = Duration::from_secs(20);

/// The definition of the guide.
fn definition(group: &str) -> String {
    format!(
        r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: postgresqls.{group}
spec:
  group: {group}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              version:
                type: string
                enum: ["12", "13", "14", "15"]
              replicas:
                type: integer
                minimum: 1
                maximum: 5
              storage:
                type: string
                pattern: '^[0-9]+[MGT]i$'
              backupSchedule:
                type: string
          status:
            type: object
            properties:
              phase:
                type: string
                enum: ["Pending", "Running", "Failed"]
              primaryEndpoint:
                type: string
              replicas:
                type: integer
  scope: Namespaced
  names:
    plural: postgresqls
    singular: postgresql
    kind: PostgreSQL
"#
    )
}

/// The object of the guide.
fn database(group: &str) -> String {
    format!(
        r#"
apiVersion: {group}/v1
kind: PostgreSQL
metadata:
  name: user-database
spec:
  version: "14"
  replicas: 3
  storage: "100Gi"
  backupSchedule: "0 2 * * *"
"#
    )
}

/// A definition in a group of the test's own, established.
fn defined(kubectl: &Kubectl, group: &str) {
    kubectl.apply(&definition(group));
    let crd = format!("crd/postgresqls.{group}");
    kubectl.run(&["wait", "--for=condition=Established", &crd, "--timeout=20s"]).ok();
}

fn a_custom_kind_works_like_a_built_in_one() {
    const GROUP: &str = "database.example.com";
    let kubectl = shared::server("custom-kind");
    defined(&kubectl, GROUP);
    kubectl.run(&["get", "crds"]).prints(&["postgresqls.database.example.com", "CREATED AT"]);
    let mut watch = kubectl.start(&[
        "get",
        "postgresqls.database.example.com",
        "-w",
        "--output-watch-events",
        "-o",
        "jsonpath={.type} {.object.metadata.name}{\"\\n\"}",
    ]);
    for version in Version::ALL {
        let kubectl = kubectl.version(version);
        let plural = format!("postgresqls.{GROUP}");
        let said = kubectl.apply(&database(GROUP));
        assert!(said.contains("postgresql.database.example.com/user-database created"), "{said}");
        let said = kubectl.apply(&database(GROUP));
        assert!(said.contains("user-database unchanged"), "{said}");
        kubectl.run(&["get", &plural]).prints(&["NAME", "AGE", "user-database"]);
        kubectl.run(&["get", "postgresql", "user-database", "-o", "jsonpath={.spec.version}"]).prints(&["14"]);
        kubectl.run(&["get", "postgresqls", "-o", "wide"]).prints(&["user-database"]);
        kubectl.run(&["api-resources"]).prints(&["database.example.com/v1", "PostgreSQL"]);
        kubectl.run(&["explain", "postgresqls"]).prints(&[
            "GROUP:",
            "database.example.com",
            "KIND:",
            "PostgreSQL",
            "spec",
        ]);
        kubectl.run(&["explain", "postgresqls.spec.replicas"]).prints(&["FIELD: replicas <integer>"]);
        kubectl.run(&["explain", "postgresqls.spec.nothing"]).fails_with("field \"nothing\" does not exist");
        kubectl.run(&["describe", "postgresql", "user-database"]).prints(&[
            "Name:         user-database",
            "Kind:         PostgreSQL",
            "Replicas:",
            "Backup Schedule:",
        ]);
        kubectl.run(&["patch", "postgresql", "user-database", "--type=merge", "-p", r#"{"spec":{"replicas":2}}"#]).ok();
        kubectl.run(&["label", "postgresql", "user-database", "tier=db"]).ok();
        let edit = ["edit", "postgresql", "user-database"];
        let mut edited = kubectl.command(&edit);
        edited.env("KUBE_EDITOR", "sed -i -e s/100Gi/200Gi/");
        skiff_e2e::command::run(&mut edited, "").ok();
        assert_eq!(
            kubectl.path(&["postgresql", "user-database"], "{.spec.storage} {.spec.replicas}").unwrap(),
            "200Gi 2"
        );
        kubectl
            .run(&["get", "postgresqls", "-l", "tier=db", "-o", "name"])
            .prints(&["postgresql.database.example.com/user-database"]);
        kubectl.run(&["delete", "postgresql", "user-database"]).prints(&["\"user-database\" deleted"]);
        kubectl
            .run(&["get", "postgresql", "user-database"])
            .fails_with("postgresqls.database.example.com \"user-database\" not found");
    }
    for event in ["ADDED", "MODIFIED", "DELETED"] {
        watch.line(PATIENCE, |line| line == format!("{event} user-database"));
    }
    drop(watch);
    kubectl.run(&["delete", "crd", "postgresqls.database.example.com"]).ok();
    eventually(PATIENCE, || {
        // kubectl remembers what there was until it is made to look again.
        kubectl.run(&["api-resources", "--api-group", GROUP]).result()?;
        let gone = kubectl.run(&["get", "postgresqls"]);
        let why = "the server doesn't have a resource type \"postgresqls\"";
        check(gone.stderr.contains(why), || gone.stderr.clone())
    });
    kubectl.feed(&["apply", "-f", "-"], &database(GROUP)).fails_with("ensure CRDs are installed first");
}

fn custom_objects_are_validated() {
    const GROUP: &str = "validated.example.com";
    let kubectl = shared::server("custom-validation");
    defined(&kubectl, GROUP);
    let bad =
        database(GROUP).replace("replicas: 3", "replicas: 9").replace("\"14\"", "\"11\"").replace("100Gi", "lots");
    let said = kubectl.feed(&["apply", "-f", "-"], &bad).fails();
    for part in [
        "The PostgreSQL \"user-database\" is invalid",
        "spec.replicas: Invalid value: 9: spec.replicas in body should be less than or equal to 5",
        "spec.version: Unsupported value: \"11\": supported values: \"12\", \"13\", \"14\", \"15\"",
        "spec.storage: Invalid value: \"lots\": spec.storage in body should match '^[0-9]+[MGT]i$'",
    ] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
    let wrong = database(GROUP).replace("replicas: 3", "replicas: three");
    kubectl.feed(&["apply", "-f", "-"], &wrong).fails_with(
        "spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\"",
    );
    let unknown = format!("{}  colour: blue\n", database(GROUP));
    kubectl.feed(&["apply", "-f", "-"], &unknown).fails_with("unknown field \"spec.colour\"");
    kubectl.run(&["get", "postgresqls.validated.example.com"]).prints(&[]);
    kubectl.feed(&["apply", "--validate=false", "-f", "-"], &unknown).ok();
    let kept = kubectl.run(&["get", "postgresqls.validated.example.com", "-o", "yaml"]).ok();
    assert!(!kept.contains("colour: blue\n    replicas"), "the field is pruned: {kept}");
    kubectl.run(&["delete", "crd", "postgresqls.validated.example.com"]).ok();
}

fn custom_objects_go_with_owners_namespaces_and_definitions() {
    const GROUP: &str = "owned.example.com";
    let kubectl = shared::server("custom-owned");
    defined(&kubectl, GROUP);
    let plural = "postgresqls.owned.example.com";
    kubectl.apply(&database(GROUP));
    let uid = kubectl.path(&[plural, "user-database"], "{.metadata.uid}").unwrap();
    let owned = format!(
        "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: owned, ownerReferences: [{{apiVersion: {GROUP}/v1, kind: PostgreSQL, name: user-database, uid: {uid}}}]}}}}"
    );
    kubectl.apply(&owned);
    kubectl.run(&["delete", plural, "user-database"]).ok();
    let gone = |what: &[&str]| {
        let found = kubectl.run(&[&["get"], what, &["--ignore-not-found", "-o", "name"]].concat()).result()?;
        check(found.is_empty(), || found.clone())
    };
    eventually(PATIENCE, || gone(&["configmap", "owned"]));
    // A namespace takes them with it.
    let other = kubectl.in_new("custom-doomed");
    other.apply(&database(GROUP));
    kubectl.run(&["delete", "namespace", "custom-doomed", "--timeout=30s"]).ok();
    assert_eq!(kubectl.run(&["get", plural, "-A", "-o", "name"]).ok(), "");
    // And so does the definition.
    kubectl.apply(&database(GROUP));
    kubectl.run(&["delete", "crd", plural, "--timeout=30s"]).ok();
    defined(&kubectl, GROUP);
    assert_eq!(kubectl.run(&["get", plural, "-A", "-o", "name"]).ok(), "");
    kubectl.run(&["delete", "crd", plural]).ok();
}

fn schemas_without_fields_take_anything() {
    let kubectl = shared::server("custom-free");
    kubectl.apply(
        "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: frees.free.example.com}, spec: {\
         group: free.example.com, scope: Cluster, names: {plural: frees, kind: Free, shortNames: [fr]}, versions: [{name: v1, served: true, \
         storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]}}",
    );
    kubectl.run(&["wait", "--for=condition=Established", "crd/frees.free.example.com", "--timeout=20s"]).ok();
    kubectl.apply("{apiVersion: free.example.com/v1, kind: Free, metadata: {name: f}, anything: {goes: [1, two]}}");
    assert_eq!(kubectl.path(&["fr", "f"], "{.anything.goes[1]}").unwrap(), "two");
    let other = "{apiVersion: free.example.com/v1, kind: Free, metadata: {name: g}, spec: {deep: {down: true}}}";
    kubectl.feed(&["create", "-f", "-"], other).prints(&["free.free.example.com/g created"]);
    assert_eq!(kubectl.path(&["fr", "g"], "{.spec.deep.down}").unwrap(), "true");
    kubectl.run(&["explain", "frees"]).prints(&["KIND:       Free", "DESCRIPTION:"]);
    kubectl.run(&["delete", "crd", "frees.free.example.com"]).ok();
}

fn a_policy_denies_and_allows() {
    let kubectl = shared::server("policy");
    // The guide's version is one that upstream has dropped; both programs say so in the same words.
    let policy = r#"
apiVersion: admissionregistration.k8s.io/v1alpha1
kind: ValidatingAdmissionPolicy
metadata:
  name: "require-labels"
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
    - operations: ["CREATE", "UPDATE"]
      resources: ["pods"]
      apiGroups: [""]
  validations:
  - expression: "has(object.metadata.labels) && has(object.metadata.labels.environment)"
    message: "Pod must have environment label"
  - expression: "object.metadata.labels.environment in ['dev', 'staging', 'prod']"
    message: "Environment label must be dev, staging, or prod"
"#;
    for version in Version::ALL {
        let said = kubectl.version(version).feed(&["apply", "-f", "-"], policy).fails();
        let expected =
            "no matches for kind \"ValidatingAdmissionPolicy\" in version \"admissionregistration.k8s.io/v1alpha1\"";
        assert!(said.contains(expected) && said.contains("ensure CRDs are installed first"), "{said}");
    }
    let policy = policy.replace("v1alpha1", "v1");
    kubectl
        .feed(&["apply", "-f", "-"], &policy)
        .fails_with("spec.matchConstraints.resourceRules[0].apiVersions: Required value");
    kubectl.apply(&policy.replace("apiGroups: [\"\"]", "apiGroups: [\"\"]\n      apiVersions: [\"v1\"]"));
    kubectl.apply(
        "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicyBinding, metadata: {name: require-labels}, spec: {\
         policyName: require-labels, validationActions: [Deny], matchResources: {namespaceSelector: {matchLabels: \
         {kubernetes.io/metadata.name: policy}}}}}",
    );
    let pod = |label: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p, labels: {{{label}}}}}, spec: {{containers: [{{name: c, image: i}}]}}}}"
        )
    };
    let create = ["create", "-f", "-"];
    kubectl.feed(&create, &pod("a: b")).fails_with(
        "ValidatingAdmissionPolicy 'require-labels' with binding 'require-labels' denied request: Pod must have environment label",
    );
    kubectl.feed(&create, &pod("environment: test")).fails_with("Environment label must be dev, staging, or prod");
    kubectl.feed(&create, &pod("environment: dev")).ok();
    kubectl.run(&["label", "pod", "p", "--overwrite", "environment=none"]).fails_with("denied request");
    // Elsewhere it does not hold.
    kubectl.in_new("policy-free").feed(&create, &pod("a: b")).ok();
    kubectl.run(&["get", "validatingadmissionpolicies"]).prints(&[
        "NAME",
        "VALIDATIONS",
        "PARAMKIND",
        "require-labels",
    ]);
    kubectl.run(&["delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", "require-labels"]).ok();
    kubectl.feed(&create, &pod("a: b").replace("name: p,", "name: q,")).ok();
}
