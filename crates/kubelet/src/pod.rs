//! Reading pods: what the API leaves optional, as the kubelet wants to see it.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Container, EphemeralContainer, Pod, PodSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

/// A pod's UID, which tells it from its namesakes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PodUid(Arc<str>);

impl PodUid {
    pub(crate) fn new(uid: &str) -> PodUid {
        PodUid(uid.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of container a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to completion before the next starts.
    Init,
    /// An init container that stays: a sidecar.
    Sidecar,
    Regular,
    Ephemeral,
}

/// Short ways to a pod's fields.
pub(crate) trait PodExt {
    fn uid(&self) -> PodUid;
    fn name(&self) -> &str;
    fn namespace(&self) -> &str;
    fn spec(&self) -> &PodSpec;
    fn is_deleting(&self) -> bool;
    fn phase(&self) -> &str;
    fn restart_policy(&self) -> &str;

    /// `name_namespace(uid)`, as messages name pods.
    fn full_name(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }

    fn host_network(&self) -> bool {
        self.spec().host_network == Some(true)
    }

    fn init_containers(&self) -> &[Container] {
        self.spec().init_containers.as_deref().unwrap_or_default()
    }

    /// Seconds between asking the containers to end and ending them.
    fn grace_period(&self) -> i64;

    fn is_terminal(&self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
    }

    /// All containers with their role: init, regular, ephemeral.
    fn all_containers(&self) -> Vec<(Role, Container)> {
        let init =
            self.init_containers().iter().map(|c| (if is_sidecar(c) { Role::Sidecar } else { Role::Init }, c.clone()));
        let regular = self.spec().containers.iter().map(|c| (Role::Regular, c.clone()));
        let ephemeral = self.spec().ephemeral_containers.iter().flatten().map(|c| (Role::Ephemeral, ephemeral(c)));
        init.chain(regular).chain(ephemeral).collect()
    }
}

impl PodExt for Pod {
    fn uid(&self) -> PodUid {
        PodUid::new(self.metadata.uid.as_deref().unwrap_or_default())
    }

    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.spec.as_ref().unwrap_or(&EMPTY)
    }

    fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    fn phase(&self) -> &str {
        self.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
    }

    fn restart_policy(&self) -> &str {
        PodExt::spec(self).restart_policy.as_deref().unwrap_or("Always")
    }

    fn grace_period(&self) -> i64 {
        self.metadata
            .deletion_grace_period_seconds
            .or(PodExt::spec(self).termination_grace_period_seconds)
            .unwrap_or(30)
            .max(0)
    }
}

/// Whether an init container stays while the others run.
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// An ephemeral container in the form of the others.
pub(crate) fn ephemeral(c: &EphemeralContainer) -> Container {
    Container {
        args: c.args.clone(),
        command: c.command.clone(),
        env: c.env.clone(),
        env_from: c.env_from.clone(),
        image: c.image.clone(),
        image_pull_policy: c.image_pull_policy.clone(),
        name: c.name.clone(),
        security_context: c.security_context.clone(),
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        termination_message_path: c.termination_message_path.clone(),
        termination_message_policy: c.termination_message_policy.clone(),
        tty: c.tty,
        volume_mounts: c.volume_mounts.clone(),
        working_dir: c.working_dir.clone(),
        ..Container::default()
    }
}

/// The number of a port that is given by number or by a container port's name.
pub(crate) fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match named {
                Some(port) => port.container_port,
                None => name.parse().map_err(|_| format!("strconv.Atoi: parsing {name:?}: invalid syntax"))?,
            }
        }
    };
    match u16::try_from(number) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("invalid port number: {number}")),
    }
}

/// Nanoseconds since the epoch, as CRI gives times; `None` for zero.
pub(crate) fn timestamp(nanos: i64) -> Option<Timestamp> {
    if nanos == 0 { None } else { Timestamp::from_nanosecond(nanos.into()).ok() }
}
