//! `kubectl config`.

mod change;
mod show;

use crate::cli::Command;

pub(crate) const COMMAND: Command = Command {
    name: "config",
    about: "Modify kubeconfig files",
    usage: "SUBCOMMAND",
    flags: &[],
    subcommands: &[
        show::CURRENT_CONTEXT,
        change::DELETE_CLUSTER,
        change::DELETE_CONTEXT,
        change::DELETE_USER,
        show::GET_CLUSTERS,
        show::GET_CONTEXTS,
        show::GET_USERS,
        change::RENAME_CONTEXT,
        change::SET,
        change::SET_CLUSTER,
        change::SET_CONTEXT,
        change::SET_CREDENTIALS,
        change::UNSET,
        change::USE_CONTEXT,
        show::VIEW,
    ],
    run: None,
};
