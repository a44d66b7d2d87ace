//! Admission: what may change or refuse a write after it was authorized and before it is stored.
//!
//! Each plugin is one file with one function. They run in upstream's order; a plugin says itself what it is for.

mod default_ingress_class;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod pod_defaults;
mod policy;
mod rbac_escalation;
mod service_account;
mod storage;

use std::sync::Arc;

use serde_json::Value;
use skiff_api::{Kind, Status};

pub use self::pod_defaults::DefaultClass;
use crate::{auth::User, rbac::Authorizer, registry::Registry, request::Warnings};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// What is being done by whom.
pub struct Attributes<'a> {
    pub user: &'a User,
    pub operation: Operation,
    pub resource: &'static Kind,
    pub subresource: &'a str,
    pub namespace: String,
    pub name: String,
    pub dry_run: bool,
    pub warnings: &'a Warnings,
}

impl Attributes<'_> {
    fn is(&self, group: &str, plural: &str) -> bool {
        self.resource.group == group && self.resource.plural == plural
    }

    fn creates(&self, group: &str, plural: &str) -> bool {
        self.operation == Operation::Create && self.subresource.is_empty() && self.is(group, plural)
    }

    /// 403 from a plugin.
    pub fn refuse(&self, why: impl std::fmt::Display) -> Status {
        Status::forbidden(self.resource.group, self.resource.plural, &self.name, why)
    }
}

/// All plugins with what they look at.
pub struct Admission {
    pub registry: Arc<Registry>,
    pub authorizer: Arc<Authorizer>,
    pub default_class: DefaultClass,
}

impl Admission {
    /// Lets the plugins change a new or updated object. It has its defaults already, and what a plugin adds is complete.
    pub async fn mutate(&self, a: &Attributes<'_>, value: &mut Value) -> Result<(), Status> {
        namespace_lifecycle::admit(self, a).await?;
        if a.creates("", "pods") {
            limit_ranger::default(self, a, value).await?;
            service_account::admit(self, a, value).await?;
            pod_defaults::priority(self, a, value).await?;
            pod_defaults::tolerations(value);
        }
        if a.creates("", "nodes") {
            node_restriction::taint_new_node(value);
        }
        if a.operation == Operation::Create && a.resource.group.is_empty() {
            storage::default_class(self, a, value).await?;
            storage::protect(a, value);
        }
        default_ingress_class::admit(self, a, value).await
    }

    /// Lets the plugins refuse. `value` is null for a deletion.
    pub async fn validate(&self, a: &Attributes<'_>, value: &Value, old: Option<&Value>) -> Result<(), Status> {
        namespace_lifecycle::protect(a)?;
        node_restriction::admit(a, value, old)?;
        rbac_escalation::admit(self, a, value, old)?;
        limit_ranger::validate(self, a, value, old).await?;
        storage::resize(self, a, value, old).await?;
        policy::admit(self, a, value, old).await
    }
}
