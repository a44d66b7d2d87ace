//! Frames. Numbers are big-endian; see the SPDY/3.1 draft, section 2.2.

/// Longest control frame taken; kubectl's are below a kilobyte.
pub const MAX_CONTROL_FRAME: u32 = 64 * 1024;

/// The last frame of its sender on a stream.
pub(crate) const FLAG_FIN: u8 = 1;
/// Bits of a stream id.
const ID_MASK: u32 = 0x7fff_ffff;
const VERSION: u16 = 3;

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not the version spoken here.
    #[error("unsupported SPDY version {0}")]
    Version(u16),
    /// Longer than is taken.
    #[error("a control frame of {0} bytes is too long")]
    TooLong(u32),
    /// The length does not fit the kind.
    #[error("a frame of type {0} has a wrong length")]
    Length(u16),
    /// The headers cannot be decompressed or parsed.
    #[error("invalid header block")]
    Headers,
}

/// The first eight bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameHeader {
    /// Data of a stream follows.
    Data {
        /// The stream.
        stream: u32,
        /// Whether it is the last.
        fin: bool,
        /// Bytes that follow.
        length: u32,
    },
    /// A control frame's body follows.
    Control {
        /// Kind of frame.
        kind: u16,
        /// Flags, whose meaning depends on the kind.
        flags: u8,
        /// Bytes that follow.
        length: u32,
    },
}

impl FrameHeader {
    /// Parses the first eight bytes.
    pub fn parse(bytes: [u8; 8]) -> Result<FrameHeader, FrameError> {
        let [a, b, c, d, flags, x, y, z] = bytes;
        let length = u32::from_be_bytes([0, x, y, z]);
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return Ok(FrameHeader::Data { stream, fin: flags & FLAG_FIN != 0, length });
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > MAX_CONTROL_FRAME {
            return Err(FrameError::TooLong(length));
        }
        Ok(FrameHeader::Control { kind: u16::from_be_bytes([c, d]), flags, length })
    }

    /// The bytes of a data frame's header.
    pub(crate) fn data(stream: u32, fin: bool, length: usize) -> [u8; 8] {
        let [a, b, c, d] = (stream & ID_MASK).to_be_bytes();
        let [_, x, y, z] = (length as u32).to_be_bytes();
        [a, b, c, d, u8::from(fin), x, y, z]
    }
}

/// A control frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlFrame {
    /// A new stream; the headers are compressed.
    SynStream {
        /// Its id.
        stream: u32,
        /// Whether its sender sends nothing more.
        fin: bool,
        /// Compressed header block.
        headers: Vec<u8>,
    },
    /// The other side has taken a stream.
    SynReply {
        /// Its id.
        stream: u32,
        /// Whether its sender sends nothing more.
        fin: bool,
        /// Compressed header block.
        headers: Vec<u8>,
    },
    /// A stream ends at once, both ways.
    RstStream {
        /// Its id.
        stream: u32,
        /// Why.
        status: u32,
    },
    /// Settings by id.
    Settings(Vec<(u32, u32)>),
    /// To be sent back.
    Ping(u32),
    /// No further streams are taken.
    GoAway {
        /// The last one taken.
        last: u32,
        /// Why.
        status: u32,
    },
    /// Further headers of a stream; to be decompressed to keep in step.
    Headers {
        /// Its id.
        stream: u32,
        /// Whether its sender sends nothing more.
        fin: bool,
        /// Compressed header block.
        headers: Vec<u8>,
    },
    /// More may be sent on a stream, or with id 0 on all together.
    WindowUpdate {
        /// Its id.
        stream: u32,
        /// Bytes.
        delta: u32,
    },
    /// A kind that is not known, to be passed over.
    Unknown(u16),
}

/// Setting: bytes that may be sent on a new stream before the other side says more.
pub(crate) const SETTING_INITIAL_WINDOW: u32 = 7;

fn u32_at(body: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(body.get(at..at + 4)?.try_into().ok()?))
}

impl ControlFrame {
    /// Parses the body of a control frame.
    pub fn parse(kind: u16, flags: u8, body: &[u8]) -> Result<ControlFrame, FrameError> {
        let fin = flags & FLAG_FIN != 0;
        let number = |at| u32_at(body, at).ok_or(FrameError::Length(kind));
        let id = |at| Ok(number(at)? & ID_MASK);
        let rest = |at: usize| body.get(at..).map(<[u8]>::to_vec).ok_or(FrameError::Length(kind));
        Ok(match kind {
            1 => ControlFrame::SynStream { stream: id(0)?, fin, headers: rest(10)? },
            2 => ControlFrame::SynReply { stream: id(0)?, fin, headers: rest(4)? },
            3 => ControlFrame::RstStream { stream: id(0)?, status: number(4)? },
            4 => {
                let count = number(0)? as usize;
                if body.len() != 4 + count.saturating_mul(8) {
                    return Err(FrameError::Length(kind));
                }
                let entry = |n: usize| Ok((number(4 + n * 8)? & 0x00ff_ffff, number(8 + n * 8)?));
                ControlFrame::Settings((0..count).map(entry).collect::<Result<_, _>>()?)
            }
            6 => ControlFrame::Ping(number(0)?),
            7 => ControlFrame::GoAway { last: id(0)?, status: number(4)? },
            8 => ControlFrame::Headers { stream: id(0)?, fin, headers: rest(4)? },
            9 => ControlFrame::WindowUpdate { stream: id(0)?, delta: id(4)? },
            kind => ControlFrame::Unknown(kind),
        })
    }

