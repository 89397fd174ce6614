//! Paths of requests: taken apart, decoded once, and written in one spelling.
//!
//! Invariant: a path that holds `.`, `..` or NUL, in whatever spelling, is none.

/// A path that can be looked up and matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SitePath {
    /// Its one spelling: `/`, then segments whose odd bytes are percent-encoded.
    text: String,
    /// Its segments, decoded; none for the root.
    segments: Vec<Vec<u8>>,
    /// It ends with a slash.
    folder: bool,
}

impl SitePath {
    /// Reads the path of a request's target. `None` for what is no path: a bad escape, NUL, or a segment that means another
    /// folder.
    pub fn read(raw: &str) -> Option<Self> {
        let rest = raw.strip_prefix('/')?;
        let folder = rest.is_empty() || rest.ends_with('/');
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let mut segments = Vec::new();
        if !raw[1..].is_empty() {
            for segment in rest.split('/') {
                let bytes = decoded(segment)?;
                let leads_elsewhere = bytes.split(|byte| *byte == b'/').any(|part| part == b"." || part == b"..");
                if leads_elsewhere || bytes.contains(&0) {
                    return None;
                }
                segments.push(bytes);
            }
        }
        let mut text = String::with_capacity(raw.len());
        for segment in &segments {
            text.push('/');
            encode(segment, &mut text);
        }
        if folder {
            text.push('/');
        }
        Some(Self { text, segments, folder })
    }

    /// The one spelling.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it ends with a slash.
    pub fn is_folder(&self) -> bool {
        self.folder
    }

    /// The same below a site's folder, without slashes at its ends; empty for the root. `None` where no published file can
    /// have that name: an empty segment, an encoded slash, or a hidden name other than `.well-known`.
    pub fn file(&self) -> Option<Vec<u8>> {
        let is_name = |segment: &Vec<u8>| {
            let hidden = segment.first() == Some(&b'.') && segment != b".well-known";
            !segment.is_empty() && !segment.contains(&b'/') && !hidden
        };
        self.segments.iter().all(is_name).then(|| self.segments.join(&b'/'))
    }
}

/// A text's bytes, escapes resolved.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            out.push(high << 4 | low);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

/// Whether a byte stands for itself in a segment (RFC 3986 §3.3).
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte)
}

fn encode(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes.iter().copied() {
        if is_plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

/// A literal part of a pattern in the spelling of [`SitePath::text`]; slashes stay. What is no escape is taken as written.
pub(super) fn spelled(literal: &str) -> String {
    let mut out = String::with_capacity(literal.len());
    for (index, segment) in literal.split('/').enumerate() {
        if index > 0 {
            out.push('/');
        }
        encode(&decoded(segment).unwrap_or_else(|| segment.as_bytes().to_vec()), &mut out);
    }
    out
}

/// A text made fit for a header that holds a URL: what is not printable ASCII, and what some clients read as a slash or an
/// end, is percent-encoded; escapes stay.
pub(super) fn fit_for_header(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !b"\\\"<>`{}|^".contains(&byte) {
            out.push(char::from(byte));
        } else {
            encode(&[byte], &mut out);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A raw path, its one spelling, and the file it may be.
    #[test]
    fn rows() {
        for (raw, want) in [
            ("/", Some(("/", Some("")))),
            ("/a/b.css", Some(("/a/b.css", Some("a/b.css")))),
            ("/a/", Some(("/a/", Some("a")))),
            ("/%61%2Db", Some(("/a-b", Some("a-b")))),
            ("/caf%c3%a9", Some(("/caf%C3%A9", Some("café")))),
            ("/a%20b", Some(("/a%20b", Some("a b")))),
            ("/a+b", Some(("/a+b", Some("a+b")))),
            ("/.well-known/x", Some(("/.well-known/x", Some(".well-known/x")))),
            ("/a%2Fb", Some(("/a%2Fb", None))),
            ("//", Some(("//", None))),
            ("//a", Some(("//a", None))),
            ("/a//b", Some(("/a//b", None))),
            ("/.env", Some(("/.env", None))),
            ("/%2eenv", Some(("/.env", None))),
            ("/a/.git/config", Some(("/a/.git/config", None))),
            ("/...", Some(("/...", None))),
            ("/a\\..\\b", Some(("/a%5C..%5Cb", Some("a\\..\\b")))),
            ("", None),
            ("*", None),
            ("a", None),
            ("/..", None),
            ("/.", None),
            ("/a/../b", None),
            ("/a/..", None),
            ("/%2e%2e/b", None),
            ("/.%2E/b", None),
            ("/..%2fb", None),
            ("/a%2f..%2fb", None),
            ("/a%00", None),
            ("/a%", None),
            ("/a%2", None),
            ("/a%zz", None),
            ("/%c0%ae%c0%ae/b", Some(("/%C0%AE%C0%AE/b", None))),
        ] {
            let got = SitePath::read(raw);
            let got = got.as_ref().map(|path| (path.text().to_owned(), path.file()));
            match (&got, want) {
                (Some((text, file)), Some((want, wanted))) => {
                    assert_eq!(text, want, "{raw}");
                    // Bytes that are no UTF-8 name no file of a test.
                    if !raw.contains("%c0") {
                        assert_eq!(file.as_deref(), wanted.map(str::as_bytes), "{raw}");
                    }
                }
                (got, want) => assert!(got.is_none() && want.is_none(), "{raw}: {got:?}"),
            }
        }
    }

    #[test]
    fn one_spelling_is_read_as_itself() {
        for raw in ["/", "/a%20b/%c3%a9/", "/%25", "//x", "/a%2Fb"] {
            let once = SitePath::read(raw).unwrap();
            assert_eq!(SitePath::read(once.text()).unwrap(), once, "{raw}");
        }
    }

    #[test]
    fn literals_and_headers() {
        assert_eq!(spelled("/café/a b/%41%2f"), "/caf%C3%A9/a%20b/A%2F");
        assert_eq!(spelled("/100%"), "/100%25");
        assert_eq!(fit_for_header("/a\\b?c=d e#é%20"), "/a%5Cb?c=d%20e#%C3%A9%20");
    }
}
