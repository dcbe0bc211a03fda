//! What a request for a file is answered with: status, headers, and which bytes. Pure.
//!
//! The rules are RFC 9110 §13 (conditions) and §14 (ranges), and what boot clients need beyond them: GRUB, shim,
//! edk2 and iPXE want Content-Length always, on HEAD the same as on GET, never a transfer or content coding, and
//! never a redirect.

use std::ops::Range;
use std::time::{Duration, UNIX_EPOCH};

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};

use crate::clock::Timestamp;
use crate::image::digest::Digest;

/// What the answer depends on besides the request.
#[derive(Clone, Copy, Debug)]
pub struct FileFacts {
    pub size: u64,
    /// Absent for text rendered for one node: it has no identity beyond one answer.
    pub digest: Option<Digest>,
    pub modified: Option<Timestamp>,
    pub media_type: &'static str,
}

/// Status, headers and body of the answer; `part` is the range of the file to send.
#[derive(Clone, Debug)]
pub struct FileAnswer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub part: Option<Range<u64>>,
}

/// The media type for a name. UEFI decides by it, or else by the last four characters of the path (edk2
/// `HttpBootCheckImageType`), whether it was given a program or a disk image.
pub fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, suffix)| suffix) {
        Some("efi") => "application/efi",
        Some("iso") => "application/vnd.efi-iso",
        Some("img") => "application/vnd.efi-img",
        Some("ipxe" | "cfg" | "txt") => "text/plain",
        Some(_) | None => "application/octet-stream",
    }
}

/// Answers GET or HEAD for a file that exists.
pub fn answer(method: &Method, request: &HeaderMap, file: &FileFacts) -> FileAnswer {
    match evaluate_conditions(request, file) {
        Condition::Failed => {
            return FileAnswer { part: None, ..refuse(StatusCode::PRECONDITION_FAILED, file) };
        }
        Condition::NotModified => {
            let mut headers = validators(file);
            headers.remove(header::ACCEPT_RANGES);
            return FileAnswer { status: StatusCode::NOT_MODIFIED, headers, part: None };
        }
        Condition::Proceed => {}
    }
    // RFC 9110 §14.2: Range is defined for GET alone, and only once the conditions hold.
    let range = if method == Method::GET && may_use_range(request, file) {
        requested_range(request, file.size)
    } else {
        RangeAsked::Whole
    };
    let mut headers = validators(file);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(file.media_type));
    let (status, part) = match range {
        RangeAsked::Whole => (StatusCode::OK, 0..file.size),
        RangeAsked::Part(part) => {
            let value = format!("bytes {}-{}/{}", part.start, part.end - 1, file.size);
            insert_text(&mut headers, header::CONTENT_RANGE, &value);
            (StatusCode::PARTIAL_CONTENT, part)
        }
        RangeAsked::Unsatisfiable => {
            let mut answer = refuse(StatusCode::RANGE_NOT_SATISFIABLE, file);
            insert_text(&mut answer.headers, header::CONTENT_RANGE, &format!("bytes */{}", file.size));
            return answer;
        }
    };
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(part.end - part.start));
    FileAnswer { status, headers, part: Some(part) }
}

fn refuse(status: StatusCode, file: &FileFacts) -> FileAnswer {
    let mut headers = validators(file);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
    FileAnswer { status, headers, part: None }
}

