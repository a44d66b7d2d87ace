//! Values encrypted at rest: a store around another one that holds what it cannot read.
//!
//! Values below chosen prefixes are encrypted before they are handed on and decrypted when they come back, so that
//! files, snapshots and the etcd API show ciphertext, and the API server plain objects. Names and forms are
//! upstream's (`EncryptionConfiguration`; `k8s:enc:aesgcm:v1:KEY:…` in the store), so a store that another API server
//! wrote can be read with its keys, and the other way round.
//!
//! **Invariant:** keys, revisions, leases and the order of events are the inner store's; only values differ.

mod cipher;

use std::{ops::Range, sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};

pub use self::cipher::{KeyError, Provider};
use crate::{
    Batch, Error, Event, GetResponse, KeyValue, Lease, LeaseId, Op, RangeResponse, Result, Revision, Store, Txn,
    TxnOutcome, TxnResponse, Watch, prefix_end,
};

/// What is done with the values of the keys below some prefixes.
#[derive(Debug)]
pub struct Rule {
    /// For example `/registry/secrets/`.
    pub prefixes: Vec<String>,
    /// The first one writes; a value is read by the one that knows its form and key.
    pub providers: Vec<Provider>,
}

/// See the [module](self).
#[derive(Clone)]
pub struct Encrypted {
    inner: Arc<dyn Store>,
    rules: Arc<[Rule]>,
}

/// How many keys are read at once to be encrypted anew.
const PAGE: usize = 200;

impl Encrypted {
    /// A store around another one. Of several rules for a key the first counts.
    pub fn new(inner: Arc<dyn Store>, rules: Vec<Rule>) -> Encrypted {
        Encrypted { inner, rules: rules.into() }
    }

    /// Writes every value again that the first provider of its rule has not written: after a key was added in front, or
    /// encryption was switched on or off. Returns how many there were. Values that others change meanwhile are
    /// written by them.
    ///
    /// Errors: those of reading and writing, also of a value that no provider reads.
    pub async fn encrypt_anew(&self) -> Result<usize> {
        let mut written = 0;
        for prefix in self.rules.iter().flat_map(|rule| &rule.prefixes) {
            let (mut start, end) = (prefix.clone(), prefix_end(prefix));
            loop {
                let page = self.inner.range(&start..&end, None, PAGE).await?;
                for kv in &page.kvs {
                    let Some(rule) = self.rule(&kv.key).filter(|rule| !rule.is_current(kv)) else { continue };
                    let value = rule.seal(&kv.key, &rule.open(kv)?.value);
                    let txn = Txn::put_if(kv.key.clone(), kv.mod_revision, value, kv.lease);
                    written += usize::from(self.inner.txn(txn).await?.succeeded());
                }
                match page.kvs.last().filter(|_| page.more) {
                    // The next key in lexical order.
                    Some(last) => start = format!("{}\0", last.key),
                    None => break,
                }
            }
        }
        Ok(written)
    }

    fn rule(&self, key: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.prefixes.iter().any(|prefix| key.starts_with(prefix)))
    }

    fn open(&self, kv: KeyValue) -> Result<KeyValue> {
        match self.rule(&kv.key) {
            // A deletion's key has no value, and no object is empty.
            Some(rule) if !kv.value.is_empty() => rule.open(&kv),
            _ => Ok(kv),
        }
    }

    fn open_some(&self, kv: Option<KeyValue>) -> Result<Option<KeyValue>> {
        kv.map(|kv| self.open(kv)).transpose()
    }

    fn seal(&self, mut txn: Txn) -> Txn {
        for op in &mut txn.ops {
            if let Op::Put { key, value, .. } = op
                && let Some(rule) = self.rule(key)
            {
                *value = rule.seal(key, value).into();
            }
        }
        txn
    }

    fn open_batch(&self, batch: Batch) -> Result<Batch> {
        let open = |event: &Arc<Event>| {
            let kv = self.open(event.kv.clone())?;
            Ok(Arc::new(Event { kind: event.kind, kv, prev: self.open_some(event.prev.clone())? }))
        };
        Ok(Batch { events: batch.events.iter().map(open).collect::<Result<_>>()?, revision: batch.revision })
    }

    fn open_outcome(&self, outcome: TxnOutcome) -> Result<TxnOutcome> {
        Ok(match outcome {
            TxnOutcome::Succeeded(mut results) => {
                for result in &mut results {
                    result.kv = self.open_some(result.kv.take())?;
                    result.prev = self.open_some(result.prev.take())?;
                }
                TxnOutcome::Succeeded(results)
            }
            TxnOutcome::Failed(current) => {
                TxnOutcome::Failed(current.into_iter().map(|kv| self.open_some(kv)).collect::<Result<_>>()?)
            }
        })
    }
}

