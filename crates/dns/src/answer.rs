//! The answer to a query, as a function of the query and the zone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
    },
};

use crate::zone::{Endpoint, Port, ServiceEntry, Target, Zone, dashed};

/// Seconds that an answer of the cluster's may be kept, as kubeadm configures it.
const TTL: u32 = 30;
/// What we can receive; also the most that is sent to a client that claims more.
const UDP_PAYLOAD: u16 = 1232;
const SMALLEST_PAYLOAD: u16 = 512;
/// The version of the specification that is followed, as the zone itself says.
const SPECIFICATION: &str = "1.1.0";
/// An ExternalName may lead to another one; a circle has to end.
const LONGEST_CHAIN: usize = 8;

/// What to do with a query.
#[derive(Debug)]
pub enum Decision {
    Reply(Box<Message>),
    /// Not a name of the cluster: somebody else has to answer.
    Forward,
    /// An ExternalName that leads outside: the answer so far, and the name that has to be asked for.
    Chase {
        so_far: Box<Message>,
        target: Name,
    },
}

/// The names of one cluster.
#[derive(Debug, Clone)]
pub struct Answerer {
    domain: Name,
    /// The domain's labels, from the right: `local`, `cluster`.
    labels: Vec<String>,
}

/// What is known of a name.
enum Found {
    /// There is no such name.
    Nothing,
    /// The name, with these records for the type that was asked; they may be none. The last ones help
    /// the client but were not asked for.
    Records { answers: Vec<Record>, extra: Vec<Record> },
    /// An alias.
    Alias(Name),
    /// A name in a reverse zone that is not ours.
    Elsewhere,
}

impl Found {
    fn records(answers: Vec<Record>) -> Self {
        Self::Records { answers, extra: Vec::new() }
    }
}

impl Answerer {
    /// # Errors
    /// If `domain` is not a domain name.
    pub fn new(domain: &str) -> Result<Self, hickory_proto::ProtoError> {
        let mut domain = Name::from_ascii(domain)?.to_lowercase();
        domain.set_fqdn(true);
        let labels = labels_of(&domain);
        Ok(Self { domain, labels })
    }

