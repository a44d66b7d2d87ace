//! The nftables table of an address family: what is the same for every Service, and the chains that several share.
//!
//! ```text
//! a packet's address . protocol . port ──services──▶ an entry chain: masquerade or not, which list
//!   the same key ──service-ids──▶ number of the Service port (odd: its local endpoints)
//!   number . random index ──endpoints──▶ address . port ──▶ destination NAT
//! ```
//!
//! Entry chains differ by the number of endpoints, because a random number's bound is part of a rule, and
//! by policy and affinity; Services alike in these share them. A chain is never changed once it is
//! there; it stays until the table is written anew.

use std::{
    fmt::Write,
    net::{Ipv4Addr, Ipv6Addr},
};

use skiff_network::{
    Subnet,
    nft::{
        BaseChain, Batch, ChainKind, CtKey, DynsetOp, Family, FibResult, Field, Hook, Meta, Op, Reg, Rule, Set,
        Verdict, ct_state, ct_status,
    },
};

use crate::service::View;

/// The table's name.
pub(crate) const TABLE: &str = "skiff-proxy";
pub(crate) const REJECT: &str = "reject";
/// The mark that kube-proxy uses for the same purpose.
const MASQUERADE_MARK: u32 = 0x4000;
/// Clients with affinity that are remembered at most; the kernel refuses more.
const MOST_CLIENTS: u32 = 1 << 20;
const RTN_LOCAL: u32 = 2;

/// The sets and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Map {
    Services,
    ServiceIds,
    NodePorts,
    NodePortIds,
    Endpoints,
    AffinityEndpoints,
    NoEndpoints,
    NoEndpointNodePorts,
    ClusterIps,
    Restricted,
    AllowedSources,
    Hairpin,
}

const AFFINITY: &str = "affinity";

impl Map {
    pub(crate) const ALL: [Self; 12] = [
        Self::Services,
        Self::ServiceIds,
        Self::NodePorts,
        Self::NodePortIds,
        Self::Endpoints,
        Self::AffinityEndpoints,
        Self::NoEndpoints,
        Self::NoEndpointNodePorts,
        Self::ClusterIps,
        Self::Restricted,
        Self::AllowedSources,
        Self::Hairpin,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::ServiceIds => "service-ids",
            Self::NodePorts => "nodeports",
            Self::NodePortIds => "nodeport-ids",
            Self::Endpoints => "endpoints",
            Self::AffinityEndpoints => "affinity-endpoints",
            Self::NoEndpoints => "no-endpoints",
            Self::NoEndpointNodePorts => "no-endpoint-nodeports",
            Self::ClusterIps => "cluster-ips",
            Self::Restricted => "restricted",
            Self::AllowedSources => "allowed-sources",
            Self::Hairpin => "hairpin",
        }
    }

    fn write(self, batch: &mut Batch, family: Family) {
        const PORT: &[Field] = &[Field::Protocol, Field::Port];
        let any = family.address();
        let address = &[any, Field::Protocol, Field::Port];
        let name = self.name();
        match self {
            Self::Services | Self::NoEndpoints => batch.add_set(&Set::vmap(name, address)),
            Self::NodePorts | Self::NoEndpointNodePorts => batch.add_set(&Set::vmap(name, PORT)),
            Self::ServiceIds => batch.add_set(&Set::map(name, address, &[Field::Number])),
            Self::NodePortIds => batch.add_set(&Set::map(name, PORT, &[Field::Number])),
            Self::Endpoints => batch.add_set(&Set::map(name, &[Field::Number, Field::Number], &[any, Field::Port])),
            Self::AffinityEndpoints => batch.add_set(&Set::plain(name, &[Field::Number, any, Field::Port])),
            Self::ClusterIps => batch.add_set(&Set::plain(name, &[any])),
            Self::Restricted => batch.add_set(&Set::plain(name, address)),
            Self::AllowedSources => {
                batch.add_set(&Set::plain(name, &[any, Field::Protocol, Field::Port, any]).interval())
            }
            Self::Hairpin => batch.add_set(&Set::plain(name, &[any, any])),
        };
    }
}

/// What a Service is addressed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Front {
    Address,
    NodePort,
}

/// Which endpoints of a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum List {
    Cluster,
    Local,
}

/// Clients stay with an endpoint until they have been silent this long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Affinity {
    pub(crate) timeout_s: u32,
}

