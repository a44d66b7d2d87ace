//! "Real-World Operator Example": the PostgreSQL kind, an object of it, and a small operator that makes it true.

use skiff_e2e::{eventually, wait::check};

use super::{PATIENCE, manifest};
use crate::{shared, tests};

tests![an_operator_runs_databases];

fn an_operator_runs_databases() {
    shared::load(&["postgres", "python"]);
    let kubectl = shared::cluster().in_new("operator");
    let program = format!("--from-file={}", manifest("databases.py"));
    kubectl.run(&["apply", "-f", &manifest("postgresqls-definition.yaml")]).ok();
    kubectl.run(&["wait", "--for=condition=Established", "crd/postgresqls.database.example.com", "--timeout=30s"]).ok();
    kubectl.run(&["create", "configmap", "operator", &program]).ok();
    kubectl.run(&["apply", "-f", &manifest("operator.yaml")]).ok();
    kubectl.run(&["rollout", "status", "deployment/postgresql-operator", "--timeout=60s"]).ok();

    kubectl.run(&["apply", "-f", &manifest("all/hardware-postgresql-user-database.yaml")]).prints(&["created"]);
    let is = |what: &[&str], path: &str, wanted: &str| {
        eventually(PATIENCE, || {
            let found = kubectl.path(what, path)?;
            check(found == wanted, || {
                let log = kubectl.run(&["logs", "deployment/postgresql-operator"]).result().unwrap_or_else(|e| e);
                format!("{what:?} {path} is {found:?}; the operator says:\n{log}")
            })
        });
    };
    is(&["postgresql", "user-database"], "{.status.phase} {.status.replicas}", "Running 3");
    is(&["statefulset", "user-database"], "{.status.readyReplicas}", "3");
    is(&["cronjob", "user-database-backup"], "{.spec.schedule}", "0 2 * * *");
    let endpoint = "user-database-0.user-database.operator.svc.cluster.local:5432";
    is(&["postgresql", "user-database"], "{.status.primaryEndpoint}", endpoint);

    // What is wanted changes, and somebody takes away what is there.
    let one = r#"{"spec": {"replicas": 1}}"#;
    kubectl.run(&["patch", "postgresql", "user-database", "--type=merge", "-p", one]).ok();
    is(&["statefulset", "user-database"], "{.status.replicas}", "1");
    kubectl.run(&["delete", "statefulset", "user-database"]).ok();
    is(&["postgresql", "user-database"], "{.status.phase} {.status.replicas}", "Running 1");

    kubectl.run(&["delete", "postgresql", "user-database"]).ok();
    eventually(PATIENCE, || {
        let left = kubectl.run(&["get", "statefulsets,cronjobs,services,pvc", "-o", "name"]).result()?;
        check(left.is_empty(), || left)
    });
    kubectl.run(&["delete", "-f", &manifest("postgresqls-definition.yaml")]).ok();
    kubectl.run(&["delete", "-f", &manifest("operator.yaml")]).ok();
}
