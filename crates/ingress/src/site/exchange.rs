//! What a request says about the form of its answer: conditions, ranges, codings (RFC 9110 §12.5.3, §13, §14). Pure.

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use std::ops::Range;
use std::time::SystemTime;

/// More ranges in one request are not worth the answer: the whole is sent.
const MOST_RANGES: usize = 16;

/// Codings of files that are compressed beforehand, the preferred one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// `br` (RFC 7932).
    Brotli,
    /// `zstd` (RFC 8878).
    Zstd,
    /// `gzip` (RFC 1952).
    Gzip,
}

impl Coding {
    /// Every one, the preferred first.
    pub const ALL: [Self; 3] = [Self::Brotli, Self::Zstd, Self::Gzip];

    /// What is written behind the file's name.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Brotli => ".br",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
        }
    }

    /// The word of `Content-Encoding`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }
}

/// The items of a list header, all its lines together.
fn items<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|item| !item.is_empty())
}

/// The coding to answer in, of those that there are; none for the file as it is.
pub fn choose_coding(headers: &HeaderMap, there: impl Fn(Coding) -> bool) -> Option<Coding> {
    let (mut weights, mut any, mut plain) = ([None; Coding::ALL.len()], None, None);
    for item in items(headers, &header::ACCEPT_ENCODING) {
        let mut parts = item.split(';').map(str::trim);
        let word = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let weight: f32 = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
        match word.as_str() {
            "*" => any = Some(weight),
            "identity" => plain = Some(weight),
            "x-gzip" => weights[2] = Some(weight),
            word => {
                if let Some(index) = Coding::ALL.iter().position(|coding| coding.word() == word) {
                    weights[index] = Some(weight);
                }
            }
        }
    }
    let mut best: Option<(Coding, f32)> = None;
    for (coding, weight) in Coding::ALL.into_iter().zip(weights) {
        let weight = weight.or(any).unwrap_or(0.0);
        if weight > 0.0 && there(coding) && best.is_none_or(|(_, before)| weight > before) {
            best = Some((coding, weight));
        }
    }
    best.filter(|(_, weight)| plain.is_none_or(|plain| plain <= *weight)).map(|(coding, _)| coding)
}

/// What a request's conditions come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Answer in full, or in part.
    Holds,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// Weighs the conditions in the order of RFC 9110 §13.2.2. Of dates `If-Modified-Since` must be the very one that was sent:
/// after a rollback an older date is not older content.
pub fn condition(method: &Method, headers: &HeaderMap, etag: &str, modified: SystemTime) -> Condition {
    let safe = [Method::GET, Method::HEAD].contains(method);
    if headers.contains_key(header::IF_MATCH) {
        if !lists_tag(headers, &header::IF_MATCH, etag, false) {
            return Condition::Failed;
        }
    } else if date(headers, &header::IF_UNMODIFIED_SINCE).is_some_and(|since| modified > since) {
        return Condition::Failed;
    }
    if headers.contains_key(header::IF_NONE_MATCH) {
        if lists_tag(headers, &header::IF_NONE_MATCH, etag, true) {
            return if safe { Condition::NotModified } else { Condition::Failed };
        }
    } else if safe && date(headers, &header::IF_MODIFIED_SINCE) == Some(modified) {
        return Condition::NotModified;
    }
    Condition::Holds
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

/// Whether a list of tags has this one, or is `*`. `weak`: a weak tag of the same text counts too.
fn lists_tag(headers: &HeaderMap, name: &HeaderName, etag: &str, weak: bool) -> bool {
    // Our own tags hold no comma, so that one of another's making, cut in two, is never equal to them.
    items(headers, name).any(|item| item == "*" || item == etag || weak && item.strip_prefix("W/") == Some(etag))
}

/// Whether a request's `Range` counts (RFC 9110 §13.1.5): without `If-Range`, or when that names what there is.
pub fn if_range(headers: &HeaderMap, etag: &str, modified: SystemTime) -> bool {
    let Some(value) = headers.get(header::IF_RANGE) else { return true };
    let is_tag = value.as_bytes().contains(&b'"');
    if is_tag { value.as_bytes() == etag.as_bytes() } else { date(headers, &header::IF_RANGE) == Some(modified) }
}

/// What a request's `Range` comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    /// The whole: no ranges, not bytes, nonsense, or more than is sensible.
    Whole,
    /// These parts, in the order asked for; at least one, none empty.
    Parts(Vec<Range<u64>>),
    /// None of them is there: 416.
    None,
}

