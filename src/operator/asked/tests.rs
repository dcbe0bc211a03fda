use super::*;

fn asked(uri: &str) -> Asked {
    Asked::of(&uri.parse().unwrap()).unwrap_or_else(|problem| panic!("{problem:?}"))
}

#[test]
fn the_next_page_asks_the_same_from_further_on() {
    let asked = asked("/api/v1/nodes?q=a%26b%20c&cursor=old&limit=3");
    assert_eq!(asked.next_page("1-2"), "/api/v1/nodes?q=a%26b%20c&limit=3&cursor=1-2");
}

#[test]
fn what_is_left_over_or_twice_is_refused() {
    let mut twice = asked("/?state=a&state=b");
    assert!(twice.text("state").is_err());
    let mut more = asked("/?state=a&x=1");
    assert_eq!(more.text("state").unwrap().as_deref(), Some("a"));
    assert_eq!(more.finish().unwrap_err().field.as_deref(), Some("x"));
    let mut empty = asked("/");
    assert_eq!(empty.paging::<u32>().unwrap(), Paging { after: None, limit: PAGE_DEFAULT });
    assert!(empty.finish().is_ok());
}

#[test]
fn tags_are_read_as_the_standard_writes_them() {
    let of = |value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_MATCH, value.parse().unwrap());
        conditions(&headers).map_err(|problem| problem.kind)
    };
    assert_eq!(of("*"), Ok(Expected::Something));
    assert_eq!(of("\"v7-0123\", \"v8-4567\""), Ok(Expected::Versions(vec![7, 8])));
    assert_eq!(of("W/\"v7-0123\", \"other\""), Ok(Expected::Versions(vec![])));
    for wrong in ["", "v7", "\"v7", "\"v7\" \"v8\""] {
        assert_eq!(of(wrong), Err(ProblemKind::Invalid), "{wrong}");
    }
    assert_eq!(conditions(&HeaderMap::new()).map_err(|problem| problem.kind), Ok(Expected::Anything));
}

#[test]
fn only_json_is_json() {
    let of = |kind: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
        is_json(&headers)
    };
    for kind in ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"] {
        assert!(of(kind), "{kind}");
    }
    for kind in ["text/plain", "application/jsonx", "text/x+json", ""] {
        assert!(!of(kind), "{kind}");
    }
}
