use std::{fs::File, path::Path};

use super::{Clusters, unexpected};
use crate::{
    Error, Result,
    control::{Answer, Request},
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
        let action = || Error::io(format!("read {}", archive.display()));
        let mut loaded = Vec::new();
        for node in targets {
            let file = File::open(archive).map_err(action())?;
            let bytes = file.metadata().map_err(action())?.len();
            let mut body = Counted { file, sent: 0, advance: &mut |sent| advance(node, sent) };
            match self.ask_with(name, node, &Request::LoadImages { bytes }, &mut body)? {
                Answer::Images(images) => loaded.push(Loaded { node: node.clone(), images }),
                other => return Err(unexpected(node, &other)),
            }
        }
        Ok(loaded)
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