/// Reads a `Range` header for content of this length (RFC 9110 §14.1.1).
pub fn ranges(value: &HeaderValue, length: u64) -> Ranges {
    let Some(list) = value.to_str().ok().and_then(|text| {
        let (unit, list) = text.split_once('=')?;
        unit.trim().eq_ignore_ascii_case("bytes").then_some(list)
    }) else {
        return Ranges::Whole;
    };
    let (mut parts, mut count) = (Vec::new(), 0);
    for spec in list.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        count += 1;
        match one_range(spec, length) {
            Some(part) if part.start < part.end => parts.push(part),
            // Not there.
            Some(_) => {}
            None => return Ranges::Whole,
        }
    }
    let total: u64 = parts.iter().map(|part| part.end - part.start).fold(0, u64::saturating_add);
    if count == 0 || count > MOST_RANGES || count > 1 && total > length {
        Ranges::Whole
    } else if parts.is_empty() {
        Ranges::None
    } else {
        Ranges::Parts(parts)
    }
}

/// One range, empty where nothing of it is there; `None` for nonsense.
fn one_range(spec: &str, length: u64) -> Option<Range<u64>> {
    let number = |digits: &str| {
        let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        // What does not fit is past every end.
        all.then(|| digits.parse::<u64>().unwrap_or(u64::MAX))
    };
    let (first, last) = spec.split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    Some(match (first.is_empty(), last.is_empty()) {
        (true, _) => length.saturating_sub(number(last)?)..length,
        (false, true) => number(first)?..length,
        (false, false) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            first..last.saturating_add(1).min(length)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn map(list: &[(&'static str, &str)]) -> HeaderMap {
        let entry = |(name, value): &(&'static str, &str)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        list.iter().map(entry).collect()
    }

    #[test]
    fn ranges_of_ten_bytes() {
        let parts = |list: &[(u64, u64)]| Ranges::Parts(list.iter().map(|(start, end)| *start..*end).collect());
        for (value, want) in [
            ("bytes=0-4", parts(&[(0, 5)])),
            ("bytes=0-0", parts(&[(0, 1)])),
            ("bytes=4-", parts(&[(4, 10)])),
            ("bytes=-3", parts(&[(7, 10)])),
            ("bytes=-30", parts(&[(0, 10)])),
            ("bytes=8-99", parts(&[(8, 10)])),
            ("bytes=9-9", parts(&[(9, 10)])),
            ("Bytes = 1 - 2", parts(&[(1, 3)])),
            ("bytes=0-1,4-5", parts(&[(0, 2), (4, 6)])),
            ("bytes=0-1 , -1", parts(&[(0, 2), (9, 10)])),
            ("bytes=5-6,0-1", parts(&[(5, 7), (0, 2)])),
            ("bytes=0-1,20-30", parts(&[(0, 2)])),
            ("bytes=10-", Ranges::None),
            ("bytes=10-11", Ranges::None),
            ("bytes=-0", Ranges::None),
            ("bytes=20-30,40-", Ranges::None),
            ("bytes=99999999999999999999999-", Ranges::None),
            ("bytes=0-99999999999999999999999", parts(&[(0, 10)])),
            ("bytes=0-9,0-9", Ranges::Whole),
            ("bytes=5-4", Ranges::Whole),
            ("bytes=a-b", Ranges::Whole),
            ("bytes=1", Ranges::Whole),
            ("bytes=-", Ranges::Whole),
            ("bytes=", Ranges::Whole),
            ("bytes=,", Ranges::Whole),
            ("bytes=+1-2", Ranges::Whole),
            ("bytes=0-1;2-3", Ranges::Whole),
            ("items=0-1", Ranges::Whole),
            ("0-1", Ranges::Whole),
            ("bytes=0-0,1-1,2-2,3-3,4-4,5-5,6-6,7-7,8-8,9-9,0-0,1-1,2-2,3-3,4-4,5-5,6-6", Ranges::Whole),
        ] {
            assert_eq!(ranges(&HeaderValue::from_str(value).unwrap(), 10), want, "{value}");
        }
        assert_eq!(ranges(&HeaderValue::from_static("bytes=0-"), 0), Ranges::None);
        assert_eq!(ranges(&HeaderValue::from_static("bytes=-1"), 0), Ranges::None);
    }

    #[test]
    fn conditions() {
        const AT: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
        const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (headers, want) in [
            (&[][..], Condition::Holds),
            (&[("if-none-match", "\"a\"")], Condition::NotModified),
            (&[("if-none-match", "W/\"a\"")], Condition::NotModified),
            (&[("if-none-match", "\"b\", \"a\"")], Condition::NotModified),
            (&[("if-none-match", "\"b\""), ("if-none-match", "\"a\"")], Condition::NotModified),
            (&[("if-none-match", "*")], Condition::NotModified),
            (&[("if-none-match", "\"b\"")], Condition::Holds),
            (&[("if-none-match", "a")], Condition::Holds),
            (&[("if-none-match", "\"b\""), ("if-modified-since", AT)], Condition::Holds),
            (&[("if-modified-since", AT)], Condition::NotModified),
            (&[("if-modified-since", BEFORE)], Condition::Holds),
            (&[("if-modified-since", AFTER)], Condition::Holds),
            (&[("if-modified-since", "yesterday")], Condition::Holds),
            (&[("if-match", "\"a\"")], Condition::Holds),
            (&[("if-match", "*")], Condition::Holds),
            (&[("if-match", "W/\"a\"")], Condition::Failed),
            (&[("if-match", "\"b\"")], Condition::Failed),
            (&[("if-match", "\"a\""), ("if-unmodified-since", BEFORE)], Condition::Holds),
            (&[("if-unmodified-since", AT)], Condition::Holds),
            (&[("if-unmodified-since", BEFORE)], Condition::Failed),
            (&[("if-match", "\"b\""), ("if-none-match", "\"a\"")], Condition::Failed),
        ] {
            assert_eq!(condition(&Method::GET, &map(headers), "\"a\"", modified), want, "{headers:?}");
        }
        for (value, want) in
            [("\"a\"", true), ("\"b\"", false), ("W/\"a\"", false), (AT, true), (BEFORE, false), (AFTER, false), ("nonsense", false)]
        {
            assert_eq!(if_range(&map(&[("if-range", value)]), "\"a\"", modified), want, "{value}");
        }
        assert!(if_range(&HeaderMap::new(), "\"a\"", modified));
    }

    #[test]
    fn codings() {
        use Coding::{Brotli, Gzip, Zstd};
        for (accept, there, want) in [
            ("gzip, deflate, br, zstd", &[Brotli, Zstd, Gzip][..], Some(Brotli)),
            ("gzip, deflate", &[Brotli, Gzip], Some(Gzip)),
            ("gzip, deflate, zstd", &[Zstd, Gzip], Some(Zstd)),
            ("X-Gzip", &[Gzip], Some(Gzip)),
            ("GZIP", &[Gzip], Some(Gzip)),
            ("br;q=0.5, gzip;q=0.8", &[Brotli, Gzip], Some(Gzip)),
            ("br;q=0, gzip", &[Brotli], None),
            ("*", &[Gzip], Some(Gzip)),
            ("*;q=0.1, gzip;q=0", &[Brotli, Gzip], Some(Brotli)),
            ("*;q=0", &[Brotli], None),
            ("identity", &[Brotli], None),
            ("identity;q=1, gzip;q=0.5", &[Gzip], None),
            ("gzip;q=x", &[Gzip], None),
            ("deflate", &[Brotli, Gzip], None),
            ("", &[Brotli], None),
            ("br", &[], None),
        ] {
            let headers = map(&[("accept-encoding", accept)]);
            assert_eq!(choose_coding(&headers, |coding| there.contains(&coding)), want, "{accept}");
        }
    }
}
