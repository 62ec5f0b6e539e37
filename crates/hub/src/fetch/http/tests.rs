//! Answers as bytes: what is understood, what is refused, and limits at the limit and one past it.

use tokio::io::AsyncWriteExt;

use super::*;

/// The head that a client makes of `answer`, or the code of its fault.
async fn head(method: Method, answer: &[u8]) -> Result<Head, &'static str> {
    let (io, mut host) = tokio::io::duplex(1 << 20);
    host.write_all(answer).await.expect("it fits");
    let mut connection = Connection { io: Box::new(io), rest: Vec::new(), body_left: 0, reusable: true };
    let address = "http://x".parse().expect("an address");
    let options = FetchOptions::default();
    // The other side stays open for the request and ends when nothing more is to come.
    host.shutdown().await.expect("it ends");
    let head = connection.request(&address, method, "/", None, &options).await;
    head.map_err(|fault| fault.code())
}

#[tokio::test]
async fn answers_are_read_or_refused() {
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Ok(5)),
        ("HTTP/1.0 206 Partial\r\ncontent-length:  7 \r\n\r\n", Ok(7)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", Ok(5)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", Err("bad_answer")),
        ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", Err("bad_answer")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n", Err("bad_answer")),
        ("HTTP/1.1 200 OK\r\n\r\n", Err("bad_answer")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Err("bad_answer")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Encoding: br\r\n\r\n", Err("encoded")),
        ("HTTP/1.1 301 Moved\r\nContent-Length: 0\r\nLocation: /\r\n\r\n", Err("redirected")),
        ("HTTP/1.1 101 Switching\r\n\r\n", Err("bad_answer")),
        ("SSH-2.0-x\r\n\r\n", Err("bad_answer")),
        ("HTTP/1.1 200 OK\r\nContent-Le", Err("broken")),
        ("", Err("broken")),
    ] {
        let got = head(Method::Get, answer.as_bytes()).await;
        assert_eq!(got.map(|head| head.length.unwrap_or_default()), expected, "{answer}");
    }
    let of_head = head(Method::Head, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await;
    assert_eq!(of_head.map(|head| head.length), Ok(Some(5)));
}

#[tokio::test]
async fn heads_are_bounded() {
    let long = |bytes: usize| {
        let (start, end) = ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ", "\r\n\r\n");
        format!("{start}{}{end}", "x".repeat(bytes - start.len() - end.len()))
    };
    let many = |headers: usize| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{}\r\n", "A: b\r\n".repeat(headers - 1))
    };
    let interim = |answers: usize| {
        format!(
            "{}HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 103 Hints\r\n\r\n".repeat(answers)
        )
    };
    for (at_limit, past) in [
        (long(HEAD_BYTES_MAX), long(HEAD_BYTES_MAX + 1)),
        (many(HEADERS_MAX), many(HEADERS_MAX + 1)),
        (interim(INTERIM_ANSWERS_MAX), interim(INTERIM_ANSWERS_MAX + 1)),
    ] {
        assert!(head(Method::Get, at_limit.as_bytes()).await.is_ok());
        assert_eq!(head(Method::Get, past.as_bytes()).await.err(), Some("bad_answer"));
    }
}