    /// Decides what to do with a query. `own` is the address that the query was sent to, for the
    /// zone's NS record.
    pub fn decide(&self, query: &Message, zone: &Zone, own: IpAddr) -> Decision {
        let mut reply = reply_to(query);
        if query.metadata.op_code != OpCode::Query {
            return refuse(reply, ResponseCode::NotImp);
        }
        let [question] = query.queries.as_slice() else {
            return refuse(reply, ResponseCode::FormErr);
        };
        if query.version() > 0 {
            return refuse(reply, ResponseCode::BADVERS);
        }
        if question.query_class() != DNSClass::IN {
            return refuse(reply, ResponseCode::Refused);
        }
        let mut name = question.name().clone();
        let mut aliases = Vec::new();
        loop {
            match self.find(&name, question.query_type(), zone, own) {
                Found::Elsewhere => return Decision::Forward,
                Found::Nothing => {
                    // An alias that leads to nothing is still an answer.
                    let code = if aliases.is_empty() { ResponseCode::NXDomain } else { ResponseCode::NoError };
                    reply.metadata.response_code = code;
                    reply.add_authority(self.soa(zone));
                    break;
                }
                Found::Records { answers, extra } => {
                    if answers.is_empty() && aliases.is_empty() {
                        reply.add_authority(self.soa(zone));
                    }
                    reply.add_answers(aliases.drain(..));
                    let turn = usize::from(query.metadata.id) % answers.len().max(1);
                    let mut answers = answers;
                    answers.rotate_left(turn);
                    reply.add_answers(answers);
                    reply.add_additionals(extra);
                    break;
                }
                Found::Alias(target) => {
                    aliases.push(Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target.clone()))));
                    if question.query_type() == RecordType::CNAME {
                        break;
                    }
                    if !self.domain.zone_of(&target) {
                        reply.metadata.authoritative = true;
                        reply.add_answers(aliases);
                        return Decision::Chase { so_far: Box::new(reply), target };
                    }
                    if aliases.len() == LONGEST_CHAIN {
                        return refuse(reply, ResponseCode::ServFail);
                    }
                    name = target;
                }
            }
        }
        reply.add_answers(aliases);
        reply.metadata.authoritative = true;
        Decision::Reply(Box::new(reply))
    }

    fn find(&self, name: &Name, kind: RecordType, zone: &Zone, own: IpAddr) -> Found {
        let labels = labels_of(name);
        if let Some(address) = reverse_address(&labels) {
            return self.find_reverse(name, kind, address, zone);
        }
        let Some(rest) = labels.strip_prefix(self.labels.as_slice()) else {
            return Found::Elsewhere;
        };
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        let cx = Lookup { answerer: self, name, kind, zone };
        match rest.as_slice() {
            [] => cx.apex(own),
            ["dns-version"] => cx.of_type(RecordType::TXT, [RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]))]),
            ["dns"] | ["svc"] | ["pod"] => Found::records(Vec::new()),
            ["dns", "ns"] => cx.addresses([own]),
            ["svc", namespace] | ["pod", namespace] if zone.has_namespace(namespace) => Found::records(Vec::new()),
            ["pod", namespace, pod] if zone.has_namespace(namespace) => match pod_address(pod) {
                Some(address) => cx.addresses([address]),
                None => Found::Nothing,
            },
            ["svc", namespace, service] => cx.service(namespace, service),
            ["svc", namespace, service, one] => cx.below_service(namespace, service, one),
            ["svc", namespace, service, protocol, port] => cx.port(namespace, service, protocol, port),
            _ => Found::Nothing,
        }
    }

    fn find_reverse(&self, name: &Name, kind: RecordType, address: IpAddr, zone: &Zone) -> Found {
        let owners = zone.reverse(address);
        if owners.is_empty() {
            return Found::Elsewhere;
        }
        if kind != RecordType::PTR {
            return Found::records(Vec::new());
        }
        let names = owners.iter().filter_map(|((namespace, service), endpoint)| {
            let host = endpoint.map(|endpoint| endpoint.name.as_str());
            self.service_name(namespace, service, host)
        });
        Found::records(names.map(|target| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)))).collect())
    }

    /// `[HOST.]SERVICE.NAMESPACE.svc.DOMAIN`; `None` only if that is too long for a name.
    fn service_name(&self, namespace: &str, service: &str, host: Option<&str>) -> Option<Name> {
        let labels = host.into_iter().chain([service, namespace, "svc"]);
        Name::from_labels(labels.map(str::as_bytes)).ok()?.append_domain(&self.domain).ok()
    }

    fn soa(&self, zone: &Zone) -> Record {
        let below = |labels: [&str; 2]| {
            let labels = labels.into_iter().filter(|label| !label.is_empty()).map(str::as_bytes);
            let name = Name::from_labels(labels).and_then(|name| name.append_domain(&self.domain));
            name.unwrap_or_else(|_| self.domain.clone())
        };
        let soa = SOA::new(below(["ns", "dns"]), below(["hostmaster", ""]), zone.serial(), 7200, 1800, 86_400, TTL);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }
}

/// One question to the cluster's zone.
struct Lookup<'a> {
    answerer: &'a Answerer,
    name: &'a Name,
    kind: RecordType,
    zone: &'a Zone,
}

