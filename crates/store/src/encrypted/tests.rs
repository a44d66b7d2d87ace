use proptest::prelude::*;

use super::*;
use crate::{Code, contract, memory::MemoryStore};

fn gcm(name: &str, byte: u8) -> Provider {
    Provider::aesgcm(name, &[byte; 32]).unwrap()
}

fn rule(providers: Vec<Provider>) -> Vec<Rule> {
    vec![Rule { prefixes: vec!["/registry/secrets/".into()], providers }]
}

const KEY: &str = "/registry/secrets/default/a";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds() {
    for make in [Provider::aesgcm, Provider::aescbc] {
        contract::run(|| async {
            let providers = vec![make("key1", &[7; 32]).unwrap(), Provider::identity()];
            let rules = vec![Rule { prefixes: vec!["/contract/".into()], providers }];
            Arc::new(Encrypted::new(Arc::new(MemoryStore::new()), rules)) as Arc<dyn Store>
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_stored_is_not_what_was_written() {
    let inner = Arc::new(MemoryStore::new());
    let store = Encrypted::new(inner.clone(), rule(vec![gcm("key1", 1), Provider::identity()]));
    let mut watch = store.watch("/registry/", None);
    store.txn(Txn::put(KEY, "topsecret")).await.unwrap();
    store.txn(Txn::put("/registry/pods/default/a", "plain")).await.unwrap();
    let stored = inner.get(KEY, None).await.unwrap().kv.unwrap().value;
    assert!(stored.starts_with(b"k8s:enc:aesgcm:v1:key1:"), "{stored:?}");
    assert!(!stored.windows(9).any(|part| part == b"topsecret"));
    assert_eq!(&*inner.get("/registry/pods/default/a", None).await.unwrap().kv.unwrap().value, b"plain");
    assert_eq!(&*store.get(KEY, None).await.unwrap().kv.unwrap().value, b"topsecret");
    let seen = watch.recv().await.unwrap().unwrap();
    assert_eq!(&*seen.events[0].kv.value, b"topsecret");
    // Twice the same is not the same twice.
    store.txn(Txn::put(KEY, "topsecret")).await.unwrap();
    assert_ne!(inner.get(KEY, None).await.unwrap().kv.unwrap().value, stored);
}

#[tokio::test]
async fn a_value_under_another_key_is_refused() {
    let inner = Arc::new(MemoryStore::new());
    let store = Encrypted::new(inner.clone(), rule(vec![gcm("key1", 1)]));
    store.txn(Txn::put(KEY, "mine")).await.unwrap();
    let stored = inner.get(KEY, None).await.unwrap().kv.unwrap().value;
    inner.txn(Txn::put("/registry/secrets/default/b", stored)).await.unwrap();
    let error = store.get("/registry/secrets/default/b", None).await.unwrap_err();
    assert_eq!(error.code(), Code::Undecryptable);
    assert_eq!(
        error.to_string(),
        "the value of \"/registry/secrets/default/b\" cannot be decrypted: the key of k8s:enc:aesgcm:v1:key1 does not \
         fit, or the value was changed"
    );
}

#[tokio::test]
async fn a_watch_ends_at_what_it_cannot_read() {
    let inner = Arc::new(MemoryStore::new());
    let store = Encrypted::new(inner.clone(), rule(vec![gcm("key1", 1)]));
    let mut watch = store.watch("/registry/secrets/", None);
    inner.txn(Txn::put(KEY, "k8s:enc:aesgcm:v1:other:x")).await.unwrap();
    assert_eq!(watch.recv().await.unwrap_err().code(), Code::Undecryptable);
    assert_eq!(watch.recv().await.unwrap_err().code(), Code::Undecryptable);
}

#[tokio::test]
async fn keys_are_rotated() {
    let inner: Arc<MemoryStore> = Arc::new(MemoryStore::new());
    let plain = Encrypted::new(inner.clone(), rule(vec![Provider::identity()]));
    for i in 0..2 * PAGE + 3 {
        plain.txn(Txn::put(format!("/registry/secrets/default/{i:04}"), format!("value {i}"))).await.unwrap();
    }
    let all = 2 * PAGE + 3;
    let first = Encrypted::new(inner.clone(), rule(vec![gcm("key1", 1), Provider::identity()]));
    assert_eq!(first.encrypt_anew().await.unwrap(), all);
    assert_eq!(first.encrypt_anew().await.unwrap(), 0);
    let second = Encrypted::new(inner.clone(), rule(vec![gcm("key2", 2), gcm("key1", 1)]));
    assert_eq!(second.encrypt_anew().await.unwrap(), all);
    let alone = Encrypted::new(inner.clone(), rule(vec![gcm("key2", 2)]));
    let end = prefix_end("/registry/secrets/");
    let read = alone.range("/registry/secrets/"..&end, None, 0).await.unwrap();
    assert!(read.kvs.iter().enumerate().all(|(i, kv)| *kv.value == *format!("value {i}").as_bytes()));
    // The old key alone reads nothing any more, and identity does not take ciphertext for an object.
    let old = Encrypted::new(inner, rule(vec![gcm("key1", 1), Provider::identity()]));
    assert_eq!(old.get("/registry/secrets/default/0000", None).await.unwrap_err().code(), Code::Undecryptable);
}

#[test]
fn secrets_have_three_lengths() {
    assert_eq!(
        Provider::aesgcm("a", &[0; 20]).unwrap_err().to_string(),
        "secret is not of the expected length, got 20, expected one of [16 24 32]"
    );
    for length in [16, 24, 32] {
        let secret = vec![1; length];
        for provider in [Provider::aesgcm("a", &secret).unwrap(), Provider::aescbc("a", &secret).unwrap()] {
            assert_eq!(provider.open("k", &provider.seal("k", b"v")).unwrap(), b"v", "{provider}");
        }
    }
}

#[test]
fn the_layout_is_upstreams() {
    // Made by other libraries: prefix, then nonce or initialisation vector, then what OpenSSL makes of "firstvalue".
    let cases = [
        (
            Provider::aesgcm("k", b"abcdefghijklmnop").unwrap(),
            "k8s:enc:aesgcm:v1:k:0123456789ab",
            "cad6e618c7a1b374b2f2f0c00b9ae20f5eedad0c041f9f4690e9",
        ),
        (
            Provider::aescbc("k", b"abcdefghijklmnop").unwrap(),
            "k8s:enc:aescbc:v1:k:0123456789abcdef",
            "fd47252b4ad613f2a7cfe42022957fa9",
        ),
    ];
    for (provider, head, body) in cases {
        let body = (0..body.len()).step_by(2).map(|i| u8::from_str_radix(&body[i..i + 2], 16).unwrap());
        let stored: Vec<u8> = head.bytes().chain(body).collect();
        assert_eq!(provider.open(KEY, &stored).as_deref(), Some(b"firstvalue".as_slice()), "{provider}");
    }
}

proptest! {
    #[test]
    fn anything_comes_back(value: Vec<u8>, key: String) {
        for provider in [gcm("a", 3), Provider::aescbc("a", &[3; 32]).unwrap()] {
            let stored = provider.seal(&key, &value);
            prop_assert!(provider.wrote(&stored));
            prop_assert_eq!(provider.open(&key, &stored), Some(value.clone()));
        }
    }

    #[test]
    fn no_bytes_panic(value: Vec<u8>) {
        for provider in [gcm("a", 3), Provider::aescbc("a", &[3; 32]).unwrap()] {
            let _ = provider.open("k", &value);
            let stored = [format!("{provider}:").as_bytes(), &value[..]].concat();
            let _ = provider.open("k", &stored);
        }
    }

    #[test]
    fn a_changed_byte_is_noticed(value: Vec<u8>, at: usize) {
        let provider = gcm("a", 3);
        let mut stored = provider.seal("k", &value);
        let at = at % stored.len();
        stored[at] ^= 1;
        prop_assert_eq!(provider.open("k", &stored), None);
    }
}
