//! What keeps several API servers on one store from giving one address or node port twice: a key for each that is taken,
//! written and deleted in the transaction that writes the Service. What a server has in memory is then only a hint; the
//! store decides. A server that is alone needs none of this and writes no such keys.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use serde_json::Value;
use skiff_api::Kind;
use skiff_store::{Compare, KeyValue, Op, Revision, Store, Txn, TxnOutcome, prefix_end};

use super::{Reservation, ServiceAddresses, addresses_of, node_ports_of};
use crate::object::Object;

const ADDRESSES: &str = "/registry/ranges/serviceips/";
const NODE_PORTS: &str = "/registry/ranges/servicenodeports/";
const ALL: &str = "/registry/ranges/";

/// An address or a node port that one Service has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    Address(IpAddr),
    NodePort(u16, String),
}

impl Claim {
    fn key(&self) -> Arc<str> {
        match self {
            Claim::Address(address) => format!("{ADDRESSES}{address}").into(),
            Claim::NodePort(port, protocol) => format!("{NODE_PORTS}{port}/{protocol}").into(),
        }
    }

    fn parse(key: &str) -> Option<Claim> {
        if let Some(address) = key.strip_prefix(ADDRESSES) {
            return Some(Claim::Address(address.parse().ok()?));
        }
        let (port, protocol) = key.strip_prefix(NODE_PORTS)?.split_once('/')?;
        Some(Claim::NodePort(port.parse().ok()?, protocol.to_owned()))
    }

    fn all_of(service: &Value) -> Vec<Claim> {
        claims(addresses_of(service), node_ports_of(service))
    }
}

fn claims<A: Into<IpAddr>>(
    addresses: impl IntoIterator<Item = A>,
    ports: impl IntoIterator<Item = (u16, String)>,
) -> Vec<Claim> {
    let addresses = addresses.into_iter().map(|address| Claim::Address(address.into()));
    let all: BTreeSet<_> =
        addresses.chain(ports.into_iter().map(|(port, protocol)| Claim::NodePort(port, protocol))).collect();
    all.into_iter().collect()
}

/// A transaction as it is with one more claim.
fn take(txn: &mut Txn, claim: &Claim, service: &str) {
    let key = claim.key();
    txn.compares.push(Compare { key: key.clone(), mod_revision: Revision::ZERO });
    txn.ops.push(Op::Put { key, value: service.to_owned().into(), lease: None });
}

impl Reservation {
    fn taken(&self) -> Vec<Claim> {
        claims(self.addresses.iter().copied(), self.node_ports.iter().cloned())
    }

    /// Makes the write of a Service, which is all that is in `txn`, fail if another server has given away meanwhile what
    /// was reserved.
    pub fn claim(&self, txn: &mut Txn) {
        let Some(service) = txn.ops.first().map(|op| op.key().clone()) else { return };
        for claim in self.taken() {
            take(txn, &claim, &service);
        }
        for claim in claims(self.freed_addresses.iter().copied(), self.freed_ports.iter().cloned()) {
            txn.ops.push(Op::Delete { key: claim.key() });
        }
    }

    /// What of it another server had given away, if it was that and nothing else that made the transaction fail: `found`
    /// is the answer of the store, and the Service was expected at `expected`.
    pub fn lost(&self, expected: Revision, found: &[Option<KeyValue>]) -> Vec<Claim> {
        let service = found.first().and_then(Option::as_ref).map_or(Revision::ZERO, |kv| kv.mod_revision);
        if service != expected {
            return Vec::new();
        }
        let others = found.iter().skip(1).flatten();
        others.filter_map(|kv| Claim::parse(&kv.key)).collect()
    }
}

impl ServiceAddresses {
    /// Adds to the deletion of a Service that of its claims.
    pub fn unclaim(&self, kind: &Kind, service: &Value, txn: &mut Txn) {
        if kind.kind == "Service" && kind.group.is_empty() {
            txn.ops.extend(Claim::all_of(service).iter().map(|claim| Op::Delete { key: claim.key() }));
        }
    }

