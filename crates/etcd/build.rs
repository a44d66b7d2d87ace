//! Writes the gRPC servers of etcd's services from the tables below; the messages are the store's, which speaks
//! them too.

use tonic_build::manual::{Builder, Method, Service};

/// Name, message without `Request` and `Response`, and whether the argument and the answer are streams.
struct Rpc(&'static str, &'static str, bool, bool);

const fn unary(name: &'static str, message: &'static str) -> Rpc {
    Rpc(name, message, false, false)
}

const fn both(name: &'static str, message: &'static str) -> Rpc {
    Rpc(name, message, true, true)
}

const SERVICES: [(&str, &[Rpc]); 6] = [
    (
        "KV",
        &[
            unary("Range", "Range"),
            unary("Put", "Put"),
            unary("DeleteRange", "DeleteRange"),
            unary("Txn", "Txn"),
            unary("Compact", "Compaction"),
        ],
    ),
    ("Watch", &[both("Watch", "Watch")]),
    (
        "Lease",
        &[
            unary("LeaseGrant", "LeaseGrant"),
            unary("LeaseRevoke", "LeaseRevoke"),
            both("LeaseKeepAlive", "LeaseKeepAlive"),
        ],
    ),
    ("Cluster", &[unary("MemberList", "MemberList")]),
    (
        "Maintenance",
        &[
            unary("Alarm", "Alarm"),
            unary("Status", "Status"),
            unary("Defragment", "Defragment"),
            unary("Hash", "Hash"),
            unary("HashKV", "HashKV"),
            Rpc("Snapshot", "Snapshot", false, true),
        ],
    ),
    ("Auth", &[unary("AuthStatus", "AuthStatus")]),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let services = SERVICES.map(|(name, methods)| {
        let mut service = Service::builder().name(name).package("etcdserverpb");
        for Rpc(route, message, in_stream, out_stream) in methods {
            let mut method = Method::builder()
                .name(snake_case(route))
                .route_name(route)
                .input_type(format!("skiff_store::etcd::messages::{message}Request"))
                .output_type(format!("skiff_store::etcd::messages::{message}Response"))
                .codec_path("tonic_prost::ProstCodec");
            if *in_stream {
                method = method.client_streaming();
            }
            if *out_stream {
                method = method.server_streaming();
            }
            service = service.method(method.build());
        }
        service.build()
    });
    Builder::new().build_client(false).compile(&services);
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    let mut lower_before = false;
    for c in name.chars() {
        if c.is_ascii_uppercase() && lower_before {
            out.push('_');
        }
        lower_before = c.is_ascii_lowercase();
        out.push(c.to_ascii_lowercase());
    }
    out
}