/// How traffic to an address is treated before an endpoint is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Entry {
    /// A cluster address: masqueraded unless it comes from a pod.
    Cluster { list: List, endpoints: u32 },
    /// Another address, policy Cluster: always masqueraded.
    External { endpoints: u32 },
    /// Another address, policy Local: the client's address is kept; pods and the node itself use all
    /// endpoints.
    ExternalLocal { clusters: u32, locals: u32 },
}

/// A chain that Services share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Chain {
    /// Before [`Chain::Entry`], so that a batch creates it first.
    Pick {
        front: Front,
        list: List,
        endpoints: u32,
        affinity: Option<Affinity>,
    },
    Entry {
        front: Front,
        entry: Entry,
        affinity: Option<Affinity>,
    },
}

impl Chain {
    pub(crate) fn name(&self) -> String {
        let front = |front: &Front| match front {
            Front::Address => "address",
            Front::NodePort => "nodeport",
        };
        let of_list = |list: &List| match list {
            List::Cluster => "",
            List::Local => "-local",
        };
        let (mut name, affinity) = match self {
            Self::Pick { front: f, list, endpoints, affinity } => {
                (format!("pick-{}{}-{endpoints}", front(f), of_list(list)), affinity)
            }
            Self::Entry { front: f, entry, affinity } => {
                let name = match entry {
                    Entry::Cluster { list, endpoints } => format!("cluster-{}{}-{endpoints}", front(f), of_list(list)),
                    Entry::External { endpoints } => format!("external-{}-{endpoints}", front(f)),
                    Entry::ExternalLocal { clusters, locals } => {
                        format!("external-{}-local-{clusters}-{locals}", front(f))
                    }
                };
                (name, affinity)
            }
        };
        if let Some(affinity) = affinity {
            // Writing to a string cannot fail.
            let _ = write!(name, "-for-{}s", affinity.timeout_s);
        }
        name
    }

    /// The chain and those that it jumps to.
    pub(crate) fn with_those_it_needs(self) -> Vec<Self> {
        let Self::Entry { front, entry, affinity } = self else {
            return vec![self];
        };
        let pick = |list, endpoints| Self::Pick { front, list, endpoints, affinity };
        let mut chains = vec![self];
        match entry {
            Entry::Cluster { list, endpoints } => chains.push(pick(list, endpoints)),
            Entry::External { endpoints } => chains.push(pick(List::Cluster, endpoints)),
            Entry::ExternalLocal { clusters, locals } => {
                chains.push(pick(List::Cluster, clusters));
                if locals > 0 {
                    chains.push(pick(List::Local, locals));
                }
            }
        }
        chains
    }

    /// Creates the chain with its rules.
    pub(crate) fn write(&self, batch: &mut Batch, node: &View) {
        let name = self.name();
        batch.add_chain(&name);
        match *self {
            Self::Pick { front, list, endpoints, affinity } => {
                write_pick(batch, &name, node.family, front, list, endpoints, affinity)
            }
            Self::Entry { front, entry, affinity } => write_entry(batch, &name, node.pod_cidr, front, entry, affinity),
        }
    }
}

fn write_entry(batch: &mut Batch, name: &str, pods: Subnet, front: Front, entry: Entry, affinity: Option<Affinity>) {
    let rule = || Rule::of(Family::of(pods.base()));
    let pick = |list, endpoints| {
        let chain = Chain::Pick { front, list, endpoints, affinity };
        Verdict::Goto(chain.name())
    };
    let mark = |rule: Rule| rule.set_mark_bits(Reg(0), MASQUERADE_MARK);
    let from_pods = |op| rule().saddr(Reg(0)).in_subnet(Reg(0), op, pods);
    match entry {
        Entry::Cluster { list, endpoints } => {
            batch.add_rule(name, mark(from_pods(Op::Neq)));
            batch.add_rule(name, rule().verdict(pick(list, endpoints)));
        }
        Entry::External { endpoints } => {
            batch.add_rule(name, mark(rule()));
            batch.add_rule(name, rule().verdict(pick(List::Cluster, endpoints)));
        }
        Entry::ExternalLocal { clusters, locals } => {
            batch.add_rule(name, from_pods(Op::Eq).verdict(pick(List::Cluster, clusters)));
            let from_node = rule().fib_saddr(Reg(0), FibResult::AddressType);
            let from_node = from_node.cmp(Reg(0), Op::Eq, &RTN_LOCAL.to_ne_bytes());
            batch.add_rule(name, mark(from_node).verdict(pick(List::Cluster, clusters)));
            if locals > 0 {
                batch.add_rule(name, rule().verdict(pick(List::Local, locals)));
            }
        }
    }
}

