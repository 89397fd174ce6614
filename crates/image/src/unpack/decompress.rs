//! gzip, zstd or plain, told by the first bytes: media types of real registries are not always right, and the diff id decides anyway.

use std::io::{self, BufRead as _, BufReader, Cursor, Read};

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Skippable frames, with which seekable zstd layers may start, differ in the low half of their first byte.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];
/// 2^27 bytes: what `zstd --long` uses, and the most memory a layer can make the decoder take.
const ZSTD_WINDOW_LOG: u32 = 27;
const BUFFER: usize = 128 << 10;

/// The plain content of a layer.
pub(crate) fn open<'a>(mut layer: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = Vec::with_capacity(4);
    layer.by_ref().take(4).read_to_end(&mut start)?;
    let skippable = matches!(start.split_first(), Some((first, rest)) if first & 0xf0 == 0x50 && rest == ZSTD_SKIPPABLE);
    let zstd = start == ZSTD || skippable;
    let gzip = start.starts_with(GZIP);
    let mut whole = BufReader::with_capacity(BUFFER, Cursor::new(start).chain(layer));
    Ok(if gzip {
        // Several members: `pigz` and seekable formats write a layer so.
        Box::new(flate2::bufread::MultiGzDecoder::new(whole))
    } else if zstd {
        whole.fill_buf()?;
        let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        Box::new(decoder)
    } else {
        Box::new(whole)
    })
}

/// Whether these first bytes of a file are gzip's or zstd's.
pub(crate) fn is_compressed(start: &[u8]) -> bool {
    start.starts_with(GZIP) || start.starts_with(ZSTD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn each_kind_is_told_by_its_first_bytes() {
        let text = b"some text".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&text[..], 3).unwrap();
        let skippable = [&[0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], &zstd[..]].concat();
        for (packed, want) in [
            (text.clone(), text.clone()),
            (gzip.clone(), text.clone()),
            ([gzip.clone(), gzip.clone()].concat(), text.repeat(2)),
            (zstd.clone(), text.clone()),
            ([zstd.clone(), zstd].concat(), text.repeat(2)),
            (skippable, text),
            (Vec::new(), Vec::new()),
            (b"ab".to_vec(), b"ab".to_vec()),
        ] {
            let mut plain = Vec::new();
            open(&packed[..]).unwrap().read_to_end(&mut plain).unwrap();
            assert!(plain == want);
        }
        assert!(open(&gzip[..gzip.len() - 9]).unwrap().read_to_end(&mut Vec::new()).is_err(), "a cut stream is an error");
    }
}
