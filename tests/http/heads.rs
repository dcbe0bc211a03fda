//! Request heads as an attacker, or a broken client, would write them.

use crate::support::Plane;

#[tokio::test]
async fn h_10_what_two_readers_could_read_differently_is_refused_and_ends_the_connection() {
    let plane = Plane::start().await;
    let smuggled = "GET /image/vm/vmlinuz HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = "POST /agent/v1/hello HTTP/1.1\r\nHost: a\r\n";
    let get = "GET /nothing HTTP/1.1\r\n";
    for (what, request, status) in [
        (
            "length and coding",
            format!("{post}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (
            "coding and length",
            format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
            400,
        ),
        ("chunked", format!("{post}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 411),
        ("other coding", format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"), 400),
        ("two lengths", format!("{post}Content-Length: 0\r\nContent-Length: 0\r\n\r\n"), 400),
        ("differing lengths", format!("{post}Content-Length: 0\r\nContent-Length: 5\r\n\r\n"), 400),
        ("signed length", format!("{post}Content-Length: +0\r\n\r\n"), 400),
        ("negative length", format!("{post}Content-Length: -1\r\n\r\n"), 400),
        ("bare line feeds", "GET /nothing HTTP/1.1\nHost: a\n\n".to_owned(), 400),
        ("one bare line feed", format!("{get}Host: a\nX: y\r\n\r\n"), 400),
        ("folded header", format!("{get}Host: a\r\nX: y\r\n z\r\n\r\n"), 400),
        ("space before colon", format!("{get}Host: a\r\nX : y\r\n\r\n"), 400),
        ("header without colon", format!("{get}Host: a\r\nX\r\n\r\n"), 400),
        ("NUL", format!("{get}Host: a\r\nX: \0\r\n\r\n"), 400),
        ("no host", format!("{get}\r\n"), 400),
        ("two hosts", format!("{get}Host: a\r\nHost: b\r\n\r\n"), 400),
        ("unknown version", "GET /nothing HTTP/3.7\r\nHost: a\r\n\r\n".to_owned(), 400),
        ("no version", "GET /nothing\r\n\r\n".to_owned(), 400),
        ("not HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(), 400),
    ] {
        let mut client = plane.connect().await;
        client.send(format!("{request}{smuggled}")).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, status, "{what}");
        assert_eq!(client.read_to_close().await, b"", "{what}: nothing after the refusal");
    }
}

#[tokio::test]
async fn h_10_a_head_that_is_too_large_is_told_so_even_while_it_is_being_sent() {
    let plane = Plane::start().await;
    for header in [format!("X: {}\r\n", "a".repeat(64 * 1024)), "X: y\r\n".repeat(101)] {
        let mut client = plane.connect().await;
        let answer = client.request("GET", "/nothing", &header).await;
        assert_eq!(answer.status, 431);
        client.read_to_close().await;
    }
    let mut client = plane.connect().await;
    let answer = client.request("GET", "/nothing", &format!("X: {}\r\n", "a".repeat(12 * 1024))).await;
    assert_eq!(answer.status, 404, "below the limit it is a request like any other");
}

#[tokio::test]
async fn methods_that_files_do_not_have_are_named() {
    let plane = Plane::start().await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"] {
        let mut client = plane.connect().await;
        let answer = client.request(method, "/image/vm/vmlinuz", "Content-Length: 0\r\n").await;
        assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET, HEAD")), "{method}");
    }
    let mut client = plane.connect().await;
    client.send("CONNECT farrier:80 HTTP/1.1\r\nHost: farrier\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 405);
}

#[tokio::test]
async fn http_1_0_is_served_and_closed_unless_it_asks_to_stay() {
    let plane = Plane::start().await;
    let mut client = plane.connect().await;
    client.send("GET /image/vm/vmlinuz HTTP/1.0\r\n\r\n").await;
    assert!(client.answer().await.body == plane.kernel);
    assert_eq!(client.read_to_close().await, b"");
    let mut client = plane.connect().await;
    for _ in 0..3 {
        client.send("HEAD /image/vm/vmlinuz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        let answer = client.answer_to("HEAD").await;
        assert_eq!((answer.status, answer.header("Content-Length")), (200, Some("3000001")));
    }
}
