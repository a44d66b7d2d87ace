//! A file for each command: its flags, and what it does.

mod api;
mod apply;
mod attach;
mod auth;
mod certificate;
mod config;
mod cp;
mod create;
mod delete;
mod describe;
mod diff;
mod edit;
mod events;
mod exec;
mod explain;
mod expose;
mod get;
mod label;
mod last_applied;
mod logs;
mod node;
mod patch;
mod port_forward;
pub(crate) mod proxy;
mod replace;
mod rollout;
mod run;
mod scale;
mod set;
mod top;
mod version;
mod wait;

use crate::cli::{Command, GLOBAL};

/// All commands.
pub(crate) const ALL: &[Command] = &[
    create::COMMAND,
    expose::COMMAND,
    run::COMMAND,
    set::COMMAND,
    explain::COMMAND,
    get::COMMAND,
    edit::COMMAND,
    delete::COMMAND,
    rollout::COMMAND,
    scale::COMMAND,
    scale::AUTOSCALE,
    certificate::COMMAND,
    version::CLUSTER_INFO,
    top::COMMAND,
    node::CORDON,
    node::UNCORDON,
    node::DRAIN,
    node::TAINT,
    describe::COMMAND,
    logs::COMMAND,
    attach::COMMAND,
    exec::COMMAND,
    port_forward::COMMAND,
    proxy::COMMAND,
    cp::COMMAND,
    auth::COMMAND,
    events::COMMAND,
    diff::COMMAND,
    apply::COMMAND,
    patch::COMMAND,
    replace::COMMAND,
    wait::COMMAND,
    label::LABEL,
    label::ANNOTATE,
    api::RESOURCES,
    api::VERSIONS,
    config::COMMAND,
    version::VERSION,
];

/// Other names of commands.
pub(crate) const ALIASES: &[(&str, &str)] = &[
    ("cj", "cronjob"),
    ("cm", "configmap"),
    ("deploy", "deployment"),
    ("dep", "deployment"),
    ("ev", "events"),
    ("event", "events"),
    ("ing", "ingress"),
    ("ns", "namespace"),
    ("pc", "priorityclass"),
    ("pdb", "poddisruptionbudget"),
    ("pods", "pod"),
    ("po", "pod"),
    ("nodes", "node"),
    ("no", "node"),
    ("resourcequota", "quota"),
    ("sa", "serviceaccount"),
    ("svc", "service"),
];

/// What `kubectl` alone prints.
pub(crate) fn help_of_all() -> String {
    let mut text = "kubectl controls the Kubernetes cluster manager.\n\nCommands:\n".to_owned();
    for command in ALL {
        text.push_str(&format!("  {:<15} {}\n", command.name, command.about));
    }
    text.push_str("\nUsage:\n  kubectl [flags] [options]\n\nUse \"kubectl <command> --help\" for more information about a given command.\n");
    text
}

/// What a command is and takes.
pub(crate) fn help(called: &str, command: &Command) -> String {
    let mut text = format!("{}.\n", command.about);
    if !command.subcommands.is_empty() {
        text.push_str("\nAvailable Commands:\n");
        for command in command.subcommands {
            text.push_str(&format!("  {:<15} {}\n", command.name, command.about));
        }
    }
    let flags = |title: &str, flags: &mut dyn Iterator<Item = &crate::flags::Flag>| {
        let mut text = format!("\n{title}:\n");
        for flag in flags {
            let short = if flag.short == '\0' { "    ".to_owned() } else { format!("-{}, ", flag.short) };
            text.push_str(&format!("    {short}--{}={}:\n\t{}\n", flag.name, flag.default, flag.help));
        }
        text
    };
    if command.flags.iter().any(|flags| !flags.is_empty()) {
        text.push_str(&flags("Options", &mut command.flags.iter().copied().flatten()));
    }
    text.push_str(&format!("\nUsage:\n  {called} {}\n", command.usage));
    text.push_str(&flags("The following options can be passed to any command", &mut GLOBAL.iter()));
    text
}
