//! SPDY/3.1, as far as kubectl speaks it: framing, headers, streams. Not a web server's SPDY: there is no
//! push, and priorities are read but not acted on.

mod client;
mod frame;
mod headers;
mod session;

pub use client::{ClientSession, ClientStream, ClientWriter};
pub use frame::{ControlFrame, FrameError, FrameHeader, MAX_CONTROL_FRAME};
pub use headers::{HeaderBlock, HeaderDecoder, HeaderEncoder};
pub use session::{IncomingStream, Session, StreamReader, StreamWriter};
