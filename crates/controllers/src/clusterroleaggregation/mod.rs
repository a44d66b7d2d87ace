//! ClusterRole aggregation: a role that says so has the rules of those that its selectors select.
//!
//! Watches ClusterRoles; writes the rules of those that have an `aggregationRule`. That is how kinds of operators come
//! into the roles `admin`, `edit` and `view`.

mod reconcile;

use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use skiff_client::{Action, Change, Controller, Informer, Informers, ObjectKey};

use crate::{Result, While as _, is_not_found};

const MANAGER: &str = "clusterrole-aggregation-controller";

pub(crate) async fn run(informers: Informers) {
    let roles: Informer<ClusterRole> = informers.informer();
    let client = informers.client().clone();
    // Any change may concern any role that gathers others.
    let mapper = {
        let roles = roles.clone();
        move |_: &Change<ClusterRole>| {
            let all = roles.list();
            let gathering = all.iter().filter(|role| role.aggregation_rule.is_some());
            gathering.map(|role| ObjectKey::of(&**role)).collect::<Vec<_>>()
        }
    };
    let watched = roles.clone();
    Controller::new("clusterrole-aggregation")
        .watch(&watched, mapper)
        .run(move |key: ObjectKey| {
            let (roles, client) = (roles.clone(), client.clone());
            async move { reconcile(&roles, client, &key).await }
        })
        .await;
}

async fn reconcile(roles: &Informer<ClusterRole>, client: kube::Client, key: &ObjectKey) -> Result<Action> {
    let Some(role) = roles.get_key(key) else { return Ok(Action::Done) };
    let Some(rules) = reconcile::gathered(&role, &roles.list()) else { return Ok(Action::Done) };
    let config = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": key.name}, "rules": rules,
    });
    let api: Api<ClusterRole> = Api::all(client);
    let params = PatchParams::apply(MANAGER).force();
    match api.patch(&key.name, &params, &Patch::Apply(&config)).await {
        Err(e) if is_not_found(&e) => Ok(Action::Done),
        applied => applied.during("gathering the rules of a ClusterRole").map(|_| Action::Done),
    }
}
