//! The store as its users see it: archives and a registry go in, layers for overlayfs come out.

mod registry;
mod support;

use std::sync::{Arc, Mutex};

use skiff_images::{Auth, BUILTIN_REPOSITORY, Builtin, Digest, Error, ImageStore, Mirror, PullOptions, Reference};
use support::{Made, docker_archive, image, oci_archive};

fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = ImageStore::open(&dir.path().join("images")).expect("a new store");
    (dir, store)
}

fn layers_on_disk(store: &ImageStore) -> usize {
    std::fs::read_dir(store.root().join("layers")).expect("readable").count()
}

fn staging_is_empty(store: &ImageStore) -> bool {
    std::fs::read_dir(store.root().join("staging")).expect("readable").count() == 0
}

fn two_layers() -> Made {
    image(&[&[("etc/os", "base"), ("bin/sh", "shell")], &[("app/.wh.x", ""), ("app/run", "run")]])
}

#[test]
fn imports_both_formats() {
    let made = two_layers();
    for archive in [
        oci_archive(&made, "docker.io/library/thing:1"),
        docker_archive(&made, "thing:1"),
        zstd::encode_all(&docker_archive(&made, "thing:1")[..], 1).expect("in memory"),
    ] {
        let (_dir, store) = store();
        let images = store.import(&archive[..]).expect("imports");
        assert_eq!(images.len(), 1);
        let image = store.find("thing:1").expect("by its short name");
        assert_eq!(image, images[0]);
        assert_eq!(image.repo_tags, ["docker.io/library/thing:1"]);
        assert_eq!(image.id, Digest::of(&made.config));
        assert_eq!(image.config.entrypoint, ["/app/run"]);
        assert_eq!(image.config.stop_signal, "SIGQUIT");
        let lower = store.lower_dirs(&image);
        assert_eq!(lower.len(), 2);
        assert_eq!(std::fs::read(lower[0].join("app/run")).expect("top first"), b"run");
        assert_eq!(std::fs::read(lower[1].join("bin/sh")).expect("base last"), b"shell");
        assert!(staging_is_empty(&store));
        let short = &image.id.hex()[..12];
        assert_eq!(store.find(short).expect("by id"), image);
        assert_eq!(store.find(&image.id.to_string()).expect("by id"), image);
        assert!(store.find("other").is_none());
    }
}

#[tokio::test]
async fn a_loaded_image_needs_no_registry() {
    let (_dir, store) = store();
    // Nobody listens on port 1.
    let loaded = "127.0.0.1:1/thing:latest";
    let images = store.import(&docker_archive(&two_layers(), loaded)[..]).expect("imports");
    let pull = async |name: &str| {
        let reference: Reference = name.parse().expect("a reference");
        store.pull(&reference, Auth::Anonymous, &PullOptions::default(), |_| {}).await
    };
    assert_eq!(pull(loaded).await.expect("as it was loaded"), images[0]);
    let missing = pull("127.0.0.1:1/other:latest").await.expect_err("was never loaded");
    assert!(matches!(missing, Error::Pull { .. }), "{missing}");
}

#[test]
fn survives_reopening_and_refuses_a_second_opener() {
    let (dir, store) = store();
    store.import(&docker_archive(&two_layers(), "thing:1")[..]).expect("imports");
    let root = dir.path().join("images");
    assert!(matches!(ImageStore::open(&root), Err(Error::Io { .. })));
    let before = store.list();
    drop(store);
    std::fs::write(root.join("staging/left"), "half").expect("writable");
    let store = ImageStore::open(&root).expect("opens");
    assert_eq!(store.list(), before);
    assert!(staging_is_empty(&store));
}

