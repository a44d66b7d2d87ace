//! A real etcd as the store: the contract suite, several stores on one etcd, and what becomes of them when it dies.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use skiff_pki::{Authority, Request, Usage};
use skiff_store::{
    Code, EtcdStore, Revision, Store, Txn, contract,
    etcd::{Endpoints, Options},
};
use tempfile::TempDir;

use crate::seen::{Seen, watch_until_failure, write};

const PATIENCE: Duration = Duration::from_secs(60);

/// Debian's etcd with its members on the loopback, gone when it is dropped.
struct Etcd {
    dir: TempDir,
    members: Vec<Member>,
    /// `name=peer URL` of all.
    peers: String,
    tls: Option<Arc<rustls::ClientConfig>>,
}

struct Member {
    name: String,
    client: String,
    peer: String,
    child: Option<Child>,
}

impl Etcd {
    /// `secure`: clients need a certificate.
    fn start(members: usize, secure: bool) -> Etcd {
        let dir = tempfile::tempdir().unwrap();
        let tls = secure.then(|| certificates(dir.path()));
        // All are held until each has its own.
        let held: Vec<_> = (0..members * 2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = held.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(held);
        let scheme = if secure { "https" } else { "http" };
        let members: Vec<_> = (0..members)
            .map(|number| Member {
                name: format!("member{number}"),
                client: format!("{scheme}://127.0.0.1:{}", ports[number * 2]),
                peer: format!("http://127.0.0.1:{}", ports[number * 2 + 1]),
                child: None,
            })
            .collect();
        let peers = members.iter().map(|m| format!("{}={}", m.name, m.peer)).collect::<Vec<_>>().join(",");
        let mut etcd = Etcd { dir, members, peers, tls };
        for number in 0..etcd.members.len() {
            etcd.revive(number);
        }
        etcd
    }

    fn revive(&mut self, number: usize) {
        let member = &mut self.members[number];
        let mut command = Command::new(program());
        command
            .arg("--data-dir")
            .arg(self.dir.path().join(&member.name))
            .args(["--name", &member.name, "--log-level", "error", "--initial-cluster", &self.peers])
            .args(["--listen-client-urls", &member.client, "--advertise-client-urls", &member.client])
            .args(["--listen-peer-urls", &member.peer, "--initial-advertise-peer-urls", &member.peer]);
        if self.tls.is_some() {
            let file = |name: &str| self.dir.path().join(name).into_os_string();
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(file("ca.crt"));
            command.arg("--cert-file").arg(file("server.crt")).arg("--key-file").arg(file("server.key"));
        }
        member.child = Some(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.members[number].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn endpoints(&self) -> Endpoints {
        let urls = self.members.iter().map(|member| member.client.clone()).collect();
        Endpoints { urls, tls: self.tls.clone() }
    }

    /// A store on it, once it answers.
    async fn store(&self, prefix: &str) -> Arc<dyn Store> {
        let connected = async {
            loop {
                match EtcdStore::connect(Options::new(self.endpoints(), prefix)).await {
                    Ok(store) => return store,
                    Err(error) => assert_eq!(error.code(), Code::Unavailable, "{error}"),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        Arc::new(tokio::time::timeout(PATIENCE, connected).await.expect("etcd answers"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for number in 0..self.members.len() {
            self.kill(number);
        }
    }
}

fn program() -> PathBuf {
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
    };
    let program = target.join("tools/etcd");
    assert!(program.exists(), "{} is missing: run `cargo xtask test --only unit` first", program.display());
    program
}

/// Makes the files for etcd, and what a client needs.
fn certificates(dir: &Path) -> Arc<rustls::ClientConfig> {
    // The first of two equal choices wins.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (authority, pair) = Authority::generate("etcd-ca").unwrap();
    let request = |usage| Request {
        common_name: "etcd",
        organization: None,
        usage,
        dns_names: &[],
        addresses: &[std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)],
    };
    let server = authority.issue(&request(Usage::Both)).unwrap();
    std::fs::write(dir.join("ca.crt"), &pair.certificate_pem).unwrap();
    std::fs::write(dir.join("server.crt"), &server.certificate_pem).unwrap();
    std::fs::write(dir.join("server.key"), &server.key_pem).unwrap();
    let client = authority.issue(&request(Usage::Client)).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pair.certificate_pem.as_bytes()).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(client.certificate_pem.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(client.key_pem.as_bytes()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key);
    Arc::new(config.unwrap())
}

async fn put(store: &Arc<dyn Store>, key: &str, value: impl Into<bytes::Bytes>) -> Revision {
    store.txn(Txn::put(key, value)).await.unwrap().revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_over_tls() {
    let etcd = Etcd::start(1, true);
    etcd.store("/").await;
    let cases = AtomicUsize::new(0);
    contract::run(|| async {
        // A part of etcd for each, in which keys begin with nothing.
        let prefix = format!("/{}", cases.fetch_add(1, Ordering::Relaxed));
        let options = Options { root: String::new(), ..Options::new(etcd.endpoints(), &prefix) };
        Arc::new(EtcdStore::connect(options).await.unwrap()) as Arc<dyn Store>
    })
    .await;
}

/// What the caches of several API servers rest on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_store_has_written_is_known() {
    let etcd = Etcd::start(1, false);
    let (one, two, stranger) =
        (etcd.store("/registry").await, etcd.store("/registry").await, etcd.store("/elsewhere").await);
    let mut watch = two.watch("/registry/a/", None);
    for number in 0..100 {
        let written = put(&one, &format!("/registry/a/{number}"), "x").await;
        assert!(two.latest().await.unwrap() >= written);
        assert!(watch.enqueued() >= written, "queued to the other store's watch");
    }
    let mut events = Vec::new();
    while events.len() < 100 {
        events.extend(watch.recv().await.unwrap().unwrap().events);
    }
    assert_eq!(&*events[99].kv.key, "/registry/a/99");
    // The last revision is of a key that this store has no event for.
    for _ in 0..5 {
        let written = put(&stranger, "/elsewhere/a", "x").await;
        let latest = tokio::time::timeout(Duration::from_secs(5), two.latest()).await.expect("etcd tells the progress");
        assert!(latest.unwrap() >= written && two.revision() >= written);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_stores_compaction_is_told() {
    let etcd = Etcd::start(1, false);
    let (one, two) = (etcd.store("/registry").await, etcd.store("/registry").await);
    let first = put(&one, "/registry/a", "1").await;
    put(&one, "/registry/a", "2").await;
    let third = put(&one, "/registry/a", "3").await;
    two.latest().await.unwrap();
    one.compact(third).await.unwrap();
    let error = two.watch("/registry/", Some(first)).recv().await.unwrap_err();
    assert_eq!((error.code(), error.revision()), (Code::Compacted, Some(third)));
    let error = two.get("/registry/a", Some(first)).await.unwrap_err();
    assert_eq!((error.code(), error.revision()), (Code::Compacted, Some(third)));
    assert_eq!(two.compacted(), third);
}

/// Answers that are larger than one message of etcd's, both of watches and of ranges.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_come_whole() {
    const COUNT: usize = 60;
    let etcd = Etcd::start(1, false);
    let store = etcd.store("/registry").await;
    let start = store.revision();
    for number in 0..COUNT {
        put(&store, &format!("/registry/big/{number:03}"), vec![b'x'; 200_000]).await;
    }
    let range = store.range("/registry/big/".."/registry/big0", None, 0).await.unwrap();
    assert_eq!((range.kvs.len(), range.count, range.more), (COUNT, COUNT, false));
    let mut watch = store.watch("/registry/big/", Some(start.next()));
    let mut seen = 0;
    while seen < COUNT {
        let batch = tokio::time::timeout(PATIENCE, watch.recv()).await.expect("events").unwrap().unwrap();
        for event in batch.events {
            assert_eq!(&*event.kv.key, &format!("/registry/big/{seen:03}"));
            assert_eq!(event.kv.value.len(), 200_000);
            seen += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_keys_than_a_page_are_one_list() {
    const KEYS: usize = 5_100;
    let etcd = Etcd::start(1, false);
    let store = etcd.store("/registry").await;
    for chunk in 0..KEYS.div_ceil(100) {
        let ops = (0..100).map(|number| skiff_store::Op::Put {
            key: format!("/registry/k/{:05}", chunk * 100 + number).into(),
            value: "x".into(),
            lease: None,
        });
        store.txn(Txn { compares: Vec::new(), ops: ops.collect() }).await.unwrap();
    }
    let all = store.range("/registry/k/".."/registry/k0", None, 0).await.unwrap();
    assert_eq!((all.kvs.len(), all.count, all.more), (KEYS, KEYS, false));
    assert!(all.kvs.windows(2).all(|pair| pair[0].key < pair[1].key));
    let some = store.range("/registry/k/".."/registry/k0", None, 5_050).await.unwrap();
    assert_eq!((some.kvs.len(), some.count, some.more), (5_050, KEYS, true));
}

/// A server that is asked while nobody is there says so, and is as before when etcd is there again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_etcd_nothing_is_promised() {
    let mut etcd = Etcd::start(1, false);
    let store = etcd.store("/registry").await;
    let before = put(&store, "/registry/a", "1").await;
    etcd.kill(0);
    assert_eq!(store.txn(Txn::put("/registry/a", "2")).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(store.latest().await.unwrap_err().code(), Code::Unavailable);
    etcd.revive(0);
    let again = async { while store.latest().await.is_err() {} };
    tokio::time::timeout(PATIENCE, again).await.expect("etcd is back");
    assert_eq!(store.get("/registry/a", None).await.unwrap().kv.unwrap().mod_revision, before);
    assert!(put(&store, "/registry/a", "2").await > before);
}

/// Members are killed one after the other, always one at a time, under load; and, when there is one only, all of it.
async fn killed_under_load(members: usize, kills: usize) {
    const WRITERS: usize = 4;
    let mut etcd = Etcd::start(members, true);
    let store = etcd.store("/").await;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let watcher = tokio::spawn(watch_until_failure(store.clone(), seen.clone()));
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, seen, over) = (store.clone(), seen.clone(), over.clone());
            tokio::spawn(async move {
                let mut number = 0;
                // None is given up halfway: it could be done after the check.
                while !over.load(Ordering::Acquire) {
                    let (txn, writes) = write(writer, number);
                    if let Ok(answer) = store.txn(txn).await {
                        seen.lock().acknowledge(&answer, writes);
                    }
                    number += 1;
                }
            })
        })
        .collect();
    let acknowledged = |more: usize| {
        let seen = seen.clone();
        let wanted = seen.lock().acknowledged.len() + more;
        async move {
            let enough = async {
                while seen.lock().acknowledged.len() < wanted {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, enough).await.expect("writes go on");
        }
    };
    for kill in 0..kills {
        acknowledged(20).await;
        etcd.kill(kill % members);
        if members > 1 {
            acknowledged(20).await;
        }
        etcd.revive(kill % members);
    }
    acknowledged(20).await;
    over.store(true, Ordering::Release);
    for writer in writers {
        writer.await.unwrap();
    }
    let latest = async { while store.latest().await.is_err() {} };
    tokio::time::timeout(PATIENCE, latest).await.expect("etcd answers");
    assert!(!watcher.is_finished(), "the watch outlives etcd's deaths");
    watcher.abort();
    let _ = watcher.await;
    let mut seen = std::mem::take(&mut *seen.lock());
    seen.check(&*store).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_etcd_is_killed() {
    killed_under_load(1, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_writes_go_on_when_members_are_killed() {
    killed_under_load(3, 6).await;
}
