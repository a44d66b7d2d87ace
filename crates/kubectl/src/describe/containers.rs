//! Containers within pods and templates of pods.

use serde_json::Value;

use super::{
    array, date, int, joined, keys, or_none, show, str,
    text::{Text, line},
    truth, volumes,
};

/// Containers, with their statuses if they are those of a pod. `pod` resolves the fields that variables refer to.
pub(super) fn containers(
    w: &mut Text,
    label: &str,
    containers: &Value,
    statuses: &Value,
    pod: Option<&Value>,
    space: &str,
) {
    let containers = array(containers);
    line!(w, 0, "{space}{label}:{}", if containers.is_empty() { " <none>" } else { "" });
    for container in containers {
        let status = array(statuses).iter().find(|status| status["name"] == container["name"]);
        basics(w, container, status, space);
        for (title, field) in [("Command", "command"), ("Args", "args")] {
            if !array(&container[field]).is_empty() {
                line!(w, 2, "{title}:");
                for word in array(&container[field]) {
                    str(word).split('\n').for_each(|word| line!(w, 3, "{word}"));
                }
            }
        }
        if let Some(status) = status {
            state(w, "State", &status["state"]);
            if status["lastState"]["terminated"].is_object() {
                state(w, "Last State", &status["lastState"]);
            }
            line!(w, 2, "Ready:\t{}", truth(&status["ready"]));
            line!(w, 2, "Restart Count:\t{}", int(&status["restartCount"]));
        }
        resources(w, 2, &container["resources"]);
        for (title, field) in
            [("Liveness", "livenessProbe"), ("Readiness", "readinessProbe"), ("Startup", "startupProbe")]
        {
            if container[field].is_object() {
                line!(w, 2, "{title}:\t{}", probe(&container[field]));
            }
        }
        environment(w, container, pod);
        mounts(w, container);
    }
}

fn basics(w: &mut Text, container: &Value, status: Option<&Value>, space: &str) {
    let indent = if space.is_empty() { "" } else { " " };
    line!(w, 1, "{indent}{}:", str(&container["name"]));
    if let Some(status) = status {
        line!(w, 2, "Container ID:\t{}", str(&status["containerID"]));
    }
    line!(w, 2, "Image:\t{}", str(&container["image"]));
    if let Some(status) = status {
        line!(w, 2, "Image ID:\t{}", str(&status["imageID"]));
    }
    for (one, many, field) in [("Port", "Ports", "containerPort"), ("Host Port", "Host Ports", "hostPort")] {
        let ports: Vec<String> = array(&container["ports"])
            .iter()
            .map(|port| {
                let text = format!("{}/{}", int(&port[field]), str(&port["protocol"]));
                match str(&port["name"]) {
                    "" => text,
                    name => format!("{text} ({name})"),
                }
            })
            .collect();
        match ports.len() {
            0 | 1 => line!(w, 2, "{one}:\t{}", or_none(&ports.join(""))),
            _ => line!(w, 2, "{many}:\t{}", ports.join(", ")),
        }
    }
    let profile = &container["securityContext"]["seccompProfile"];
    if profile.is_object() {
        line!(w, 2, "SeccompProfile:\t{}", str(&profile["type"]));
        if profile["type"] == "Localhost" {
            line!(w, 3, "LocalhostProfile:\t{}", str(&profile["localhostProfile"]));
        }
    }
}

fn state(w: &mut Text, title: &str, state: &Value) {
    if state["running"].is_object() {
        line!(w, 2, "{title}:\tRunning");
        line!(w, 3, "Started:\t{}", date(&state["running"]["startedAt"]));
    } else if state["terminated"].is_object() {
        let terminated = &state["terminated"];
        line!(w, 2, "{title}:\tTerminated");
        for (title, field) in [("Reason", "reason"), ("Message", "message")] {
            if !str(&terminated[field]).is_empty() {
                line!(w, 3, "{title}:\t{}", str(&terminated[field]));
            }
        }
        line!(w, 3, "Exit Code:\t{}", int(&terminated["exitCode"]));
        if int(&terminated["signal"]) > 0 {
            line!(w, 3, "Signal:\t{}", int(&terminated["signal"]));
        }
        line!(w, 3, "Started:\t{}", date(&terminated["startedAt"]));
        line!(w, 3, "Finished:\t{}", date(&terminated["finishedAt"]));
    } else {
        line!(w, 2, "{title}:\tWaiting");
        if !str(&state["waiting"]["reason"]).is_empty() {
            line!(w, 3, "Reason:\t{}", str(&state["waiting"]["reason"]));
        }
    }
}

/// Limits and requests.
pub(super) fn resources(w: &mut Text, level: usize, resources: &Value) {
    for (title, field) in [("Limits", "limits"), ("Requests", "requests")] {
        let list = &resources[field];
        if keys(list).is_empty() {
            continue;
        }
        line!(w, level, "{title}:");
        for name in keys(list) {
            line!(w, level + 1, "{name}:\t{}", show(&list[name]));
        }
    }
}

