//! exec, attach and port-forward over WebSocket and SPDY/3.1: the server's side, and kubectl's ([`client`]).
//!
//! [`serve_command`] is exec and attach, [`serve_port_forward`] port-forward. Both take an HTTP/1.1 upgrade
//! request as kubectl sends it, answer it, and go on in a task of their own once the connection is theirs.
//! What is at the other end, a process or a port, is a [`CommandHandler`] or a [`PortForwardHandler`].
//! Nothing here holds more than a bounded amount of data: who does not read slows the other side down.

pub mod client;
mod command;
mod port_channels;
mod port_forward;
mod request;
pub mod spdy;
mod status;
mod websocket;

pub use command::{CommandHandler, CommandOptions, CommandStreams, TerminalSize, serve_command};
pub use port_forward::{PortForwardHandler, serve_port_forward};
pub use request::{Body, is_upgrade};
pub use status::Outcome;