    /// The whole frame as bytes. An unknown one has none.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let mut put = |number: u32| body.extend_from_slice(&number.to_be_bytes());
        let (kind, flags): (u16, u8) = match self {
            ControlFrame::SynStream { stream, fin, headers } => {
                put(*stream);
                put(0);
                body.extend_from_slice(&[0, 0]);
                body.extend_from_slice(headers);
                (1, u8::from(*fin))
            }
            ControlFrame::SynReply { stream, fin, headers } => {
                put(*stream);
                body.extend_from_slice(headers);
                (2, u8::from(*fin))
            }
            ControlFrame::RstStream { stream, status } => {
                put(*stream);
                put(*status);
                (3, 0)
            }
            ControlFrame::Settings(entries) => {
                put(entries.len() as u32);
                for (id, value) in entries {
                    put(*id);
                    put(*value);
                }
                (4, 0)
            }
            ControlFrame::Ping(id) => {
                put(*id);
                (6, 0)
            }
            ControlFrame::GoAway { last, status } => {
                put(*last);
                put(*status);
                (7, 0)
            }
            ControlFrame::Headers { stream, fin, headers } => {
                put(*stream);
                body.extend_from_slice(headers);
                (8, u8::from(*fin))
            }
            ControlFrame::WindowUpdate { stream, delta } => {
                put(*stream);
                put(*delta);
                (9, 0)
            }
            ControlFrame::Unknown(_) => return Vec::new(),
        };
        let mut out = Vec::with_capacity(8 + body.len());
        out.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&(u32::from(flags) << 24 | body.len() as u32).to_be_bytes());
        out.extend_from_slice(&body);
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = ControlFrame> {
        let id = 0..=ID_MASK;
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
        prop_oneof![
            (id.clone(), any::<bool>(), bytes()).prop_map(|(stream, fin, headers)| ControlFrame::SynStream {
                stream,
                fin,
                headers
            }),
            (id.clone(), any::<bool>(), bytes()).prop_map(|(stream, fin, headers)| ControlFrame::SynReply {
                stream,
                fin,
                headers
            }),
            (id.clone(), any::<bool>(), bytes()).prop_map(|(stream, fin, headers)| ControlFrame::Headers {
                stream,
                fin,
                headers
            }),
            (id.clone(), any::<u32>()).prop_map(|(stream, status)| ControlFrame::RstStream { stream, status }),
            (id.clone(), any::<u32>()).prop_map(|(last, status)| ControlFrame::GoAway { last, status }),
            (id.clone(), id).prop_map(|(stream, delta)| ControlFrame::WindowUpdate { stream, delta }),
            any::<u32>().prop_map(ControlFrame::Ping),
            proptest::collection::vec((0..0x00ff_ffffu32, any::<u32>()), 0..5).prop_map(ControlFrame::Settings),
        ]
    }

    fn parse(bytes: &[u8]) -> Result<ControlFrame, FrameError> {
        let head: [u8; 8] = bytes[..8].try_into().expect("eight bytes");
        match FrameHeader::parse(head)? {
            FrameHeader::Control { kind, flags, length } => {
                assert_eq!(length as usize, bytes.len() - 8);
                ControlFrame::parse(kind, flags, &bytes[8..])
            }
            FrameHeader::Data { .. } => panic!("a data frame"),
        }
    }

    proptest! {
        #[test]
        fn control_frames_survive_the_wire(frame in frames()) {
            prop_assert_eq!(parse(&frame.to_bytes()), Ok(frame));
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            head in any::<[u8; 8]>(), kind in 0..12u16, flags in any::<u8>(),
            body in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let _ = FrameHeader::parse(head);
            let _ = ControlFrame::parse(kind, flags, &body);
        }

        #[test]
        fn data_headers_survive(stream in 0..=ID_MASK, fin in any::<bool>(), length in 0..0x00ff_ffffu32) {
            let bytes = FrameHeader::data(stream, fin, length as usize);
            prop_assert_eq!(FrameHeader::parse(bytes), Ok(FrameHeader::Data { stream, fin, length }));
        }
    }

    #[test]
    fn other_versions_and_long_frames_are_refused() {
        assert_eq!(FrameHeader::parse([0x80, 2, 0, 1, 0, 0, 0, 0]), Err(FrameError::Version(2)));
        assert!(matches!(FrameHeader::parse([0x80, 3, 0, 1, 0, 0xff, 0, 0]), Err(FrameError::TooLong(_))));
    }
}
