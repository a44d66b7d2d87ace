//! Profiles in files, in the JSON of the OCI runtime specification or Docker's extension of it.

use serde::Deserialize;

use super::{Action, Condition, Filter, Operator, Rule, syscalls};
use crate::caps;

const EPERM: u32 = 1;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Syscalls>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscalls {
    #[serde(default)]
    names: Vec<String>,
    /// The oldest form has one name.
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Selector,
    #[serde(default)]
    excludes: Selector,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// Docker's conditions on a whole entry.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Selector {
    caps: Vec<String>,
    arches: Vec<String>,
}

/// Parses a profile for a process with these capabilities. Calls that this architecture does not have
/// are passed over, as profiles name those of all.
pub(super) fn parse(text: &[u8], capabilities: u64) -> Result<Filter, String> {
    let profile: Profile = serde_json::from_slice(text).map_err(|e| format!("invalid seccomp profile: {e}"))?;
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut rules = Vec::new();
    for entry in &profile.syscalls {
        if !entry.applies(capabilities) {
            continue;
        }
        let action = action(&entry.action, entry.errno_ret)?;
        let conditions: Vec<_> = entry.args.iter().flatten().map(Argument::condition).collect::<Result<_, _>>()?;
        for name in entry.names.iter().chain(&entry.name) {
            if let Some(number) = syscalls::number(name) {
                rules.push(Rule { number, conditions: conditions.clone(), action });
            }
        }
    }
    Ok(Filter { rules, default, unknown: default })
}

impl Syscalls {
    fn applies(&self, capabilities: u64) -> bool {
        let holds = |name: &String| caps::bit(name).is_some_and(|bit| capabilities & bit != 0);
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let here = |arches: &[String]| arches.iter().any(|a| a == arch);
        self.includes.caps.iter().all(holds)
            && (self.includes.arches.is_empty() || here(&self.includes.arches))
            && !self.excludes.caps.iter().any(holds)
            && !here(&self.excludes.arches)
    }
}

impl Argument {
    fn condition(&self) -> Result<Condition, String> {
        if self.index > 5 {
            return Err(format!("invalid seccomp profile: no argument {}", self.index));
        }
        let (operator, value) = match self.op.as_str() {
            "SCMP_CMP_EQ" => (Operator::Equal, self.value),
            "SCMP_CMP_NE" => (Operator::NotEqual, self.value),
            "SCMP_CMP_LT" => (Operator::Less, self.value),
            "SCMP_CMP_LE" => (Operator::LessOrEqual, self.value),
            "SCMP_CMP_GT" => (Operator::Greater, self.value),
            "SCMP_CMP_GE" => (Operator::GreaterOrEqual, self.value),
            "SCMP_CMP_MASKED_EQ" => (Operator::Masked(self.value), self.value_two),
            other => return Err(format!("invalid seccomp profile: unknown operator {other}")),
        };
        Ok(Condition { argument: self.index, operator, value })
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<Action, String> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::ALLOW,
        "SCMP_ACT_LOG" => Action::LOG,
        "SCMP_ACT_ERRNO" => Action::errno(errno.unwrap_or(EPERM)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => Action::KILL_PROCESS,
        "SCMP_ACT_TRAP" => Action::TRAP,
        "SCMP_ACT_TRACE" => Action::trace(errno.unwrap_or(EPERM)),
        other => return Err(format!("invalid seccomp profile: unsupported action {other}")),
    })
}
