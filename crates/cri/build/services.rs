//! gRPC services as tables: names and messages of methods. The messages are written by hand, so neither a protocol
//! file nor its compiler is needed.

use tonic_build::manual::{Method, Service};

/// Name, argument and answer of a method, and whether the answer is a stream.
pub(crate) struct Rpc(pub(crate) &'static str, pub(crate) &'static str, pub(crate) &'static str, pub(crate) bool);

pub(crate) const fn unary(name: &'static str, argument: &'static str, answer: &'static str) -> Rpc {
    Rpc(name, argument, answer, false)
}

/// A service of `package` whose messages are in the module `messages`.
pub(crate) fn service(package: &str, name: &str, messages: &str, methods: &[Rpc]) -> Service {
    let mut service = Service::builder().name(name).package(package);
    for Rpc(route, argument, answer, streamed) in methods {
        let mut method = Method::builder()
            .name(snake_case(route))
            .route_name(route)
            .input_type(format!("{messages}::{argument}"))
            .output_type(format!("{messages}::{answer}"))
            .codec_path("tonic_prost::ProstCodec");
        if *streamed {
            method = method.server_streaming();
        }
        service = service.method(method.build());
    }
    service.build()
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.char_indices() {
        if c.is_ascii_uppercase() && i > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}
