use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsFd,
    time::Instant,
};

use super::*;
use crate::NetNs;

const TABLE: &str = "skiff-test";

#[test]
fn elements_come_back_as_they_went_in() {
    let namespace = NetNs::create().unwrap();
    let mut socket = socket_in(namespace.as_fd()).unwrap();
    let key = || Key::new().ipv4(Ipv4Addr::new(10, 96, 0, 1)).protocol(6).port(443);
    let map = key().value(Key::new().number(7)).comment("default/kubernetes");
    let vmap = key().verdict(Verdict::Goto("pick".to_owned()));
    let range = Element::in_subnet(key(), "192.0.2.0/24".parse().unwrap());

    let mut batch = Batch::new(Family::Ip, TABLE);
    let fields = [Field::Ipv4, Field::Protocol, Field::Port];
    batch.add_table().add_chain("pick");
    batch.add_set(&Set::map("ids", &fields, &[Field::Number]));
    batch.add_set(&Set::vmap("verdicts", &fields));
    let with_source = [Field::Ipv4, Field::Protocol, Field::Port, Field::Ipv4];
    batch.add_set(&Set::plain("sources", &with_source).interval());
    batch.add_elements("ids", [map.clone()]);
    batch.add_elements("verdicts", [vmap.clone()]);
    batch.add_elements("sources", [range.clone()]);
    batch.commit(&mut socket).unwrap();

    let mut read = |set| elements(&mut socket, Family::Ip, TABLE, set).unwrap();
    assert_eq!(read("ids"), std::slice::from_ref(&map));
    assert_eq!(read("verdicts"), [vmap]);
    assert_eq!(read("sources"), std::slice::from_ref(&range));
    assert_eq!(read("nothing"), []);

    let mut batch = Batch::new(Family::Ip, TABLE);
    batch.delete_elements("ids", [map.clone()]);
    batch.add_elements("ids", [key().value(Key::new().number(8))]);
    batch.delete_elements("sources", [range]);
    batch.commit(&mut socket).unwrap();
    let ids = elements(&mut socket, Family::Ip, TABLE, "ids").unwrap();
    assert_eq!(ids, [key().value(Key::new().number(8))]);
    assert_eq!(elements(&mut socket, Family::Ip, TABLE, "sources").unwrap(), []);

    let mut batch = Batch::new(Family::Ip, TABLE);
    batch.delete_table();
    batch.commit(&mut socket).unwrap();
    assert_eq!(tables(&mut socket, Family::Ip).unwrap(), Vec::<String>::new());
}

#[test]
fn a_bad_batch_changes_nothing() {
    let namespace = NetNs::create().unwrap();
    let mut socket = socket_in(namespace.as_fd()).unwrap();
    let mut batch = Batch::new(Family::Ip, TABLE);
    batch.add_table().add_chain("one");
    batch.add_rule("missing", Rule::new().counter());
    let error = batch.commit(&mut socket).unwrap_err();
    assert!(matches!(error, crate::Error::Netlink { ref source, .. } if source.is(libc::ENOENT)), "{error:?}");
    assert_eq!(tables(&mut socket, Family::Ip).unwrap(), Vec::<String>::new());
}

#[test]
fn large_batches_are_chunked() {
    let namespace = NetNs::create().unwrap();
    let mut socket = socket_in(namespace.as_fd()).unwrap();
    let mut batch = Batch::new(Family::Ip, TABLE);
    batch.add_table();
    batch.add_set(&Set::map("ids", &[Field::Ipv4, Field::Port], &[Field::Number]));
    let count = 10_000u32;
    batch.add_elements(
        "ids",
        (0..count).map(|n| Key::new().ipv4(Ipv4Addr::from(0x0a60_0000 + n)).port(80).value(Key::new().number(n))),
    );
    let size = batch.size();
    let start = Instant::now();
    batch.commit(&mut socket).unwrap();
    tracing::info!(size, elapsed = ?start.elapsed(), "loaded");
    let listed = elements(&mut socket, Family::Ip, TABLE, "ids").unwrap();
    assert_eq!(listed.len(), count as usize);
}

/// The whole of what the proxy builds on, with real packets: concatenated maps, random choice,
/// destination NAT on output, affinity that is renewed and replaced.
#[test]
fn packets_follow_the_maps() {
    let namespace = NetNs::create().unwrap();
    let mut socket = socket_in(namespace.as_fd()).unwrap();
    let service = Ipv4Addr::new(127, 9, 9, 9);
    let backend = Ipv4Addr::LOCALHOST;
    let listener = namespace.run(|| TcpListener::bind((backend, 0)).unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();

    let mut batch = Batch::new(Family::Ip, TABLE);
    batch.add_table();
    let front = [Field::Ipv4, Field::Protocol, Field::Port];
    batch.add_set(&Set::map("ids", &front, &[Field::Number]));
    batch.add_set(&Set::map("backends", &[Field::Number, Field::Number], &[Field::Ipv4, Field::Port]));
    batch.add_set(&Set::map("affinity", &[Field::Ipv4, Field::Number], &[Field::Ipv4, Field::Port]).dynamic(1000));
    batch.add_elements("ids", [Key::new().ipv4(service).protocol(6).port(80).value(Key::new().number(4))]);
    let backends = [0, 1].map(|n| Key::new().number(4).number(n).value(Key::new().ipv4(backend).port(port)));
    batch.add_elements("backends", backends);
    let output = BaseChain { kind: ChainKind::Nat, hook: Hook::Output, priority: -100 };
    batch.add_base_chain("output", output);
    let id = |rule: Rule| rule.daddr(Reg(0)).l4proto(Reg(1)).dport(Reg(2)).map(Reg(0), "ids", Reg(5));
    let known = id(Rule::new()).saddr(Reg(4)).map(Reg(4), "affinity", Reg(8));
    let known = known.dynset(DynsetOp::Update, "affinity", Reg(4), Some(Reg(8)), Some(60_000));
    batch.add_rule("output", known.dnat(Reg(8), Reg(9)));
    let new = id(Rule::new()).saddr(Reg(4)).dynset(DynsetOp::Delete, "affinity", Reg(4), Some(Reg(0)), None);
    batch.add_rule("output", new);
    let new = id(Rule::new()).saddr(Reg(4)).random(Reg(6), 2).map(Reg(5), "backends", Reg(8));
    let new = new.dynset(DynsetOp::Add, "affinity", Reg(4), Some(Reg(8)), Some(60_000));
    batch.add_rule("output", new.dnat(Reg(8), Reg(9)).comment("new client"));
    batch.commit(&mut socket).unwrap();

    for _ in 0..2 {
        let mut client = namespace.run(|| TcpStream::connect((service, 80)).unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"hello").unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "hello");
    }
    let affinity = elements(&mut socket, Family::Ip, TABLE, "affinity").unwrap();
    assert_eq!(affinity.len(), 1);
    assert_eq!(affinity[0].key, Key::new().ipv4(backend).number(4));
    assert_eq!(affinity[0].data, Some(Data::Value(Key::new().ipv4(backend).port(port))));
    assert_eq!(rules(&mut socket, Family::Ip, TABLE, "output").unwrap().len(), 3);
    assert_eq!(chains(&mut socket, Family::Ip, TABLE).unwrap(), ["output"]);
}
