//! A request's objects as webhooks and policies see them: in the version that they ask for, and for a subresource as
//! the object that is sent to it.

use std::sync::Arc;

use serde_json::Value;
use skiff_api::{Kind, Status, decode};

use super::{Admission, Attributes};
use crate::{
    convert,
    custom::Version,
    discovery,
    object::{meta_mut, take_revision},
    registry::Resource,
    subresources,
};

/// What is sent to a subresource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The object itself.
    Whole,
    /// A number of replicas.
    Scale,
    /// An object that is nothing but a request, of this type.
    Request(&'static str),
}

/// See the [module](self).
pub(super) struct View<'a> {
    a: &'a Attributes<'a>,
    admission: &'a Admission,
    /// The version that is shown.
    pub(super) kind: &'static Kind,
    version: Option<Arc<Version>>,
    resource: Option<Arc<Resource>>,
    form: Form,
}

impl<'a> View<'a> {
    pub(super) fn new(admission: &'a Admission, a: &'a Attributes<'a>, kind: &'static Kind) -> View<'a> {
        let resource = admission.registry.stored(kind);
        let version = resource.as_ref().and_then(|r| r.version(kind.version));
        let form = match a.subresource {
            "scale" => Form::Scale,
            "binding" => Form::Request("api.core.v1.Binding"),
            "eviction" => Form::Request("api.policy.v1.Eviction"),
            "token" => Form::Request("api.authentication.v1.TokenRequest"),
            "attach" | "exec" | "portforward" | "proxy" => Form::Request(""),
            _ => Form::Whole,
        };
        View { a, admission, kind, version, resource, form }
    }

    /// For a custom kind: the version that is shown, unless something else is sent to the subresource.
    pub(super) fn version(&self) -> Option<&Version> {
        self.version.as_deref().filter(|_| self.form == Form::Whole)
    }

    /// The type of what is shown, in the table of types.
    pub(super) fn type_name(&self) -> String {
        match self.form {
            Form::Whole => self.kind.type_name(),
            Form::Scale => "api.autoscaling.v1.Scale".to_owned(),
            Form::Request(name) => name.to_owned(),
        }
    }

    /// Group, version and kind of what is shown.
    pub(super) fn group_version_kind(&self) -> [&'static str; 3] {
        group_version_kind(self.kind, self.a.subresource)
    }

    /// An object as it is shown; null stays null.
    pub(super) async fn show(&self, value: &Value) -> Result<Value, Status> {
        if value.is_null() {
            return Ok(Value::Null);
        }
        let mut shown = match self.form {
            Form::Request(_) => return Ok(value.clone()),
            Form::Scale => subresources::scale_of(value, self.version.as_ref().and_then(|v| v.scale.as_ref())),
            Form::Whole => match &self.resource {
                Some(resource) if resource.custom.is_some() => {
                    let registry = &self.admission.registry;
                    crate::custom::conversion::convert(registry, resource, value.clone(), self.kind.version).await?
                }
                _ => convert::from_stored_value(self.kind, value).unwrap_or_else(|| value.clone()),
            },
        };
        if let Some(revision) = self.a.revision {
            meta_mut(&mut shown).insert("resourceVersion".into(), revision.0.to_string().into());
        }
        Ok(shown)
    }

    /// Takes in what was made of a shown object: what its type does not know goes, what is missing comes.
    pub(super) async fn accept(&self, mut changed: Value, value: &mut Value) -> Result<(), Status> {
        let conformed = match (self.form, &self.version) {
            (Form::Request(""), _) => Ok(Vec::new()),
            (Form::Whole, Some(version)) => version.conform(&mut changed),
            _ => decode::conform(&mut changed, &self.type_name()),
        };
        conformed.map_err(Status::internal)?;
        match self.form {
            Form::Request(_) => *value = changed,
            Form::Scale => {
                let of = self.version.as_ref().and_then(|v| v.scale.as_ref());
                subresources::set_replicas(value, of, changed["spec"]["replicas"].as_i64().unwrap_or(0));
            }
            Form::Whole => {
                take_revision(&mut changed);
                let sent_in = value["apiVersion"].as_str().unwrap_or_default();
                let sent_in = sent_in.rsplit('/').next().unwrap_or_default().to_owned();
                let Some(resource) = &self.resource else {
                    *value = changed;
                    return Ok(());
                };
                *value = match resource.custom.is_some() {
                    true => {
                        let registry = &self.admission.registry;
                        crate::custom::conversion::convert(registry, resource, changed, &sent_in).await?
                    }
                    false => convert::to_stored(self.kind, changed),
                };
                (resource.strategy.defaults)(value);
                if let Some(version) = resource.version_of(value) {
                    version.defaults(value);
                }
            }
        }
        Ok(())
    }
}

/// Group, version and kind of what is sent to a resource or its subresource.
pub(super) fn group_version_kind(kind: &'static Kind, subresource: &str) -> [&'static str; 3] {
    match subresource {
        "" => [kind.group, kind.version, kind.kind],
        sub => {
            let (kind, group, version, _) = discovery::subresource(kind, sub);
            [group, version, kind]
        }
    }
}
