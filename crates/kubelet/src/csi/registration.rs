//! Finding drivers: each has a socket in the directory of plugins, where it says who it is.
//!
//! The directory is watched; whenever something happens in it, it is read as a whole. A socket that was made anew is
//! asked anew. Only sockets right in the directory count, and links are not followed: what is mounted into a pod could
//! point anywhere.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::{
        fd::AsFd as _,
        unix::fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use skiff_api::csi::is_driver_name;
use skiff_csi::{RegistrationClient, registration};
use tokio::{net::unix::pipe::Receiver, time::Instant};

use super::{driver::Driver, node_info};
use crate::kubelet::Kubelet;

/// Before a plugin that could not be registered is asked again: doubled from the first to the last.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often the directory is read though it cannot be watched.
const UNWATCHED: Duration = Duration::from_secs(2);
/// How long a plugin may take to say who it is.
const ANSWER: Duration = Duration::from_secs(10);

/// What tells a socket from another one of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(u64, i64, i64);

/// A socket that was seen.
#[derive(Clone, Debug)]
struct Plugin {
    identity: Identity,
    /// The driver behind it, once it is registered.
    driver: Option<String>,
    /// It is not to be asked again: it is no CSI driver, or was refused.
    settled: bool,
    retry: Duration,
    next: Instant,
}

fn sockets(dir: &Path) -> BTreeMap<PathBuf, Identity> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        // Of the entry itself, not of what a link leads to.
        let meta = entry.metadata().ok()?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        let is_socket = meta.file_type().is_socket() && !hidden;
        is_socket.then(|| (entry.path(), Identity(meta.ino(), meta.ctime(), meta.ctime_nsec())))
    });
    found.collect()
}

fn watch(dir: &Path) -> io::Result<Receiver> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let what = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE | AddWatchFlags::IN_ATTRIB;
    inotify.add_watch(dir, what)?;
    // The watch belongs to what is open, which this shares.
    // Which is read and waited for as pipes are.
    Receiver::from_owned_fd_unchecked(inotify.as_fd().try_clone_to_owned()?)
}

/// Completes once something happened in the directory.
async fn changed(watched: Option<&Receiver>) {
    let Some(inotify) = watched else { return tokio::time::sleep(UNWATCHED).await };
    match inotify.readable().await {
        Ok(()) => {
            // What it was does not matter.
            let mut events = [0_u8; 4096];
            while inotify.try_read(&mut events).is_ok_and(|n| n > 0) {}
        }
        Err(_) => tokio::time::sleep(UNWATCHED).await,
    }
}