/// The headers every answer about an existing file carries.
fn validators(file: &FileFacts) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    match file.digest {
        Some(digest) => {
            insert_text(&mut headers, header::ETAG, &format!("\"{digest}\""));
            // The name stays while its content may be replaced: keep a copy, but ask.
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
        None => {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
    }
    if let Some(modified) = file.modified {
        insert_text(&mut headers, header::LAST_MODIFIED, &http_date(modified));
    }
    headers
}

fn insert_text(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // Digests, numbers and dates are visible ASCII; there is nothing a header value could refuse.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// httpdate panics past the year 9999; a file's time comes from a disk that may say anything.
fn http_date(time: Timestamp) -> String {
    const LATEST_SECS: u64 = 253_402_300_799;
    let seconds = whole_seconds(time).min(LATEST_SECS);
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Last-Modified counts whole seconds (RFC 9110 §5.6.7), so these are what is compared.
fn whole_seconds(time: Timestamp) -> u64 {
    time.as_millis() / 1000
}

enum Condition {
    Proceed,
    NotModified,
    Failed,
}

/// RFC 9110 §13.2.2, in its order. Only GET and HEAD come here.
fn evaluate_conditions(request: &HeaderMap, file: &FileFacts) -> Condition {
    if request.contains_key(header::IF_MATCH) {
        if !etag_listed(request, header::IF_MATCH, file.digest, Comparison::Strong) {
            return Condition::Failed;
        }
    } else if let (Some(asked), Some(modified)) = (date(request, header::IF_UNMODIFIED_SINCE), file.modified)
        && whole_seconds(modified) > asked
    {
        return Condition::Failed;
    }
    if request.contains_key(header::IF_NONE_MATCH) {
        if etag_listed(request, header::IF_NONE_MATCH, file.digest, Comparison::Weak) {
            return Condition::NotModified;
        }
    } else if let (Some(asked), Some(modified)) = (date(request, header::IF_MODIFIED_SINCE), file.modified)
        && whole_seconds(modified) <= asked
    {
        return Condition::NotModified;
    }
    Condition::Proceed
}

/// RFC 9110 §8.8.3.2: a weak tag never equals anything strongly.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

fn etag_listed(
    request: &HeaderMap,
    name: HeaderName,
    digest: Option<Digest>,
    comparison: Comparison,
) -> bool {
    let own = digest.map(|digest| format!("\"{digest}\""));
    let listed = |tag: &str| match tag.strip_prefix("W/") {
        Some(weak) => comparison == Comparison::Weak && Some(weak) == own.as_deref(),
        // `*` matches anything that exists, and the file does.
        None => tag == "*" || Some(tag) == own.as_deref(),
    };
    // Our tags hold no comma, so splitting at commas cannot cut one of ours.
    request
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| listed(tag.trim_matches([' ', '\t'])))
}

/// A date in seconds; an invalid one, or several, count as absent (RFC 9110 §13.1.3, §13.1.4).
fn date(request: &HeaderMap, name: HeaderName) -> Option<u64> {
    parse_date(only(request, name)?)
}

fn parse_date(text: &str) -> Option<u64> {
    let time = httpdate::parse_http_date(text).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// The value of a header that appears exactly once.
fn only(request: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = request.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// RFC 9110 §13.1.5: If-Range with another validator than the file's own makes Range as if it were not there.
fn may_use_range(request: &HeaderMap, file: &FileFacts) -> bool {
    if !request.contains_key(header::IF_RANGE) {
        return true;
    }
    let Some(validator) = only(request, header::IF_RANGE) else { return false };
    if validator.starts_with('"') || validator.starts_with("W/") {
        return file.digest.is_some_and(|digest| validator == format!("\"{digest}\""));
    }
    match (parse_date(validator), file.modified) {
        (Some(asked), Some(modified)) => asked == whole_seconds(modified),
        (Some(_), None) | (None, _) => false,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum RangeAsked {
    Whole,
    Part(Range<u64>),
    Unsatisfiable,
}

/// RFC 9110 §14.1.2. Several ranges, or anything that does not parse, get the whole file: §14.2 lets a server
/// ignore Range, and no boot client reads multipart. A position beyond 64 bits does not parse.
fn requested_range(request: &HeaderMap, size: u64) -> RangeAsked {
    let Some(value) = only(request, header::RANGE) else { return RangeAsked::Whole };
    let Some((unit, range)) = value.split_once('=') else { return RangeAsked::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return RangeAsked::Whole;
    }
    let Some((first, last)) = range.trim_matches([' ', '\t']).split_once('-') else {
        return RangeAsked::Whole;
    };
    match (first, position(first), last, position(last)) {
        (_, Some(first), "", _) => part(first, u64::MAX, size),
        (_, Some(first), _, Some(last)) if first <= last => part(first, last, size),
        // The last `count` bytes. None of an empty file can be told in Content-Range, so it is sent whole.
        ("", _, _, Some(0)) => RangeAsked::Unsatisfiable,
        ("", _, _, Some(_)) if size == 0 => RangeAsked::Whole,
        ("", _, _, Some(count)) => RangeAsked::Part(size.saturating_sub(count)..size),
        (_, Some(_) | None, _, Some(_) | None) => RangeAsked::Whole,
    }
}

fn part(first: u64, last: u64, size: u64) -> RangeAsked {
    if first >= size {
        return RangeAsked::Unsatisfiable;
    }
    RangeAsked::Part(first..last.saturating_add(1).min(size))
}

/// Digits only: `u64::from_str` alone would read `+5`.
fn position(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// Why a request's path cannot be a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathRefusal {
    #[error("path has a percent sign without two hexadecimal digits")]
    BadEscape,
    #[error("path has an escaped slash, backslash or control character")]
    ForbiddenEscape,
}

/// The bytes a path stands for, after its leading slash; percent escapes are undone once and never again.
///
/// What an escape may not stand for: anything that would change where a component begins or ends.
pub fn decode_path(path: &str) -> Result<Vec<u8>, PathRefusal> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = path.strip_prefix('/').unwrap_or(path).as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        if bytes[index] != b'%' {
            decoded.push(bytes[index]);
            index += 1;
            continue;
        }
        let (Some(high), Some(low)) = (digit(bytes.get(index + 1)), digit(bytes.get(index + 2))) else {
            return Err(PathRefusal::BadEscape);
        };
        // Two hexadecimal digits make at most 255.
        let byte = (high * 16 + low) as u8;
        if matches!(byte, b'/' | b'\\') || byte.is_ascii_control() {
            return Err(PathRefusal::ForbiddenEscape);
        }
        decoded.push(byte);
        index += 3;
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests;
