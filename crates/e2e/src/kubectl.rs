//! `kubectl`, Debian's or our own, pointed at a cluster.

use std::{
    cell::RefCell,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{Output, command, host};

/// Which kubectl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1_36,
    V1_32,
    /// `skiff kubectl`.
    Own,
}

impl Version {
    /// Upstream's.
    pub const ALL: [Self; 2] = [Self::V1_36, Self::V1_32];
    /// All that a user may have.
    pub const WITH_OURS: [Self; 3] = [Self::V1_36, Self::V1_32, Self::Own];

    /// As it stands in the program's name.
    pub fn text(self) -> &'static str {
        match self {
            Self::V1_36 => "1.36",
            Self::V1_32 => "1.32",
            Self::Own => "own",
        }
    }
}

/// Calls kubectl with a kubeconfig and, if it has one, in its namespace.
#[derive(Debug, Clone)]
pub struct Kubectl {
    pub version: Version,
    pub kubeconfig: PathBuf,
    /// Its home; has the caches, and is the working directory.
    pub home: PathBuf,
    pub namespace: Option<String>,
}

thread_local! {
    /// Those that were made for this thread's test.
    static NEW: RefCell<Vec<Kubectl>> = const { RefCell::new(Vec::new()) };
}

/// Has the namespaces deleted that this thread has made: the pods of all tests together are too many for the nodes that
/// tests share. A cluster that is gone has taken them along.
pub fn delete_new_namespaces() {
    for kubectl in NEW.take().into_iter().filter(|kubectl| kubectl.kubeconfig.exists()) {
        let namespace = kubectl.namespace.clone().unwrap_or_default();
        let _ = kubectl.run(&["delete", "namespace", &namespace, "--wait=false", "--request-timeout=5s"]);
    }
}

impl Kubectl {
    /// The same one of another version.
    pub fn version(&self, version: Version) -> Self {
        Self { version, ..self.clone() }
    }

    /// The same one in another namespace.
    pub fn within(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    /// The same one in a new namespace, which [`delete_new_namespaces`] takes away.
    pub fn in_new(&self, namespace: &str) -> Self {
        self.run(&["create", "namespace", namespace]).ok();
        // Pods are refused until a controller has made the account that they run as.
        self.run(&["wait", "--for=create", "serviceaccount/default", "-n", namespace, "--timeout=30s"]).ok();
        let new = self.within(namespace);
        NEW.with_borrow_mut(|all| all.push(new.clone()));
        new
    }

    /// The command, to be changed and started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program());
        if self.version == Version::Own {
            command.arg("kubectl");
        }
        if let Some(namespace) = &self.namespace {
            command.args(["-n", namespace]);
        }
        command.args(args).env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.home).current_dir(&self.home);
        command
    }

    pub fn program(&self) -> PathBuf {
        if self.version == Version::Own {
            return host::skiff();
        }
        host::prepared(&format!("tools/kubectl-{}", self.version.text()))
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        command::run(&mut self.command(args), "")
    }

    /// With a manifest on its standard input.
    pub fn feed(&self, args: &[&str], input: &str) -> Output {
        command::run(&mut self.command(args), input)
    }

    /// `kubectl apply -f -`.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        self.feed(&["apply", "-f", "-"], manifest).ok()
    }

    /// One object, or a list.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.run(&[&["get", "-o", "json"], args].concat()).ok();
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// `get` with a JSONPath.
    pub fn path(&self, what: &[&str], path: &str) -> Result<String, String> {
        let output = format!("jsonpath={path}");
        self.run(&[&["get", "-o", &output], what].concat()).result()
    }

    /// In the background; it is killed when dropped.
    pub fn start(&self, args: &[&str]) -> Background {
        Background::start(&mut self.command(args))
    }
}

/// A program that runs until it is dropped.
#[derive(Debug)]
pub struct Background {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// What was read so far.
    pub seen: Vec<String>,
}

impl Background {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", command.get_program().to_string_lossy()));
        let (send, lines) = mpsc::channel();
        let complaints = send.clone();
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let err = BufReader::new(child.stderr.take().expect("piped"));
        let forward =
            |from: Vec<u8>, to: &mpsc::Sender<String>| to.send(String::from_utf8_lossy(&from).into_owned()).is_ok();
        thread::spawn(move || out.split(b'\n').map_while(Result::ok).all(|line| forward(line, &send)));
        thread::spawn(move || err.split(b'\n').map_while(Result::ok).all(|line| forward(line, &complaints)));
        Self { child, lines, seen: Vec::new() }
    }

    /// Reads on until a line satisfies `wanted`, and returns it.
    #[track_caller]
    pub fn line(&mut self, patience: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(_) => panic!("it did not print what was expected, but {:#?}", self.seen),
            }
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(&mut self, patience: Duration) -> Option<i32> {
        crate::eventually(patience, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status.code()),
            Ok(None) => Err("it still runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