impl Rule {
    fn seal(&self, key: &str, value: &[u8]) -> Vec<u8> {
        self.providers.first().map_or_else(|| value.to_vec(), |provider| provider.seal(key, value))
    }

    fn is_current(&self, kv: &KeyValue) -> bool {
        self.providers.first().is_none_or(|provider| provider.wrote(&kv.value))
    }

    fn open(&self, kv: &KeyValue) -> Result<KeyValue> {
        let unreadable =
            |what: String| Error::Undecryptable { what, key: kv.key.to_string(), revision: kv.mod_revision };
        let Some(provider) = self.providers.iter().find(|provider| provider.wrote(&kv.value)) else {
            return Err(unreadable("it is encrypted with a key that the configuration does not have".to_owned()));
        };
        let value = provider
            .open(&kv.key, &kv.value)
            .ok_or_else(|| unreadable(format!("the key of {provider} does not fit, or the value was changed")))?;
        Ok(KeyValue { value: value.into(), ..kv.clone() })
    }
}

impl Store for Encrypted {
    fn get<'a>(&'a self, key: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<GetResponse>> {
        async move {
            let GetResponse { kv, revision } = self.inner.get(key, at).await?;
            Ok(GetResponse { kv: self.open_some(kv)?, revision })
        }
        .boxed()
    }

    fn range<'a>(
        &'a self,
        keys: Range<&'a str>,
        at: Option<Revision>,
        limit: usize,
    ) -> BoxFuture<'a, Result<RangeResponse>> {
        async move {
            let mut response = self.inner.range(keys, at, limit).await?;
            response.kvs = response.kvs.into_iter().map(|kv| self.open(kv)).collect::<Result<_>>()?;
            Ok(response)
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse>> {
        let keys = txn.compares.iter().map(|c| &c.key).chain(txn.ops.iter().map(Op::key));
        if !keys.into_iter().any(|key| self.rule(key).is_some()) {
            return self.inner.txn(txn);
        }
        async move {
            let TxnResponse { revision, outcome } = self.inner.txn(self.seal(txn)).await?;
            Ok(TxnResponse { revision, outcome: self.open_outcome(outcome)? })
        }
        .boxed()
    }

    fn watch(&self, prefix: &str, from: Option<Revision>) -> Watch {
        let watch = self.inner.watch(prefix, from);
        let concerned = |of_rule: &String| of_rule.starts_with(prefix) || prefix.starts_with(of_rule);
        if !self.rules.iter().flat_map(|rule| &rule.prefixes).any(concerned) {
            return watch;
        }
        let this = self.clone();
        watch.map(move |batch| this.open_batch(batch))
    }

    fn compact(&self, at: Revision) -> BoxFuture<'_, Result<()>> {
        self.inner.compact(at)
    }

    fn lease_grant(&self, ttl: Duration, id: Option<LeaseId>) -> BoxFuture<'_, Result<Lease>> {
        self.inner.lease_grant(ttl, id)
    }

    fn lease_keepalive(&self, id: LeaseId) -> BoxFuture<'_, Result<Lease>> {
        self.inner.lease_keepalive(id)
    }

    fn lease_revoke(&self, id: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.inner.lease_revoke(id)
    }

    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    fn latest(&self) -> BoxFuture<'_, Result<Revision>> {
        self.inner.latest()
    }

    fn compacted(&self) -> Revision {
        self.inner.compacted()
    }
}

#[cfg(test)]
mod tests;
