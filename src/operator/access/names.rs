//! Under which names the appliance answers, and from which pages it takes changes.
//!
//! A web page anywhere can make an operator's browser send requests to an address the browser can reach, and by DNS
//! rebinding even under a name the page owns. Such requests give themselves away: the `Host` they name is not one of
//! ours, or the `Origin` they come from is not the host they ask.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, Uri, header};

use crate::operator::problem::{Problem, ProblemKind};

/// The names of one listener: loopback, its own address, and those of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    addresses: Vec<IpAddr>,
    /// Lower case.
    names: Vec<String>,
}

impl Names {
    pub fn new(listen: Option<IpAddr>, configured: &[String]) -> Names {
        let mut names = Names { addresses: listen.into_iter().collect(), names: Vec::new() };
        for name in configured {
            match name.parse() {
                Ok(address) => names.addresses.push(address),
                Err(_) => names.names.push(name.to_ascii_lowercase()),
            }
        }
        names
    }

    /// Whether a `Host` value, with or without a port, names us.
    pub fn allow(&self, host: &str) -> bool {
        let Some(name) = name_of(host) else { return false };
        if name.eq_ignore_ascii_case("localhost")
            || self.names.iter().any(|ours| name.eq_ignore_ascii_case(ours))
        {
            return true;
        }
        let address = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            None => name.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        };
        address.is_some_and(|address| address.is_loopback() || self.addresses.contains(&address))
    }

    /// Refuses what asks another host than us.
    pub(super) fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok());
        // An absolute request target overrides Host (RFC 9112 §3.2.2); both must be ours.
        let target = uri.authority().map(Authority::as_str);
        let ours = host.is_some_and(|host| self.allow(host))
            && hosts.next().is_none()
            && target.is_none_or(|target| self.allow(target));
        if ours {
            return Ok(());
        }
        Err(Problem::new(ProblemKind::Forbidden, "this listener does not answer under that host name")
            .field("Host")
            .way_out("ask for localhost, 127.0.0.1 or [::1], or add the name to operator.names"))
    }
}

/// The name in `name`, `name:port` or `[address]:port`.
fn name_of(host: &str) -> Option<&str> {
    let end = match host.starts_with('[') {
        true => host.find(']')? + 1,
        false => host.find(':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(end);
    let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    is_port.then_some(name)
}

/// Refuses a change that another site's page asks for. Programs send neither header and pass.
pub(super) fn check_origin(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    if is_safe(method) {
        return Ok(());
    }
    let text =
        |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
    let ours = match text(header::ORIGIN) {
        Some(origin) => {
            let from = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            from.zip(text(header::HOST)).is_some_and(|(from, host)| from.eq_ignore_ascii_case(host))
        }
        // Browsers that leave Origin out say this much.
        None => text(header::HeaderName::from_static("sec-fetch-site"))
            .is_none_or(|site| matches!(site, "same-origin" | "none")),
    };
    if ours {
        return Ok(());
    }
    Err(Problem::new(ProblemKind::Forbidden, "a page of another site asked for this change")
        .field("Origin")
        .way_out("use the appliance's own page, under the name it was opened with"))
}

/// Methods that change nothing (RFC 9110 §9.2.1).
pub(super) fn is_safe(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(method)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_our_names_are_ours() {
        let names =
            Names::new("10.0.0.5".parse().ok(), &["Boot.example.org".to_owned(), "fd00::5".to_owned()]);
        for host in [
            "localhost",
            "LOCALHOST:8067",
            "127.0.0.1:8067",
            "127.9.9.9",
            "[::1]",
            "[::1]:8067",
            "10.0.0.5:8067",
            "boot.EXAMPLE.org",
            "[fd00::5]:1",
        ] {
            assert!(names.allow(host), "{host}");
        }
        for host in [
            "",
            "example.org",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "10.0.0.6",
            "[::2]",
            "[::1].x",
            "[::1",
            "localhost:x",
            "::1",
            "user@localhost",
        ] {
            assert!(!names.allow(host), "{host}");
        }
    }

    #[test]
    fn a_request_names_one_host_and_it_is_ours() {
        let names = Names::new(None, &[]);
        let mut headers = HeaderMap::new();
        let plain = Uri::from_static("/x");
        assert!(names.check_host(&plain, &headers).is_err(), "none");
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(names.check_host(&plain, &headers).is_ok());
        assert!(names.check_host(&Uri::from_static("http://evil.example/x"), &headers).is_err());
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(names.check_host(&plain, &headers).is_err(), "two");
    }

    #[test]
    fn changes_come_from_our_own_pages_or_from_no_page() {
        let check = |method: Method, sent: &[(&'static str, &'static str)]| {
            let pairs = [("host", "localhost:8067")].iter().chain(sent);
            let headers =
                pairs.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect();
            check_origin(&method, &headers).is_ok()
        };
        assert!(check(Method::POST, &[]));
        assert!(check(Method::POST, &[("origin", "http://localhost:8067")]));
        assert!(check(Method::POST, &[("sec-fetch-site", "same-origin")]));
        assert!(check(Method::GET, &[("origin", "http://evil.example")]));
        for origin in
            ["http://evil.example", "null", "http://localhost:8068", "localhost:8067", "ftp://localhost:8067"]
        {
            assert!(!check(Method::DELETE, &[("origin", origin)]), "{origin}");
        }
        for site in ["cross-site", "same-site"] {
            assert!(!check(Method::PUT, &[("sec-fetch-site", site)]), "{site}");
        }
    }
}
