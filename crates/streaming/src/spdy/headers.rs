//! Header blocks: names and values, compressed with one zlib stream per direction that all frames share.

use std::sync::OnceLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::FrameError;

/// Names and values, in order.
pub type HeaderBlock = Vec<(String, String)>;

/// Longest block after decompression.
const MAX_BLOCK: usize = 64 * 1024;
const MAX_HEADERS: u32 = 256;

/// The words that the compression dictionary starts with, each behind its length. The dictionary is part of
/// the SPDY/3 specification, section 2.6.10.1.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
    accept-language accept-ranges age allow authorization cache-control connection content-base \
    content-encoding content-language content-length content-location content-md5 content-range \
    content-type date etag expect expires from host if-match if-modified-since if-none-match if-range \
    if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization \
    range referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning \
    www-authenticate method get status 200\u{a0}OK version HTTP/1.1 url public set-cookie keep-alive origin";

/// What follows them.
const TAIL: &str = "1001012012022052063003023033043053063074024054064074084094104114124134144154164175\
    02504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 \
    Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service \
    UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, \
    Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/\
    plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,\
    enq=0.";

fn dictionary() -> &'static [u8] {
    static DICTIONARY: OnceLock<Vec<u8>> = OnceLock::new();
    DICTIONARY.get_or_init(|| {
        let mut out = Vec::new();
        for word in WORDS.split(' ') {
            let word = word.replace('\u{a0}', " ");
            out.extend_from_slice(&(word.len() as u32).to_be_bytes());
            out.extend_from_slice(word.as_bytes());
        }
        out.extend_from_slice(TAIL.as_bytes());
        out
    })
}

/// Reads header blocks of one direction.
pub struct HeaderDecoder(Decompress);

impl Default for HeaderDecoder {
    fn default() -> Self {
        HeaderDecoder(Decompress::new(true))
    }
}

impl HeaderDecoder {
    /// Reads one block. After an error the direction is out of step and the connection must end.
    pub fn decode(&mut self, mut compressed: &[u8]) -> Result<HeaderBlock, FrameError> {
        let mut plain = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(compressed, &mut chunk, FlushDecompress::Sync);
            let consumed = (self.0.total_in() - before_in) as usize;
            let produced = (self.0.total_out() - before_out) as usize;
            compressed = compressed.get(consumed..).unwrap_or_default();
            plain.extend_from_slice(&chunk[..produced]);
            if plain.len() > MAX_BLOCK {
                return Err(FrameError::Headers);
            }
            match result {
                Ok(Status::StreamEnd) => return Err(FrameError::Headers),
                Ok(_) if consumed == 0 && produced == 0 => break,
                Ok(_) => {}
                Err(e) if e.needs_dictionary().is_some() => {
                    self.0.set_dictionary(dictionary()).map_err(|_| FrameError::Headers)?;
                }
                Err(_) => return Err(FrameError::Headers),
            }
        }
        parse(&plain)
    }
}

fn parse(mut plain: &[u8]) -> Result<HeaderBlock, FrameError> {
    fn number(plain: &mut &[u8]) -> Option<u32> {
        let (head, rest) = plain.split_first_chunk::<4>()?;
        *plain = rest;
        Some(u32::from_be_bytes(*head))
    }
    fn text(plain: &mut &[u8]) -> Option<String> {
        let length = number(plain)? as usize;
        let (head, rest) = plain.split_at_checked(length)?;
        *plain = rest;
        String::from_utf8(head.to_vec()).ok()
    }
    let count = number(&mut plain).filter(|n| *n <= MAX_HEADERS).ok_or(FrameError::Headers)?;
    let mut out = HeaderBlock::new();
    for _ in 0..count {
        let name = text(&mut plain).ok_or(FrameError::Headers)?;
        let value = text(&mut plain).ok_or(FrameError::Headers)?;
        out.push((name.to_ascii_lowercase(), value));
    }
    if !plain.is_empty() {
        return Err(FrameError::Headers);
    }
    Ok(out)
}

/// Writes header blocks of one direction.
pub struct HeaderEncoder(Compress);

impl Default for HeaderEncoder {
    fn default() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        // Fails only in the middle of a stream, and this is its start.
        let _ = compress.set_dictionary(dictionary());
        HeaderEncoder(compress)
    }
}

impl HeaderEncoder {
    /// Writes one block.
    pub fn encode(&mut self, headers: &[(&str, &str)]) -> Result<Vec<u8>, FrameError> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for (name, value) in headers {
            for text in [name, value] {
                plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
                plain.extend_from_slice(text.as_bytes());
            }
        }
        let mut out = Vec::new();
        let mut rest = plain.as_slice();
        loop {
            let mut chunk = [0; 4096];
            let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
            self.0.compress(rest, &mut chunk, FlushCompress::Sync).map_err(|_| FrameError::Headers)?;
            rest = &rest[(self.0.total_in() - before_in) as usize..];
            let produced = (self.0.total_out() - before_out) as usize;
            out.extend_from_slice(&chunk[..produced]);
            // Room to spare: everything is out.
            if rest.is_empty() && produced < chunk.len() {
                return Ok(out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionary_is_that_of_the_specification() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        // The id by which compressed streams name it.
        assert_eq!((dictionary().len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    proptest::proptest! {
        #[test]
        fn blocks_survive_in_sequence(
            blocks in proptest::collection::vec(
                proptest::collection::vec(("[a-z-]{1,20}", ".{0,300}"), 0..10), 1..6)
        ) {
            let (mut encoder, mut decoder) = (HeaderEncoder::default(), HeaderDecoder::default());
            for block in blocks {
                let block: HeaderBlock = block;
                let borrowed: Vec<_> = block.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                let bytes = encoder.encode(&borrowed).expect("encodes");
                proptest::prop_assert_eq!(decoder.decode(&bytes), Ok(block));
            }
        }

        #[test]
        fn garbage_is_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = HeaderDecoder::default().decode(&bytes);
            let _ = parse(&bytes);
        }
    }
}
