//! The Container Storage Interface, v1, and the registration of plugins with the kubelet: messages, clients, servers.
//!
//! [`v1`] holds the messages of the three CSI services, [`registration`] those by which a plugin makes itself known.
//! [`connect`] uses a driver's socket; [`serve`] offers services on one, for the driver of the tests.

pub mod registration;
mod transport;
pub mod v1;

/// The generated gRPC services.
mod services {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod identity {
        include!(concat!(env!("OUT_DIR"), "/csi.v1.Identity.rs"));
    }
    pub mod controller {
        include!(concat!(env!("OUT_DIR"), "/csi.v1.Controller.rs"));
    }
    pub mod node {
        include!(concat!(env!("OUT_DIR"), "/csi.v1.Node.rs"));
    }
    pub mod registration {
        include!(concat!(env!("OUT_DIR"), "/pluginregistration.Registration.rs"));
    }
}

pub use services::controller::{
    controller_client::ControllerClient,
    controller_server::{Controller, ControllerServer},
};
pub use services::identity::{
    identity_client::IdentityClient,
    identity_server::{Identity, IdentityServer},
};
pub use services::node::{
    node_client::NodeClient,
    node_server::{Node, NodeServer},
};
pub use services::registration::{
    registration_client::RegistrationClient,
    registration_server::{Registration, RegistrationServer},
};
pub use tonic::transport::Channel;
pub use tonic::{Code, Request, Response, Status};
pub use transport::{Routes, connect, listen, serve, status_text};