fn probe(probe: &Value) -> String {
    let seconds = |field: &str| int(&probe[field]);
    let times = format!(
        "delay={}s timeout={}s period={}s #success={} #failure={}",
        seconds("initialDelaySeconds"),
        seconds("timeoutSeconds"),
        seconds("periodSeconds"),
        seconds("successThreshold"),
        seconds("failureThreshold"),
    );
    if probe["exec"].is_object() {
        return format!("exec [{}] {times}", joined(&probe["exec"]["command"], " "));
    }
    if probe["httpGet"].is_object() {
        let get = &probe["httpGet"];
        let path = str(&get["path"]);
        let slash = if path.is_empty() || path.starts_with('/') { "" } else { "/" };
        let scheme = str(&get["scheme"]).to_lowercase();
        return format!("http-get {scheme}://{}:{}{slash}{path} {times}", str(&get["host"]), show(&get["port"]));
    }
    if probe["tcpSocket"].is_object() {
        let socket = &probe["tcpSocket"];
        return format!("tcp-socket {}:{} {times}", str(&socket["host"]), show(&socket["port"]));
    }
    if probe["grpc"].is_object() {
        return format!("grpc <pod>:{} {} {times}", int(&probe["grpc"]["port"]), str(&probe["grpc"]["service"]));
    }
    format!("unknown {times}")
}

fn environment(w: &mut Text, container: &Value, pod: Option<&Value>) {
    if !array(&container["envFrom"]).is_empty() {
        line!(w, 2, "Environment Variables from:");
        for from in array(&container["envFrom"]) {
            let (kind, source) = match from["configMapRef"].is_object() {
                true => ("ConfigMap", &from["configMapRef"]),
                false => ("Secret", &from["secretRef"]),
            };
            let prefix = match str(&from["prefix"]) {
                "" => String::new(),
                prefix => format!(" with prefix '{prefix}'"),
            };
            line!(w, 3, "{}\t{kind}{prefix}\tOptional: {}", str(&source["name"]), source["optional"] == true);
        }
    }
    let variables = array(&container["env"]);
    line!(w, 2, "Environment:{}", if variables.is_empty() { "\t<none>" } else { "" });
    for variable in variables {
        let (name, from) = (str(&variable["name"]), &variable["valueFrom"]);
        let optional = |source: &Value| source["optional"] == true;
        if from["fieldRef"].is_object() {
            let field = &from["fieldRef"];
            let value = pod.map(|pod| field_of(pod, str(&field["fieldPath"]))).unwrap_or_default();
            line!(w, 3, "{name}:\t{value} ({}:{})", str(&field["apiVersion"]), str(&field["fieldPath"]));
        } else if from["resourceFieldRef"].is_object() {
            let field = &from["resourceFieldRef"];
            line!(w, 3, "{name}:\t{} ({})", resource_field(container, field), str(&field["resource"]));
        } else if from["secretKeyRef"].is_object() {
            let source = &from["secretKeyRef"];
            let (key, secret) = (str(&source["key"]), str(&source["name"]));
            line!(w, 3, "{name}:\t<set to the key '{key}' in secret '{secret}'>\tOptional: {}", optional(source));
        } else if from["configMapKeyRef"].is_object() {
            let source = &from["configMapKeyRef"];
            let (key, map) = (str(&source["key"]), str(&source["name"]));
            line!(w, 3, "{name}:\t<set to the key '{key}' of config map '{map}'>\tOptional: {}", optional(source));
        } else {
            for (i, part) in str(&variable["value"]).split('\n').enumerate() {
                match i {
                    0 => line!(w, 3, "{name}:\t{part}"),
                    _ => line!(w, 3, "\t{part}"),
                }
            }
        }
    }
}

/// A field of a pod, as a variable gets it.
fn field_of(pod: &Value, path: &str) -> String {
    if let Some((path, key)) = path.split_once("['") {
        let map = path.split('.').fold(pod, |value, field| &value[field]);
        return show(&map[key.trim_end_matches("']")]);
    }
    if path == "metadata.labels" || path == "metadata.annotations" {
        let map = path.split('.').fold(pod, |value, field| &value[field]);
        return keys(map).into_iter().map(|key| format!("{key}={:?}", show(&map[key]))).collect::<Vec<_>>().join("\n");
    }
    show(path.split('.').fold(pod, |value, field| &value[field]))
}