/// Loads the key of a front and looks up the number of its list of endpoints into `id`.
fn load_id(rule: Rule, family: Family, front: Front, list: List, id: Reg) -> Rule {
    let rule = match front {
        Front::Address => load_address(rule, family).map(Reg(0), Map::ServiceIds.name(), id),
        Front::NodePort => load_port(rule).map(Reg(0), Map::NodePortIds.name(), id),
    };
    match list {
        List::Cluster => rule,
        List::Local => rule.bitwise(id, !1, 1),
    }
}

/// Loads address, protocol and port; the register behind them is [`behind_address`].
fn load_address(rule: Rule, family: Family) -> Rule {
    let after = family.registers();
    rule.daddr(Reg(0)).l4proto(Reg(after)).dport(Reg(after + 1))
}

fn behind_address(family: Family) -> Reg {
    Reg(family.registers() + 2)
}

fn load_port(rule: Rule) -> Rule {
    rule.l4proto(Reg(0)).dport(Reg(1))
}

/// Where a pick keeps what, behind the key of the front. Neighbours are keys: client and number, number and random
/// index, number and endpoint.
struct Registers {
    client: Reg,
    number: Reg,
    random: Reg,
    /// The number once more, right before the endpoint.
    again: Reg,
    address: Reg,
    port: Reg,
}

impl Registers {
    fn of(family: Family) -> Self {
        match family {
            // There is just room enough: the endpoint takes the random index's place.
            Family::Ip6 => Self {
                client: Reg(6),
                number: Reg(10),
                random: Reg(11),
                again: Reg(10),
                address: Reg(11),
                port: Reg(15),
            },
            _ => Self { client: Reg(4), number: Reg(5), random: Reg(6), again: Reg(7), address: Reg(8), port: Reg(9) },
        }
    }
}

fn write_pick(
    batch: &mut Batch,
    name: &str,
    family: Family,
    front: Front,
    list: List,
    endpoints: u32,
    affinity: Option<Affinity>,
) {
    let at = Registers::of(family);
    let rule = || Rule::of(family);
    let endpoint = |rule: Rule| rule.random(at.random, endpoints).map(at.number, Map::Endpoints.name(), at.address);
    let number = |rule: Rule, reg| load_id(rule, family, front, list, reg);
    let Some(affinity) = affinity else {
        batch.add_rule(name, endpoint(number(rule(), at.number)).dnat(at.address, at.port));
        return;
    };
    let timeout = Some(u64::from(affinity.timeout_s) * 1000);
    let remember = |rule: Rule, op| rule.dynset(op, AFFINITY, at.client, Some(at.address), timeout);
    // A client that is known, and whose endpoint still is one.
    let client = |rule: Rule| number(rule, at.number).saddr(at.client);
    let known = client(rule());
    let known = if at.again == at.number { known } else { number(known, at.again) };
    let known = known.map(at.client, AFFINITY, at.address);
    let known = remember(known.lookup(at.again, Map::AffinityEndpoints.name()), DynsetOp::Update);
    batch.add_rule(name, known.dnat(at.address, at.port).comment("known client"));
    // Adding does not replace, so what is known of an endpoint that is gone has to go first.
    let forget = client(rule()).dynset(DynsetOp::Delete, AFFINITY, at.client, Some(at.client), None);
    batch.add_rule(name, forget);
    let new = remember(endpoint(client(rule())), DynsetOp::Add);
    batch.add_rule(name, new.dnat(at.address, at.port).comment("new client"));
}

/// Creates the table anew, empty of Services.
pub(crate) fn write_skeleton(batch: &mut Batch, node: &View) {
    batch.delete_table().add_table();
    let family = node.family;
    for map in Map::ALL {
        map.write(batch, family);
    }
    let (client, endpoint) = ([family.address(), Field::Number], [family.address(), Field::Port]);
    batch.add_set(&Set::map(AFFINITY, &client, &endpoint).dynamic(MOST_CLIENTS));
    batch.add_chain(REJECT);
    batch.add_rule(REJECT, Rule::of(family).reject());
    write_dispatch(batch, family);
    write_filters(batch, node);
    write_masquerade(batch, family);
}

fn base(kind: ChainKind, hook: Hook, priority: i32) -> BaseChain {
    BaseChain { kind, hook, priority }
}