impl Lookup<'_> {
    /// Records of one type: none if another was asked for, though the name is there.
    fn of_type(&self, kind: RecordType, data: impl IntoIterator<Item = RData>) -> Found {
        let data: Vec<RData> = if self.kind == kind { data.into_iter().collect() } else { Vec::new() };
        Found::records(data.into_iter().map(|data| Record::from_rdata(self.name.clone(), TTL, data)).collect())
    }

    /// Those of the family that was asked for.
    fn addresses(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Found {
        let data = addresses.into_iter().map(address_data).filter(|data| data.record_type() == self.kind);
        Found::records(data.map(|data| Record::from_rdata(self.name.clone(), TTL, data)).collect())
    }

    fn apex(&self, own: IpAddr) -> Found {
        let answerer = self.answerer;
        match self.kind {
            RecordType::SOA => Found::records(vec![answerer.soa(self.zone)]),
            RecordType::NS => {
                let server =
                    Name::from_labels([b"ns".as_slice(), b"dns"]).and_then(|name| name.append_domain(&answerer.domain));
                let Ok(server) = server else {
                    return Found::records(Vec::new());
                };
                Found::Records {
                    answers: vec![Record::from_rdata(self.name.clone(), TTL, RData::NS(NS(server.clone())))],
                    extra: vec![Record::from_rdata(server, TTL, address_data(own))],
                }
            }
            _ => Found::records(Vec::new()),
        }
    }

    fn service(&self, namespace: &str, name: &str) -> Found {
        let Some(service) = self.zone.service(namespace, name) else {
            return Found::Nothing;
        };
        match &service.target {
            Target::External(target) => alias(target),
            // All ports at once, as CoreDNS gives them.
            _ if self.kind == RecordType::SRV => self.srv(namespace, name, service, |_| true),
            Target::Addresses(addresses) => self.addresses(addresses.iter().copied()),
            Target::Headless => {
                let endpoints = self.zone.endpoints(namespace, name);
                if endpoints.is_empty() {
                    return Found::Nothing;
                }
                self.addresses(unique(endpoints.iter().map(|endpoint| endpoint.address)))
            }
        }
    }

    /// `HOST.SERVICE…` of an endpoint, or `_PROTOCOL.SERVICE…`, which only has names below it.
    fn below_service(&self, namespace: &str, name: &str, label: &str) -> Found {
        let Some(service) = self.zone.service(namespace, name) else {
            return Found::Nothing;
        };
        if let Some(protocol) = label.strip_prefix('_') {
            return match service.ports.iter().any(|port| port.protocol == protocol) {
                true => Found::records(Vec::new()),
                false => Found::Nothing,
            };
        }
        let endpoints = self.zone.endpoints(namespace, name);
        let named: Vec<&&Endpoint> = endpoints.iter().filter(|endpoint| endpoint.name == label).collect();
        if named.is_empty() || matches!(service.target, Target::External(_)) {
            return Found::Nothing;
        }
        self.addresses(unique(named.iter().map(|endpoint| endpoint.address)))
    }

    /// `_PORT._PROTOCOL.SERVICE…`.
    fn port(&self, namespace: &str, name: &str, protocol: &str, port: &str) -> Found {
        let (Some(protocol), Some(port)) = (protocol.strip_prefix('_'), port.strip_prefix('_')) else {
            return Found::Nothing;
        };
        let Some(service) = self.zone.service(namespace, name) else {
            return Found::Nothing;
        };
        if let Target::External(target) = &service.target {
            return alias(target);
        }
        self.srv(namespace, name, service, |candidate| candidate.name == port && candidate.protocol == protocol)
    }

    fn srv(&self, namespace: &str, name: &str, service: &ServiceEntry, wanted: impl Fn(&Port) -> bool) -> Found {
        // Where each port is: the Service's own address, or every endpoint.
        let mut targets: Vec<(Name, IpAddr, u16)> = Vec::new();
        match &service.target {
            Target::Addresses(addresses) => {
                let target = self.answerer.service_name(namespace, name, None);
                for address in addresses {
                    let ports = service.ports.iter().filter(|port| wanted(port));
                    targets.extend(ports.filter_map(|port| Some((target.clone()?, *address, port.number))));
                }
            }
            Target::Headless => {
                for endpoint in self.zone.endpoints(namespace, name) {
                    let target = self.answerer.service_name(namespace, name, Some(&endpoint.name));
                    let ports = endpoint.ports.iter().filter(|port| wanted(port));
                    targets.extend(ports.filter_map(|port| Some((target.clone()?, endpoint.address, port.number))));
                }
            }
            _ => {}
        }
        if targets.is_empty() {
            return Found::Nothing;
        }
        if self.kind != RecordType::SRV {
            return Found::records(Vec::new());
        }
        // All alike: a hundred divided among them, as CoreDNS weighs them.
        let weight = u16::try_from(100 / targets.len()).unwrap_or_default().max(1);
        // A target of two families is one answer.
        let (mut answers, mut extra): (Vec<Record>, Vec<Record>) = (Vec::new(), Vec::new());
        for (target, address, port) in targets {
            let data = RData::SRV(SRV::new(0, weight, port, target.clone()));
            let answer = Record::from_rdata(self.name.clone(), TTL, data);
            let record = Record::from_rdata(target, TTL, address_data(address));
            for (record, section) in [(answer, &mut answers), (record, &mut extra)] {
                if !section.contains(&record) {
                    section.push(record);
                }
            }
        }
        Found::Records { answers, extra }
    }
}