#[test]
fn layers_are_shared_and_collected() {
    let (_dir, store) = store();
    let base: &[(&str, &str)] = &[("etc/os", "base")];
    store.import(&docker_archive(&image(&[base, &[("a", "a")]]), "a")[..]).expect("imports");
    store.import(&docker_archive(&image(&[base, &[("b", "b")]]), "b")[..]).expect("imports");
    assert_eq!(layers_on_disk(&store), 3);
    let lease = store.lease(&store.find("a").expect("there"));
    store.tag("a", "also-a:2").expect("tags");
    store.remove("a").expect("removes a name");
    assert!(store.find("a").is_none() && store.find("also-a:2").is_some());
    store.remove("also-a:2").expect("removes the image");
    assert_eq!(store.list().len(), 1);
    assert_eq!(layers_on_disk(&store), 3, "a lease keeps them");
    drop(lease);
    assert_eq!(layers_on_disk(&store), 2, "the base is still that of the other");
    store.remove("nope").expect("not there is no error");
    let id = store.find("b").expect("there").id.to_string();
    store.remove(&id).expect("by id");
    assert_eq!((layers_on_disk(&store), store.list().len()), (0, 0));
    assert!(staging_is_empty(&store));
}

#[test]
fn a_name_moves_to_the_newer_image() {
    let (_dir, store) = store();
    store.import(&docker_archive(&image(&[&[("a", "1")]]), "app")[..]).expect("imports");
    let first = store.find("app").expect("there");
    store.import(&docker_archive(&image(&[&[("a", "2")]]), "app")[..]).expect("imports");
    let second = store.find("app").expect("there");
    assert_ne!(first.id, second.id);
    assert_eq!((store.list().len(), layers_on_disk(&store)), (1, 1));
}

#[test]
fn wrong_content_is_refused_and_leaves_nothing() {
    let mut made = two_layers();
    made.layers[1] = image(&[&[("evil", "content")]]).layers.remove(0);
    let (_dir, store) = store();
    let result = store.import(&docker_archive(&made, "thing")[..]);
    assert!(matches!(result, Err(Error::DigestMismatch { .. })), "{result:?}");
    assert!(store.list().is_empty() && staging_is_empty(&store));
    assert_eq!(layers_on_disk(&store), 0);
    for garbage in [&b""[..], b"not a tar", &[0; 4096]] {
        assert!(matches!(store.import(garbage), Err(Error::Archive(_))));
    }
}

#[test]
fn builtin_image_costs_nothing_the_second_time() {
    let (_dir, store) = store();
    let builtin = Builtin { program: "/proc/self/exe".into(), version: "1.2.3".into() };
    let image = store.ensure_builtin(&builtin).expect("made");
    assert!(image.pinned);
    assert_eq!(store.find(&format!("{BUILTIN_REPOSITORY}:1.2.3")).expect("named"), image);
    let root = &store.lower_dirs(&image)[0];
    let program = std::fs::metadata(root.join("skiff")).expect("there");
    let own = std::fs::metadata("/proc/self/exe").expect("there");
    assert_eq!(program.len(), own.len());
    assert!(root.join("etc/passwd").exists());
    let start = std::time::Instant::now();
    assert_eq!(store.ensure_builtin(&builtin).expect("known"), image);
    assert!(start.elapsed().as_millis() < 50, "took {:?}", start.elapsed());
    // Another program under the same version takes its place.
    let other = Builtin { program: "/bin/true".into(), ..builtin };
    let newer = store.ensure_builtin(&other).expect("made");
    assert_ne!(newer.id, image.id);
    assert_eq!((store.list().len(), layers_on_disk(&store)), (1, 1));
}

fn reference(text: &str) -> Reference {
    text.parse().expect("a reference")
}

