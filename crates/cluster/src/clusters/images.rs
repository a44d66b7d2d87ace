use std::{fs::File, path::Path, time::Duration};

use super::{CONTROL_PATIENCE, Clusters, ask, unexpected};
use crate::{
    Error, Result,
    control::{Answer, Request},
    node_config::CONTROL_SOCKET,
};

/// Images that a node has got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub node: String,
    pub images: Vec<String>,
}

impl Clusters {
    /// Loads an image archive (`docker save` or OCI layout in a tar file) into nodes of a running
    /// cluster, all of them if none is named. `advance` is told the bytes that have been sent.
    pub fn load_images(
        &self,
        name: &str,
        archive: &Path,
        nodes: &[String],
        advance: &mut dyn FnMut(&str, u64),
    ) -> Result<Vec<Loaded>> {
        let status = self.get(name)?;
        if status.running.is_empty() {
            return Err(Error::NotRunning { name: name.to_owned() });
        }
        if let Some(unknown) = nodes.iter().find(|node| !status.running.contains(node)) {
            return Err(Error::Daemon {
                node: unknown.clone(),
                message: format!("it is no running node of cluster {name:?}"),
            });
        }
        let targets = if nodes.is_empty() { &status.running } else { nodes };
        let socket = |node: &str| self.home.inside(name, node, CONTROL_SOCKET);
        targets
            .iter()
            .map(|node| load(node, &socket(node), CONTROL_PATIENCE, archive, &mut |sent| advance(node, sent)))
            .collect()
    }
}

/// Loads an image archive into the node that runs on this machine itself, by `skiff server` or `skiff agent`.
pub fn load_into_this_machine(archive: &Path, advance: &mut dyn FnMut(u64)) -> Result<Loaded> {
    load("this machine", Path::new(CONTROL_SOCKET), Duration::ZERO, archive, advance)
}

fn load(node: &str, socket: &Path, patience: Duration, archive: &Path, advance: &mut dyn FnMut(u64)) -> Result<Loaded> {
    let action = || Error::io(format!("read {}", archive.display()));
    let file = File::open(archive).map_err(action())?;
    let bytes = file.metadata().map_err(action())?.len();
    let mut body = Counted { file, sent: 0, advance };
    match ask(node, socket, &Request::LoadImages { bytes }, &mut body, patience)? {
        Answer::Images(images) => Ok(Loaded { node: node.to_owned(), images }),
        other => Err(unexpected(node, &other)),
    }
}

struct Counted<'a> {
    file: File,
    sent: u64,
    advance: &'a mut dyn FnMut(u64),
}

impl std::io::Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.sent += u64::try_from(read).unwrap_or_default();
        (self.advance)(self.sent);
        Ok(read)
    }
}
