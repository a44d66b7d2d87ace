//! Rules of the security contexts of pods and containers.

use serde_json::Value;
use skiff_api::validation::{Faults, FieldError};

/// Rules of a pod's.
pub(super) fn validate_pod(context: &Value, at: &str, faults: &mut Faults) {
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        validate_id(&context[field], &format!("{at}.{field}"), faults);
    }
    for (i, group) in context["supplementalGroups"].as_array().into_iter().flatten().enumerate() {
        validate_id(group, &format!("{at}.supplementalGroups[{i}]"), faults);
    }
    validate_sysctls(&context["sysctls"], &format!("{at}.sysctls"), faults);
    if let Some(policy) = context["fsGroupChangePolicy"].as_str() {
        faults.one_of(&format!("{at}.fsGroupChangePolicy"), policy, &["Always", "OnRootMismatch"]);
    }
    validate_seccomp(&context["seccompProfile"], &format!("{at}.seccompProfile"), faults);
    if let Some(policy) = context["supplementalGroupsPolicy"].as_str() {
        faults.one_of(&format!("{at}.supplementalGroupsPolicy"), policy, &["Merge", "Strict"]);
    }
}

/// Rules of a container's.
pub(super) fn validate_container(context: &Value, at: &str, faults: &mut Faults) {
    for field in ["runAsUser", "runAsGroup"] {
        validate_id(&context[field], &format!("{at}.{field}"), faults);
    }
    if let Some(kind) = context["procMount"].as_str() {
        faults.one_of(&format!("{at}.procMount"), kind, &["Default", "Unmasked"]);
    }
    validate_seccomp(&context["seccompProfile"], &format!("{at}.seccompProfile"), faults);
    if context["allowPrivilegeEscalation"] == false {
        if context["privileged"] == true {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            faults.invalid(at, context.clone(), why);
        }
        let added = context["capabilities"]["add"].as_array();
        if added.is_some_and(|added| added.iter().any(|c| c == "CAP_SYS_ADMIN")) {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            faults.invalid(at, context.clone(), why);
        }
    }
}

fn validate_id(id: &Value, at: &str, faults: &mut Faults) {
    if let Some(id) = id.as_i64().filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        faults.invalid(at, id, "must be between 0 and 2147483647, inclusive");
    }
}

fn validate_seccomp(profile: &Value, at: &str, faults: &mut Faults) {
    if !profile.is_object() {
        return;
    }
    let local = profile["localhostProfile"].as_str();
    let here = format!("{at}.localhostProfile");
    match profile["type"].as_str().unwrap_or_default() {
        "" => faults.required(format!("{at}.type"), "type is required when seccompProfile is set"),
        kind => faults.one_of(&format!("{at}.type"), kind, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
    match (profile["type"] == "Localhost", local) {
        (true, None) => faults.required(here, "must be set when seccomp type is Localhost"),
        (true, Some(path)) if path.starts_with('/') => faults.invalid(here, path, "must be a relative path"),
        (true, Some(path)) if path.split('/').any(|part| part == "..") => {
            faults.invalid(here, path, "must not contain '..'");
        }
        (false, Some(_)) => faults.invalid(here, profile.clone(), "can only be set when seccomp type is Localhost"),
        _ => {}
    }
}

const LONGEST_SYSCTL: usize = 253;

fn validate_sysctls(sysctls: &Value, at: &str, faults: &mut Faults) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, sysctl) in sysctls.as_array().into_iter().flatten().enumerate() {
        let (name, here) = (sysctl["name"].as_str().unwrap_or_default(), format!("{at}[{i}].name"));
        if name.is_empty() {
            faults.required(here, "");
        } else if name.len() > LONGEST_SYSCTL || !name.split(['.', '/']).all(is_segment) {
            let form = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
            let why = format!("must have at most {LONGEST_SYSCTL} characters and match regex ^({form}[\\./])*{form}$");
            faults.invalid(here, name, why);
        } else if seen.contains(&name) {
            faults.push(FieldError::duplicate(here, name));
        }
        seen.push(name);
    }
}

/// Whether a part of a sysctl's name is one: small letters and digits, with hyphens and underscores between them.
fn is_segment(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    bytes.first().is_some_and(|b| alphanumeric(*b))
        && bytes.last().is_some_and(|b| alphanumeric(*b))
        && bytes.iter().all(|b| alphanumeric(*b) || matches!(b, b'-' | b'_'))
}