#[tokio::test]
async fn pulls_from_a_registry() {
    let made = two_layers();
    let registry = registry::serve(&[("team/app", "1", &made)], None).await;
    let (_dir, store) = store();
    let name = reference(&format!("{}/team/app:1", registry.address));
    let seen = Mutex::new(Vec::new());
    let image = store
        .pull(&name, Auth::Anonymous, &PullOptions::default(), |progress| {
            seen.lock().expect("no panic").push(progress);
        })
        .await
        .expect("pulls");
    assert_eq!(image.repo_tags, [name.to_string()]);
    let digest = made.manifest_digest();
    assert_eq!(image.repo_digests, [format!("{}/team/app@{digest}", registry.address)]);
    assert_eq!(store.find(&image.repo_digests[0]).expect("by digest"), image);
    let last = seen.lock().expect("no panic").pop().expect("progress");
    assert_eq!((last.layers_done, last.layers, last.bytes_done), (2, 2, last.bytes));
    assert!(last.bytes > 0 && staging_is_empty(&store));

    // By digest, with everything there: no layer is fetched again.
    let blobs = registry.blobs_served();
    let by_digest = reference(&format!("{}/team/app@{digest}", registry.address));
    store.pull(&by_digest, Auth::Anonymous, &PullOptions::default(), |_| {}).await.expect("pulls");
    assert_eq!(registry.blobs_served() - blobs, 1, "only the configuration");

    // From a mirror under the name of the origin.
    let options = PullOptions {
        mirrors: vec![Mirror {
            registry: "registry.test".into(),
            endpoints: vec![format!("http://{}", registry.address)],
        }],
        ..Default::default()
    };
    let mirrored =
        store.pull(&reference("registry.test/team/app:1"), Auth::Anonymous, &options, |_| {}).await.expect("pulls");
    assert!(mirrored.repo_tags.contains(&"registry.test/team/app:1".to_owned()));
    assert_eq!(mirrored.id, image.id);
}

#[tokio::test]
async fn errors_have_the_known_texts() {
    let made = Arc::new(two_layers());
    let registry = registry::serve(&[("app", "1", &made)], Some(("me", "secret"))).await;
    let (_dir, store) = store();
    let options = PullOptions::default();
    let basic = |password: &str| Auth::Basic("me".into(), password.into());
    let name = format!("{}/app", registry.address);

    let missing = reference(&format!("{name}:nope"));
    let error = store.pull(&missing, basic("secret"), &options, |_| {}).await.expect_err("missing");
    assert_eq!(
        error.to_string(),
        format!(
            "failed to pull and unpack image \"{missing}\": failed to resolve reference \"{missing}\": {missing}: not found"
        )
    );
    let name = reference(&format!("{name}:1"));
    for auth in [Auth::Anonymous, basic("wrong")] {
        let error = store.pull(&name, auth, &options, |_| {}).await.expect_err("denied");
        assert!(matches!(error, Error::PullDenied { .. }), "{error:?}");
        assert!(error.to_string().contains("pull access denied"), "{error}");
    }
    store.pull(&name, basic("secret"), &options, |_| {}).await.expect("pulls");

    // Nobody listens: a bound port that was let go again.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let unreachable = reference(&format!("{}/app", gone.local_addr().expect("bound")));
    drop(gone);
    let error = store.pull(&unreachable, Auth::Anonymous, &options, |_| {}).await.expect_err("gone");
    assert!(error.to_string().contains("failed to resolve reference"), "{error}");
    assert!(error.to_string().to_lowercase().contains("connection refused"), "{error}");
}

#[tokio::test]
async fn a_lying_registry_is_caught_and_a_broken_pull_resumed() {
    let made = two_layers();
    let (_dir, store) = store();
    let registry = registry::serve(&[("app", "1", &made)], None).await;
    let name = reference(&format!("{}/app:1", registry.address));
    registry.corrupt(&made.layers[1]);
    let error = store.pull(&name, Auth::Anonymous, &PullOptions::default(), |_| {}).await.expect_err("corrupt");
    assert!(store.list().is_empty() && staging_is_empty(&store), "{error}");
    assert_eq!(layers_on_disk(&store), 1, "the good layer is kept");
    registry.heal();
    let blobs = registry.blobs_served();
    store.pull(&name, Auth::Anonymous, &PullOptions::default(), |_| {}).await.expect("pulls");
    let fetched = registry.blobs_served() - blobs;
    assert_eq!(fetched, 2, "the other layer and the configuration");
    assert_eq!(layers_on_disk(&store), 2);
    store.remove(&name.to_string()).expect("removes");
    assert_eq!(layers_on_disk(&store), 0);
}
