//! `skiff server` alone: the API with scheduler and controllers, and no node.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use crate::{Home, Kubectl, Version, eventually};

/// A control plane; it ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    pub home: Home,
    pub port: u16,
    flags: Vec<String>,
    child: Child,
}

impl Server {
    /// Starts one and waits until it is ready.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_in(Home::new())
    }

    /// Starts one in a home that was prepared.
    #[track_caller]
    pub fn start_in(home: Home) -> Self {
        Self::start_with(home, &[])
    }

    /// Starts one with further flags.
    #[track_caller]
    pub fn start_with(home: Home, flags: &[&str]) -> Self {
        // The namespace is the tests' own, so a port that was free just now still is.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let child = Self::spawn(&home, port, &flags);
        let server = Self { home, port, flags, child };
        server.wait_until_ready();
        server
    }

    fn spawn(home: &Home, port: u16, flags: &[String]) -> Child {
        let log = File::options().create(true).append(true).open(home.dir.join("server.log")).expect("a file");
        let mut command =
            home.command(&["server", "--bind-address", "127.0.0.1", "--port", &port.to_string(), "--data-dir"]);
        // Several servers share the namespace, and none of these is for etcd's clients.
        command.arg(home.dir.join("data")).args(["--etcd-port", "0"]).args(flags).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file")).stderr(log).spawn().expect("skiff runs")
    }

    #[track_caller]
    fn wait_until_ready(&self) {
        eventually(Duration::from_secs(30), || {
            self.kubectl()
                .run(&["get", "--raw", "/readyz"])
                .result()
                .map_err(|error| format!("{error}\n{}", self.log()))
        });
    }

    /// `kill -9`, and a start on the same state.
    #[track_caller]
    pub fn kill_and_restart(&mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
        self.child = Self::spawn(&self.home, self.port, &self.flags);
        self.wait_until_ready();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.home.dir.join("server.log")).unwrap_or_default()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.home.dir.join("data/admin.conf")
    }

    /// As the administrator, without a namespace.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl { version: Version::V1_36, kubeconfig: self.kubeconfig(), home: self.home.dir.clone(), namespace: None }
    }

    pub fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