/// Registers drivers as they come and go. Never ends.
pub(crate) async fn run(kubelet: Arc<Kubelet>) {
    node_info::make(&kubelet).await;
    let dir = kubelet.csi.paths.registry();
    let watched = watch(&dir);
    if let Err(error) = &watched {
        tracing::warn!(path = %dir.display(), %error, "cannot watch the directory of plugins, and will read it often");
    }
    let watched = watched.ok();
    let mut plugins: HashMap<PathBuf, Plugin> = HashMap::new();
    loop {
        look(&kubelet, &dir, &mut plugins).await;
        let retry = plugins.values().filter(|p| !p.settled).map(|p| p.next).min();
        let again = async {
            match retry {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed(watched.as_ref()) => {}
            () = again => {}
        }
    }
}

async fn look(kubelet: &Arc<Kubelet>, dir: &Path, plugins: &mut HashMap<PathBuf, Plugin>) {
    let found = sockets(dir);
    let gone: Vec<PathBuf> = plugins.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
    for path in gone {
        let driver = plugins.remove(&path).and_then(|p| p.driver);
        // Another socket may speak for the same driver by now.
        if let Some(driver) = driver.filter(|d| plugins.values().all(|p| p.driver.as_ref() != Some(d))) {
            tracing::info!(driver, "a CSI driver is gone");
            kubelet.csi.drivers.write().remove(&driver);
            node_info::remove(kubelet, &driver).await;
        }
    }
    for (path, identity) in found {
        let plugin = plugins.entry(path.clone()).or_insert(Plugin {
            identity,
            driver: None,
            settled: false,
            retry: RETRY,
            next: Instant::now(),
        });
        if plugin.identity != identity {
            *plugin =
                Plugin { identity, driver: plugin.driver.clone(), settled: false, retry: RETRY, next: Instant::now() };
        }
        if plugin.settled || plugin.next > Instant::now() {
            continue;
        }
        match register(kubelet, &path).await {
            Ok(driver) => {
                plugin.driver = driver;
                plugin.settled = true;
            }
            Err(error) => {
                tracing::warn!(socket = %path.display(), error, "cannot register a plugin");
                plugin.next = Instant::now() + plugin.retry;
                plugin.retry = (plugin.retry * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Asks who is behind a socket. `None` if it is nobody for whom there is anything to do.
async fn register(kubelet: &Arc<Kubelet>, socket: &Path) -> Result<Option<String>, String> {
    let mut plugin = RegistrationClient::new(skiff_csi::connect(socket));
    let asked = tokio::time::timeout(ANSWER, plugin.get_info(registration::InfoRequest {})).await;
    let info =
        asked.map_err(|_| "it does not answer".to_owned())?.map_err(|e| skiff_csi::status_text(&e))?.into_inner();
    if info.r#type != registration::CSI_PLUGIN {
        tracing::info!(socket = %socket.display(), kind = info.r#type, "a plugin of a kind that this node does not take");
        return Ok(None);
    }
    let endpoint = if info.endpoint.is_empty() { socket.to_owned() } else { PathBuf::from(&info.endpoint) };
    let known = match check(&info, &endpoint) {
        Ok(()) => install(kubelet, &info.name, Driver { endpoint }).await,
        Err(why) => Err((why, true)),
    };
    let error = known.as_ref().err().map(|(why, _)| why.clone()).unwrap_or_default();
    let status = registration::RegistrationStatus { plugin_registered: known.is_ok(), error };
    let told = tokio::time::timeout(ANSWER, plugin.notify_registration_status(status)).await;
    match known {
        Ok(()) => {
            tracing::info!(driver = info.name, "registered a CSI driver");
            // Volumes may have waited for it.
            kubelet.csi.registered.notify_one();
            kubelet.csi.unused.notify_one();
            match told {
                Ok(Ok(_)) => Ok(Some(info.name)),
                _ => Err("it cannot be told that it is registered".to_owned()),
            }
        }
        // It would say the same again.
        Err((why, true)) => {
            tracing::warn!(socket = %socket.display(), error = why, "a plugin is refused");
            Ok(None)
        }
        Err((why, false)) => Err(why),
    }
}

/// Whether this is a driver that can be used; the error has upstream's words.
fn check(info: &registration::PluginInfo, endpoint: &Path) -> Result<(), String> {
    if !is_driver_name(&info.name) {
        return Err(format!("invalid CSI driver name {:?}", info.name));
    }
    let is_v1 = |version: &String| version.trim_start_matches('v').split('.').next() == Some("1");
    if !info.supported_versions.iter().any(is_v1) {
        return Err(format!(
            "kubernetes.io/csi: validation failed for CSI Driver {} at endpoint {}: \
             all supported versions are invalid: {:?}",
            info.name,
            endpoint.display(),
            info.supported_versions
        ));
    }
    match fs::metadata(endpoint) {
        Ok(meta) if meta.file_type().is_socket() => Ok(()),
        _ => Err(format!("the endpoint {} is not a socket", endpoint.display())),
    }
}

/// Uses a driver from now on. The flag of the error says that it is final.
async fn install(kubelet: &Arc<Kubelet>, name: &str, driver: Driver) -> Result<(), (String, bool)> {
    let why = |e: String| (format!("kubernetes.io/csi: RegisterPlugin failed: {e}"), false);
    let info = driver.info().await.map_err(|e| why(e.to_string()))?;
    node_info::add(kubelet, name, &info).await.map_err(why)?;
    kubelet.csi.drivers.write().insert(name.to_owned(), driver);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_right_there() {
        let dir = std::env::temp_dir().join(format!("skiff-plugins-{:x}", rand::random::<u64>()));
        fs::create_dir_all(dir.join("deep")).unwrap();
        let bind = |name: &str| std::os::unix::net::UnixListener::bind(dir.join(name)).unwrap();
        let _open = [bind("a.sock"), bind(".hidden.sock"), bind("deep/b.sock")];
        fs::write(dir.join("file"), "").unwrap();
        std::os::unix::fs::symlink(dir.join("a.sock"), dir.join("link.sock")).unwrap();
        let found = sockets(&dir);
        assert_eq!(found.keys().cloned().collect::<Vec<_>>(), [dir.join("a.sock")]);
        fs::remove_file(dir.join("a.sock")).unwrap();
        let _again = bind("a.sock");
        assert_ne!(sockets(&dir), found);
        let info = |name: &str, version: &str| registration::PluginInfo {
            name: name.into(),
            supported_versions: vec![version.into()],
            ..Default::default()
        };
        let endpoint = dir.join("a.sock");
        assert_eq!(check(&info("a.b", "1.0.0"), &endpoint), Ok(()));
        assert!(check(&info("../a", "1.0.0"), &endpoint).is_err());
        assert!(check(&info("a.b", "0.3.0"), &endpoint).is_err());
        assert!(check(&info("a.b", "1.0.0"), &dir.join("file")).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