/// Destination NAT, for packets that arrive and for those of the node itself.
fn write_dispatch(batch: &mut Batch, family: Family) {
    let rule = || Rule::of(family);
    batch.add_chain("dispatch");
    batch.add_rule("dispatch", load_address(rule(), family).vmap(Reg(0), Map::Services.name()));
    batch.add_rule("dispatch", load_port(to_this_node(rule(), family)).vmap(Reg(0), Map::NodePorts.name()));
    for (name, hook) in [("nat-prerouting", Hook::Prerouting), ("nat-output", Hook::Output)] {
        batch.add_base_chain(name, base(ChainKind::Nat, hook, -100));
        batch.add_rule(name, rule().verdict(Verdict::Jump("dispatch".to_owned())));
    }
}

/// Node ports are on all addresses of the node but loopback ones, which could not be routed to a pod.
fn to_this_node(rule: Rule, family: Family) -> Rule {
    let loopback = match family {
        Family::Ip6 => Subnet::host(Ipv6Addr::LOCALHOST),
        _ => Subnet::new(Ipv4Addr::LOCALHOST, 8).expect("a constant"),
    };
    let local = rule.fib_daddr(Reg(0), FibResult::AddressType).cmp(Reg(0), Op::Eq, &RTN_LOCAL.to_ne_bytes());
    local.daddr(Reg(0)).in_subnet(Reg(0), Op::Neq, loopback)
}

fn write_filters(batch: &mut Batch, node: &View) {
    let family = node.family;
    let rule = || Rule::of(family);
    let new = || rule().ct_state(Reg(0), ct_state::NEW);
    let jump = |rule: Rule, chain: &str| rule.verdict(Verdict::Jump(chain.to_owned()));

    // Before destination NAT, where the load balancer's address is still seen.
    batch.add_chain("source-ranges");
    let restricted = load_address(rule(), family).lookup(Reg(0), Map::Restricted.name());
    let others = restricted.saddr(behind_address(family)).lookup_not(Reg(0), Map::AllowedSources.name());
    batch.add_rule("source-ranges", others.verdict(Verdict::Drop));
    for (name, hook) in [("filter-prerouting", Hook::Prerouting), ("filter-output-before", Hook::Output)] {
        batch.add_base_chain(name, base(ChainKind::Filter, hook, -110));
        batch.add_rule(name, jump(new(), "source-ranges"));
    }

    // After it: what still has a Service's address has nowhere to go.
    batch.add_chain("no-endpoints");
    batch.add_rule("no-endpoints", load_address(rule(), family).vmap(Reg(0), Map::NoEndpoints.name()));
    let node_ports = load_port(to_this_node(rule(), family));
    batch.add_rule("no-endpoints", node_ports.vmap(Reg(0), Map::NoEndpointNodePorts.name()));
    batch.add_chain("unused");
    let unused = rule().daddr(Reg(0)).lookup(Reg(0), Map::ClusterIps.name());
    batch.add_rule("unused", unused.reject().comment("ports that a Service does not have"));
    if let Some(range) = node.service_cidr {
        let unknown = rule().daddr(Reg(0)).in_subnet(Reg(0), Op::Eq, range);
        batch.add_rule("unused", unknown.verdict(Verdict::Drop).comment("addresses of no Service"));
    }
    let hooks = [
        ("filter-input", Hook::Input, 0, false),
        ("filter-forward", Hook::Forward, 0, true),
        ("filter-output", Hook::Output, -90, true),
    ];
    for (name, hook, priority, check_unused) in hooks {
        batch.add_base_chain(name, base(ChainKind::Filter, hook, priority));
        batch.add_rule(name, jump(new(), "no-endpoints"));
        if check_unused {
            batch.add_rule(name, jump(new(), "unused"));
        }
    }
}

fn write_masquerade(batch: &mut Batch, family: Family) {
    let rule = || Rule::of(family);
    let name = "nat-postrouting";
    batch.add_base_chain(name, base(ChainKind::Nat, Hook::Postrouting, 100));
    let rewritten = rule().ct(Reg(0), CtKey::Status).any_bit(Reg(0), ct_status::DNAT);
    let hairpin = rewritten.saddr(Reg(0)).daddr(Reg(family.registers())).lookup(Reg(0), Map::Hairpin.name());
    batch.add_rule(name, hairpin.masquerade().comment("a pod that meets itself behind a Service"));
    let marked = rule().meta(Reg(0), Meta::Mark).any_bit(Reg(0), MASQUERADE_MARK);
    batch.add_rule(name, marked.clear_mark_bits(Reg(0), MASQUERADE_MARK).masquerade());
}

/// A batch for the table of a family.
pub(crate) fn batch(family: Family) -> Batch {
    Batch::new(family, TABLE)
}
