//! A call of kubectl: its flags, and what is needed to answer it, made when it is first asked for.

use std::{cell::OnceCell, future::Future, pin::Pin, rc::Rc, time::Duration};

use http::{HeaderName, HeaderValue};
use serde_json::Value;

use crate::{
    discovery::{Discovery, Resource},
    error::{Error, Result},
    flags::{Flag, Parsed, Takes},
    kubeconfig::Kubeconfig,
    rest::Rest,
};

/// A command, or a group of commands.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Behind the command's name.
    pub(crate) usage: &'static str,
    pub(crate) flags: &'static [&'static [Flag]],
    pub(crate) subcommands: &'static [Command],
    /// `None`: only its subcommands do something.
    pub(crate) run: Option<Run>,
}

/// What a command does.
pub(crate) type Run = for<'a> fn(&'a Cli) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// The flags of every command.
pub(crate) const GLOBAL: &[Flag] = &[
    Flag::text("kubeconfig", "Path to the kubeconfig file to use for CLI requests."),
    Flag::text("context", "The name of the kubeconfig context to use"),
    Flag::text("cluster", "The name of the kubeconfig cluster to use"),
    Flag::text("user", "The name of the kubeconfig user to use"),
    Flag::text("namespace", "If present, the namespace scope for this CLI request").short('n'),
    Flag::text("server", "The address and port of the Kubernetes API server").short('s'),
    Flag::text("token", "Bearer token for authentication to the API server"),
    Flag::text("as", "Username to impersonate for the operation."),
    Flag::array(
        "as-group",
        "Group to impersonate for the operation, this flag can be repeated to specify multiple groups.",
    ),
    Flag::text("as-uid", "UID to impersonate for the operation."),
    Flag::text("certificate-authority", "Path to a cert file for the certificate authority"),
    Flag::text("client-certificate", "Path to a client certificate file for TLS"),
    Flag::text("client-key", "Path to a client key file for TLS"),
    Flag::text("tls-server-name", "Server name to use for server certificate validation."),
    Flag::bool("insecure-skip-tls-verify", "Not supported."),
    Flag::text("request-timeout", "The length of time to wait before giving up on a single server request.").or("0"),
    Flag::text("cache-dir", "Taken, but nothing is cached."),
    Flag::bool("help", "What the command is and takes.").short('h'),
];

/// The flags that choose manifests.
pub(crate) const FILES: &[Flag] = &[
    Flag::list("filename", "Filename, directory, or URL to files to use.").short('f'),
    Flag::bool("recursive", "Process the directory used in -f, --filename recursively.").short('R'),
    Flag::text("kustomize", "Not supported.").short('k'),
];
/// The flag that chooses by label.
pub(crate) const SELECTOR: &[Flag] =
    &[Flag::text("selector", "Selector (label query) to filter on, supports '=', '==', '!=', 'in', 'notin'.")
        .short('l')];
/// The flags that choose more than one object.
pub(crate) const ALL: &[Flag] =
    &[Flag::bool("all", "Select all resources in the namespace of the specified resource types")];
pub(crate) const DRY_RUN: &[Flag] =
    &[Flag::new("dry-run", Takes::Optional("unchanged"), "Must be \"none\", \"server\", or \"client\".").or("none")];

/// Whether a change is made, tried by the server, or only shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DryRun {
    None,
    Client,
    Server,
}

impl DryRun {
    /// Behind what is said to be done.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            DryRun::None => "",
            DryRun::Client => " (dry run)",
            DryRun::Server => " (server dry run)",
        }
    }

    /// The parameter of requests.
    pub(crate) fn parameter(self) -> &'static str {
        if self == DryRun::Server { "All" } else { "" }
    }
}

/// A call.
pub(crate) struct Cli {
    pub(crate) flags: Parsed,
    /// `rollout status`: how messages name the command.
    pub(crate) command: String,
    kubeconfig: OnceCell<Kubeconfig>,
    rest: OnceCell<Rc<Rest>>,
    discovery: tokio::sync::OnceCell<Discovery>,
}