    /// Takes note of what other servers have given away.
    pub fn learn<'a>(&self, claims: impl IntoIterator<Item = &'a Claim>) {
        let mut in_use = self.in_use.lock();
        for claim in claims {
            match claim {
                Claim::Address(address) => {
                    in_use.addresses.insert(*address);
                }
                Claim::NodePort(port, protocol) => {
                    in_use.node_ports.insert((*port, protocol.clone()));
                }
            }
        }
    }

    /// Forgets what other servers have given back.
    pub async fn look_again(&self, store: &dyn Store) -> Result<(), skiff_store::Error> {
        let range = store.range(ALL..&prefix_end(ALL), None, 0).await?;
        let all: Vec<Claim> = range.kvs.iter().filter_map(|kv| Claim::parse(&kv.key)).collect();
        *self.in_use.lock() = super::InUse::default();
        self.learn(&all);
        Ok(())
    }

    /// At start: gives the Services of a server that was alone until now their claims, and lets go of those whose Service
    /// is gone.
    pub async fn reconcile(&self, store: &dyn Store, services: &[Arc<Object>]) -> Result<(), skiff_store::Error> {
        let range = store.range(ALL..&prefix_end(ALL), None, 0).await?;
        let mut held: BTreeMap<Arc<str>, KeyValue> = range.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        for service in services {
            for claim in Claim::all_of(&service.value()) {
                if held.remove(&claim.key()).is_some() {
                    continue;
                }
                let mut txn = Txn {
                    compares: vec![Compare { key: service.key.clone(), mod_revision: service.revision }],
                    ops: Vec::new(),
                };
                take(&mut txn, &claim, &service.key);
                if let TxnOutcome::Failed(found) = store.txn(txn).await?.outcome
                    && let Some(Some(other)) = found.get(1)
                    && other.value != service.key.as_bytes()
                {
                    let other = String::from_utf8_lossy(&other.value).into_owned();
                    tracing::warn!(service = %service.key, other, ?claim, "two Services have the same");
                }
            }
        }
        for (key, kv) in held {
            let service = String::from_utf8_lossy(&kv.value).into_owned();
            // A Service that was written after the list has its claims.
            let txn = Txn {
                compares: vec![
                    Compare { key: key.clone(), mod_revision: kv.mod_revision },
                    Compare { key: service.into(), mod_revision: Revision::ZERO },
                ],
                ops: vec![Op::Delete { key }],
            };
            store.txn(txn).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_api::validation::Faults;
    use skiff_store::memory::MemoryStore;

    use super::*;
    use crate::services::ServiceRange;

    fn kind() -> &'static Kind {
        skiff_api::kinds::by_kind("", "v1", "Service").unwrap()
    }

    fn server() -> ServiceAddresses {
        ServiceAddresses::new(ServiceRange::parse_list("10.96.0.0/24").unwrap())
    }

    fn web() -> Value {
        json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": 30080}]}})
    }

    #[tokio::test]
    async fn the_store_decides_who_has_an_address() {
        let store = MemoryStore::new();
        let (one, two) = (server(), server());
        let create = async |server: &ServiceAddresses, name: &str| {
            let (mut service, mut faults) = (web(), Faults::default());
            let reservation = server.assign(kind(), &mut service, None, &mut faults);
            assert!(faults.0.is_empty(), "{:?}", faults.0);
            let mut txn = Txn::create(format!("/registry/services/specs/d/{name}"), "x");
            reservation.claim(&mut txn);
            match store.txn(txn).await.unwrap().outcome {
                TxnOutcome::Succeeded(_) => {
                    reservation.keep();
                    Vec::new()
                }
                TxnOutcome::Failed(found) => reservation.lost(Revision::ZERO, &found),
            }
        };
        assert_eq!(create(&one, "a").await, []);
        // The other one does not know of it yet, and is told by the store.
        let lost = create(&two, "b").await;
        assert_eq!(lost.len(), 2, "{lost:?}");
        two.learn(&lost);
        let (mut service, mut faults) = (web(), Faults::default());
        drop(two.assign(kind(), &mut service, None, &mut faults));
        assert_eq!(faults.0.len(), 2, "{:?}", faults.0);
        // It is deleted by the first one, and the second one sees that when it looks.
        let mut txn = Txn::delete("/registry/services/specs/d/a");
        one.unclaim(kind(), &web(), &mut txn);
        store.txn(txn).await.unwrap();
        two.look_again(&store).await.unwrap();
        assert_eq!(create(&two, "b").await, []);
    }

    #[tokio::test]
    async fn claims_follow_the_services_that_are_there() {
        let store = MemoryStore::new();
        let indexing = crate::object::Indexing { selectable: &[], field: |_, _| String::new() };
        let mut value = web();
        value["metadata"] = json!({"name": "a", "namespace": "d"});
        let bytes = crate::object::encode(&value);
        let written = store.txn(Txn::create("/registry/services/specs/d/a", bytes.clone())).await.unwrap().revision;
        store.txn(Txn::create(format!("{ADDRESSES}10.96.0.99"), "/registry/services/specs/d/gone")).await.unwrap();
        let service = Arc::new(Object::new("/registry/services/specs/d/a".into(), &bytes, written, indexing).unwrap());
        for _ in 0..2 {
            server().reconcile(&store, std::slice::from_ref(&service)).await.unwrap();
            let range = store.range(ALL..&prefix_end(ALL), None, 0).await.unwrap();
            let keys: Vec<_> = range.kvs.iter().map(|kv| &*kv.key).collect();
            assert_eq!(keys, ["/registry/ranges/serviceips/10.96.0.10", "/registry/ranges/servicenodeports/30080/TCP"]);
        }
    }
}
