//! The Container Runtime Interface, v1: messages, client and server.
//!
//! [`v1`] holds the messages. The traits [`RuntimeService`] and [`ImageService`] are what a runtime
//! implements. [`serve_unix`] offers an implementation on a socket, [`connect_unix`] uses one, and
//! [`connect_in_process`] joins the two without a socket, so that a kubelet is written against the
//! same clients whether the runtime is built in or a foreign one.

mod transport;
pub mod v1;

/// The generated gRPC services.
mod services {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod runtime {
        include!(concat!(env!("OUT_DIR"), "/runtime.v1.RuntimeService.rs"));
    }
    pub mod image {
        include!(concat!(env!("OUT_DIR"), "/runtime.v1.ImageService.rs"));
    }
}

pub use services::image::image_service_client::ImageServiceClient;
pub use services::image::image_service_server::{ImageService, ImageServiceServer};
pub use services::runtime::runtime_service_client::RuntimeServiceClient;
pub use services::runtime::runtime_service_server::{RuntimeService, RuntimeServiceServer};
pub use tonic::transport::Channel;
pub use tonic::{Code, Request, Response, Status};
pub use transport::{ConnectError, MAX_MESSAGE_BYTES, ServeError, connect_in_process, connect_unix, serve_unix};