/// A limit or request of a container, in units of the divisor.
fn resource_field(container: &Value, field: &Value) -> String {
    let Some((list, name)) = str(&field["resource"]).split_once('.') else { return String::new() };
    let quantity = |value: &Value| show(value).parse::<skiff_api::quantity::Quantity>().ok();
    let value = quantity(&container["resources"][list][name]);
    let divisor = quantity(&field["divisor"]).filter(|divisor| !divisor.is_zero());
    let Some(value) = value else {
        return if list == "limits" { "node allocatable".to_owned() } else { "0".to_owned() };
    };
    let (value, divisor) = match name {
        "cpu" => (value.millis(), divisor.map_or(1000, |divisor| divisor.millis())),
        _ => (value.units(), divisor.map_or(1, |divisor| divisor.units())),
    };
    // Rounded up.
    (value / divisor.max(1) + i64::from(value % divisor.max(1) != 0)).to_string()
}

fn mounts(w: &mut Text, container: &Value) {
    let mut mounts: Vec<&Value> = array(&container["volumeMounts"]).iter().collect();
    mounts.sort_by_key(|mount| str(&mount["mountPath"]));
    let none = if mounts.is_empty() { "\t<none>" } else { "" };
    line!(w, 2, "Mounts:{none}");
    for mount in mounts {
        let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
        let path = match str(&mount["subPath"]) {
            "" => String::new(),
            path => format!(",path={path:?}"),
        };
        line!(w, 3, "{} from {} ({mode}{path})", str(&mount["mountPath"]), str(&mount["name"]));
    }
    let mut devices: Vec<&Value> = array(&container["volumeDevices"]).iter().collect();
    devices.sort_by_key(|device| str(&device["devicePath"]));
    if !devices.is_empty() {
        line!(w, 2, "Devices:{none}");
        for device in devices {
            line!(w, 3, "{} from {}", str(&device["devicePath"]), str(&device["name"]));
        }
    }
}

/// The template of pods of a workload.
pub(super) fn template(w: &mut Text, template: &Value) {
    line!(w, 0, "Pod Template:");
    let (metadata, spec) = (&template["metadata"], &template["spec"]);
    w.labels("  Labels", &metadata["labels"]);
    if !keys(&metadata["annotations"]).is_empty() {
        w.annotations("  Annotations", &metadata["annotations"]);
    }
    if !str(&spec["serviceAccountName"]).is_empty() {
        line!(w, 1, "Service Account:\t{}", str(&spec["serviceAccountName"]));
    }
    if !array(&spec["initContainers"]).is_empty() {
        containers(w, "Init Containers", &spec["initContainers"], &Value::Null, None, "  ");
    }
    containers(w, "Containers", &spec["containers"], &Value::Null, None, "  ");
    volumes::volumes(w, &spec["volumes"], "  ");
    spread_constraints(w, &spec["topologySpreadConstraints"], "  ");
    if !str(&spec["priorityClassName"]).is_empty() {
        line!(w, 1, "Priority Class Name:\t{}", str(&spec["priorityClassName"]));
    }
    w.labels("  Node-Selectors", &spec["nodeSelector"]);
    tolerations(w, "  Tolerations", &spec["tolerations"]);
}

pub(super) fn spread_constraints(w: &mut Text, constraints: &Value, space: &str) {
    let mut constraints: Vec<&Value> = array(constraints).iter().collect();
    if constraints.is_empty() {
        return;
    }
    constraints.sort_by_key(|constraint| str(&constraint["topologyKey"]));
    let texts: Vec<String> = constraints
        .iter()
        .map(|constraint| {
            let selected = match constraint["labelSelector"].is_object() {
                true => format!(" for selector {}", or_none(&super::selector(&constraint["labelSelector"]))),
                false => String::new(),
            };
            format!(
                "{}:{} when max skew {} is exceeded{selected}",
                str(&constraint["topologyKey"]),
                str(&constraint["whenUnsatisfiable"]),
                int(&constraint["maxSkew"]),
            )
        })
        .collect();
    w.entries(space, "Topology Spread Constraints", &texts);
}

pub(super) fn tolerations(w: &mut Text, title: &str, tolerations: &Value) {
    let mut tolerations: Vec<&Value> = array(tolerations).iter().collect();
    tolerations.sort_by_key(|toleration| str(&toleration["key"]));
    let texts: Vec<String> = tolerations
        .into_iter()
        .map(|toleration| {
            let (key, value, effect) = (str(&toleration["key"]), str(&toleration["value"]), str(&toleration["effect"]));
            let mut text = key.to_owned();
            if !value.is_empty() {
                text.push_str(&format!("={value}"));
            }
            if !effect.is_empty() {
                text.push_str(&format!(":{effect}"));
            }
            if toleration["operator"] == "Exists" && value.is_empty() {
                text.push_str(if text.is_empty() { "op=Exists" } else { " op=Exists" });
            }
            if let Some(seconds) = toleration["tolerationSeconds"].as_i64() {
                text.push_str(&format!(" for {seconds}s"));
            }
            text
        })
        .collect();
    w.entries("", title, &texts);
}
