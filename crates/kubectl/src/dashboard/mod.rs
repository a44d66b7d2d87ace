//! `skiff dashboard`: the cluster in a browser.
//!
//! A page, and the API server behind it, on a port of this machine, with the credentials of the kubeconfig: whoever
//! looks at it may do what its user may, so nothing has to run in the cluster and no account is needed for it. Both are
//! below a path that nobody else knows, so that no other page in the browser can ask anything in the user's name.

use crate::{
    cli::{Cli, Command},
    commands::proxy::{Proxy, listen, serve},
    error::{Error, Result},
    flags::Flag,
    out::say,
};

/// Not one of kubectl's: [`crate::dashboard`] runs it.
pub(crate) const COMMAND: Command = Command {
    name: "dashboard",
    about: "Show the cluster in a browser",
    usage: "[--port=PORT]",
    flags: &[&[Flag::int("port", "The port to serve on, of 127.0.0.1. Set to 0 to pick a free port.")
        .short('p')
        .or("0")]],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FILES: &[(&str, &str, &str)] = &[
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    ("/dashboard.css", "text/css; charset=utf-8", include_str!("dashboard.css")),
    ("/dashboard.js", "text/javascript; charset=utf-8", include_str!("dashboard.js")),
];

async fn run(cli: &Cli) -> Result<()> {
    if let Some(word) = cli.args().first() {
        return Err(Error::text(format!("unknown argument {word:?}")));
    }
    let rest = cli.rest()?;
    let listener = listen("127.0.0.1", cli.flags.int("port")?).await?;
    // 122 random bits, from the system.
    let secret = uuid::Uuid::new_v4().simple().to_string();
    let address = listener.local_addr()?;
    say!("The dashboard is at http://{address}/{secret}/ until this command ends.");
    serve(listener, Proxy { rest, prefix: format!("/{secret}"), files: FILES }).await
}
