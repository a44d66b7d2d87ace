//! Admission: what may change or refuse a write after it was authorized and before it is stored.
//!
//! Each plugin is one file with one function. They run in upstream's order; a plugin says itself what it is for.

mod default_ingress_class;
mod limit_ranger;
mod matching;
mod mutating_policy;
mod namespace_lifecycle;
mod node_restriction;
mod pod_defaults;
mod policy;
mod rbac_escalation;
mod reinvocation;
mod service_account;
mod storage;
mod variables;
mod view;
mod webhooks;

use std::sync::Arc;

use serde_json::Value;
use skiff_api::{Kind, Status};

use skiff_store::Revision;

pub use self::pod_defaults::DefaultClass;
use self::{policy::Policies, reinvocation::Reinvocation, webhooks::Hooks};
use crate::{
    auth::User,
    rbac::Authorizer,
    registry::{Registry, engine::DeleteOptions},
    request::{Warnings, WriteOptions},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
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
    pub options: &'a WriteOptions,
    /// Those of a deletion.
    pub deletion: Option<&'a DeleteOptions>,
    /// Of the object that is there.
    pub revision: Option<Revision>,
}

impl<'a> Attributes<'a> {
    /// Of a request about nothing in particular yet: namespace and name are empty.
    pub fn new(
        user: &'a User,
        operation: Operation,
        resource: &'static Kind,
        subresource: &'a str,
        options: &'a WriteOptions,
    ) -> Attributes<'a> {
        Attributes {
            user,
            operation,
            resource,
            subresource,
            namespace: String::new(),
            name: String::new(),
            dry_run: options.dry_run,
            warnings: &options.warnings,
            options,
            deletion: None,
            revision: None,
        }
    }
}

impl Attributes<'_> {
    /// The version of the resource that the client asked for.
    fn requested(&self) -> &'static Kind {
        self.options.requested.unwrap_or(self.resource)
    }

    /// The namespace as webhooks and policies know it: a namespace is in itself.
    fn hook_namespace(&self) -> &str {
        if self.is("", "namespaces") { &self.name } else { &self.namespace }
    }

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
    pub hooks: Hooks,
    /// The validating policies, and the mutating ones.
    pub policies: Policies,
    pub mutating: Policies,
}

impl Admission {
    /// Lets plugins and webhooks change a new or updated object. It has its defaults already, and what a plugin adds is
    /// complete. `old` is null for a new one.
    pub async fn mutate(&self, a: &Attributes<'_>, value: &mut Value, old: &Value) -> Result<(), Status> {
        self.plugins(a, value).await?;
        if a.options.past_hooks {
            return Ok(());
        }
        let mut states = Default::default();
        if self.change(a, value, old, &mut states, false).await? {
            self.plugins(a, value).await?;
            self.change(a, value, old, &mut states, true).await?;
        }
        Ok(())
    }

    /// Lets policies, then webhooks change the object; whether they have is returned.
    async fn change(
        &self,
        a: &Attributes<'_>,
        value: &mut Value,
        old: &Value,
        (policies, hooks): &mut (Reinvocation, Reinvocation),
        again: bool,
    ) -> Result<bool, Status> {
        mutating_policy::mutate(self, a, value, old, policies, again).await?;
        webhooks::mutate(self, a, value, old, hooks, again).await?;
        Ok(policies.needed || hooks.needed)
    }

    /// The plugins of the server itself. What a webhook adds comes here a second time.
    async fn plugins(&self, a: &Attributes<'_>, value: &mut Value) -> Result<(), Status> {
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

    /// Lets plugins, policies and webhooks refuse. `value` is null for a deletion.
    pub async fn validate(&self, a: &Attributes<'_>, value: &Value, old: Option<&Value>) -> Result<(), Status> {
        let before = old.unwrap_or(&Value::Null);
        if a.operation == Operation::Delete && !a.options.past_hooks {
            webhooks::mutate(self, a, &mut Value::Null, before, &mut Reinvocation::default(), false).await?;
        }
        namespace_lifecycle::protect(a)?;
        node_restriction::admit(a, value, old)?;
        rbac_escalation::admit(self, a, value, old)?;
        limit_ranger::validate(self, a, value, old).await?;
        storage::resize(self, a, value, old).await?;
        if a.options.past_hooks {
            return Ok(());
        }
        policy::admit(self, a, value, before).await?;
        webhooks::validate(self, a, value, before).await
    }

    /// Asks webhooks and policies about a request that writes no object of its own: a connection to a pod, a binding,
    /// an eviction, a review. They may change it.
    pub async fn ask(&self, a: &Attributes<'_>, request: &mut Value) -> Result<(), Status> {
        let mut states = Default::default();
        if self.change(a, request, &Value::Null, &mut states, false).await? {
            self.change(a, request, &Value::Null, &mut states, true).await?;
        }
        policy::admit(self, a, request, &Value::Null).await?;
        webhooks::validate(self, a, request, &Value::Null).await
    }
}
