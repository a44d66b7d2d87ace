//! `kubectl certificate`.

use serde_json::{Value, json};

use crate::{
    cli::{self, Cli, Command},
    error::{Error, Result},
    flags::Flag,
    print::Printer,
};

pub(crate) const COMMAND: Command = Command {
    name: "certificate",
    about: "Modify certificate resources",
    usage: "SUBCOMMAND",
    flags: &[],
    subcommands: &[
        Command {
            name: "approve",
            about: "Approve a certificate signing request",
            usage: "(-f FILENAME | NAME)",
            flags: &[FLAGS, crate::print::FLAGS, cli::FILES],
            subcommands: &[],
            run: Some(|cli| Box::pin(decide(cli, &APPROVE))),
        },
        Command {
            name: "deny",
            about: "Deny a certificate signing request",
            usage: "(-f FILENAME | NAME)",
            flags: &[FLAGS, crate::print::FLAGS, cli::FILES],
            subcommands: &[],
            run: Some(|cli| Box::pin(decide(cli, &DENY))),
        },
    ],
    run: None,
};

const FLAGS: &[Flag] = &[Flag::bool("force", "Update the CSR even if it is already approved or denied.")];

/// What the two commands differ in.
struct Decision {
    condition: &'static str,
    reason: &'static str,
    message: &'static str,
    done: &'static str,
}
const APPROVE: Decision = Decision {
    condition: "Approved",
    reason: "KubectlApprove",
    message: "This CSR was approved by kubectl certificate approve.",
    done: "approved",
};
const DENY: Decision = Decision {
    condition: "Denied",
    reason: "KubectlDeny",
    message: "This CSR was denied by kubectl certificate deny.",
    done: "denied",
};

async fn decide(cli: &Cli, decision: &Decision) -> Result<()> {
    if cli.args().is_empty() && cli.file_names()?.is_empty() {
        return Err(Error::text("one or more CSRs must be specified as <name> or -f <filename>"));
    }
    let printer = Printer::of(&cli.flags, false)?;
    let mut args = cli.args().to_vec();
    if !args.is_empty() {
        args.insert(0, "certificatesigningrequests".to_owned());
    }
    for item in cli.all_items(&args).await? {
        let mut object = item.object.clone();
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let known = |kind: &str| conditions.iter().any(|condition| condition["type"] == kind);
        if known("Approved") && known("Denied") {
            return Err(Error::text("certificate signing request has both an approval and a denial"));
        }
        if !known(decision.condition) || cli.flags.is("force") {
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let mut all: Vec<Value> =
                conditions.into_iter().filter(|condition| condition["type"] != decision.condition).collect();
            all.push(json!({
                "type": decision.condition, "status": "True", "reason": decision.reason,
                "message": decision.message, "lastUpdateTime": now,
            }));
            object["status"]["conditions"] = all.into();
            object = cli.rest()?.put(&format!("{}/approval", item.path()), &object).await?;
        }
        printer.done(&object, decision.done)?;
    }
    Ok(())
}