fn alias(target: &str) -> Found {
    match Name::from_ascii(target) {
        Ok(mut name) => {
            name.set_fqdn(true);
            Found::Alias(name)
        }
        Err(_) => Found::Nothing,
    }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

fn unique(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = addresses.collect();
    all.dedup();
    all
}

/// A name's labels in lower case, from the right.
fn labels_of(name: &Name) -> Vec<String> {
    let text = |label: &[u8]| String::from_utf8_lossy(label).to_ascii_lowercase();
    let mut labels: Vec<String> = name.iter().map(text).collect();
    labels.reverse();
    labels
}

/// The address of `5.0.244.10.in-addr.arpa`, or of a name of 32 digits below `ip6.arpa`.
fn reverse_address(labels: &[String]) -> Option<IpAddr> {
    let [arpa, reverse, digits @ ..] = labels else {
        return None;
    };
    match (arpa.as_str(), reverse.as_str(), digits) {
        ("arpa", "in-addr", [a, b, c, d]) => {
            Some(Ipv4Addr::new(a.parse().ok()?, b.parse().ok()?, c.parse().ok()?, d.parse().ok()?).into())
        }
        ("arpa", "ip6", digits) if digits.len() == 32 && digits.iter().all(|digit| digit.len() == 1) => {
            Some(Ipv6Addr::from_bits(u128::from_str_radix(&digits.concat(), 16).ok()?).into())
        }
        _ => None,
    }
}

/// The address of a pod's name `10-244-0-5` or `fd00-10-244--5`.
fn pod_address(label: &str) -> Option<IpAddr> {
    let ipv4 = label.replace('-', ".").parse().ok().filter(|address| dashed(IpAddr::V4(*address)) == label);
    ipv4.map(IpAddr::V4).or_else(|| label.replace('-', ":").parse().ok().map(IpAddr::V6))
}

/// An empty reply with the query's number, question and EDNS.
pub fn reply_to(query: &Message) -> Message {
    let mut reply = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.checking_disabled = query.metadata.checking_disabled;
    reply.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        reply.set_edns(edns);
    }
    reply
}

fn refuse(mut reply: Message, code: ResponseCode) -> Decision {
    reply.metadata.response_code = code;
    Decision::Reply(Box::new(reply))
}

/// The reply's bytes, cut to what the client can take over UDP: whole records from the end go, helpful
/// ones first, and the client is told that something is missing.
pub fn encode_udp(reply: &Message, query: &Message) -> Result<Vec<u8>, hickory_proto::ProtoError> {
    let limit = usize::from(query.max_payload().clamp(SMALLEST_PAYLOAD, UDP_PAYLOAD.max(SMALLEST_PAYLOAD)));
    let mut bytes = reply.to_vec()?;
    if bytes.len() <= limit {
        return Ok(bytes);
    }
    let mut cut = reply.clone();
    // Records that were not asked for may go without a word.
    cut.additionals.clear();
    bytes = cut.to_vec()?;
    if bytes.len() <= limit {
        return Ok(bytes);
    }
    cut.metadata.truncation = true;
    cut.authorities.clear();
    loop {
        bytes = cut.to_vec()?;
        if bytes.len() <= limit || cut.answers.is_empty() {
            return Ok(bytes);
        }
        // About as many as are too many, at least one.
        let share = cut.answers.len() * (bytes.len() - limit) / bytes.len();
        cut.answers.truncate(cut.answers.len() - share.max(1));
    }
}

/// A question for the name that an alias leads to, in the query's place.
pub fn chase_query(query: &Message, target: Name) -> Message {
    let kind = query.queries.first().map_or(RecordType::A, Query::query_type);
    let mut chase = Message::new(query.metadata.id, MessageType::Query, OpCode::Query);
    chase.metadata.recursion_desired = true;
    chase.add_query(Query::query(target, kind));
    chase
}

#[cfg(test)]
mod tests;