impl Cli {
    pub(crate) fn new(command: String, flags: Parsed) -> Cli {
        Cli {
            flags,
            command,
            kubeconfig: OnceCell::new(),
            rest: OnceCell::new(),
            discovery: tokio::sync::OnceCell::new(),
        }
    }

    /// The words that are not flags.
    pub(crate) fn args(&self) -> &[String] {
        &self.flags.args
    }

    /// A wrong use of this command.
    pub(crate) fn usage(&self, text: impl std::fmt::Display) -> Error {
        Error::usage(&self.command, text)
    }

    pub(crate) fn kubeconfig(&self) -> Result<&Kubeconfig> {
        if let Some(config) = self.kubeconfig.get() {
            return Ok(config);
        }
        let config = Kubeconfig::load(&self.flags)?;
        Ok(self.kubeconfig.get_or_init(|| config))
    }

    /// The namespace of what names none.
    pub(crate) fn namespace(&self) -> Result<String> {
        Ok(self.kubeconfig()?.namespace(&self.flags).0)
    }

    /// Whether `-n` says the namespace.
    pub(crate) fn namespace_is_forced(&self) -> Result<bool> {
        Ok(self.kubeconfig()?.namespace(&self.flags).1)
    }

    pub(crate) fn rest(&self) -> Result<Rc<Rest>> {
        if let Some(rest) = self.rest.get() {
            return Ok(rest.clone());
        }
        let config = self.kubeconfig()?.config(&self.flags)?;
        let mut headers = Vec::new();
        let mut impersonate = |name: &'static str, value: &str| -> Result<()> {
            let value = HeaderValue::from_str(value).map_err(|error| Error::text(format!("{name}: {error}")))?;
            headers.push((HeaderName::from_static(name), value));
            Ok(())
        };
        if let Some(user) = self.flags.some("as") {
            impersonate("impersonate-user", user)?;
        }
        for group in self.flags.list("as-group") {
            impersonate("impersonate-group", group)?;
        }
        if let Some(uid) = self.flags.some("as-uid") {
            impersonate("impersonate-uid", uid)?;
        }
        let rest = Rc::new(Rest::new(config, headers, self.request_timeout()?)?);
        Ok(self.rest.get_or_init(|| rest).clone())
    }

    fn request_timeout(&self) -> Result<Option<Duration>> {
        let text = self.flags.text("request-timeout");
        if let Ok(seconds) = text.parse::<u64>() {
            return Ok((seconds > 0).then(|| Duration::from_secs(seconds)));
        }
        Ok(self.flags.duration("request-timeout")?.positive())
    }

    pub(crate) async fn discovery(&self) -> Result<&Discovery> {
        let rest = self.rest()?;
        self.discovery.get_or_try_init(|| async { Discovery::load(&rest).await }).await
    }

    /// The resource that a name means.
    pub(crate) async fn resource(&self, name: &str) -> Result<&Resource> {
        self.discovery().await?.find(name)
    }

    /// The resource of an object.
    pub(crate) async fn resource_of(&self, object: &Value, source: &str) -> Result<&Resource> {
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        self.discovery().await?.of_kind(api_version, kind).ok_or_else(|| {
            let metadata = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
            Error::text(format!(
                "resource mapping not found for name: {:?} namespace: {:?} from {source:?}: no matches for kind {kind:?} in version {api_version:?}\nensure CRDs are installed first",
                metadata("name"),
                metadata("namespace"),
            ))
        })
    }

    pub(crate) fn dry_run(&self) -> Result<DryRun> {
        Ok(match self.flags.text("dry-run") {
            "none" | "false" | "" => DryRun::None,
            "client" => DryRun::Client,
            "server" => DryRun::Server,
            "unchanged" | "true" => {
                return Err(Error::text(
                    "Invalid dry-run value (unchanged). Must be \"none\", \"server\", or \"client\".",
                ));
            }
            other => {
                return Err(Error::text(format!(
                    "Invalid dry-run value ({other}). Must be \"none\", \"server\", or \"client\"."
                )));
            }
        })
    }
}
