//! Real sockets on loopback; no test waits for a time limit.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Semaphore, mpsc},
};

use super::*;

/// Serves calls with a copy of what came in `text/plain`, and keeps what came.
async fn echo() -> (SocketAddr, Arc<Mutex<Vec<HttpRequest>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let seen: Arc<Mutex<Vec<HttpRequest>>> = Arc::default();
    let keep = Arc::clone(&seen);
    drop(tokio::spawn(serve(listener, move |request: HttpRequest| {
        let body = request.body.clone();
        keep.lock().expect("no panic under the lock").push(request);
        async move {
            let headers = vec![("x-amzn-requestid".to_owned(), "r-1".to_owned())];
            Some(HttpResponse { status: 418, content_type: "text/plain", headers, body })
        }
    })));
    (address, seen)
}

async fn send(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connect");
    stream.write_all(bytes).await.expect("send");
    stream
}

/// One exchange; the request must ask to close the connection, or be one that is refused.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = send(address, bytes).await;
    let mut answer = Vec::new();
    // A refusal may end in a reset when bytes of the request were never read.
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn a_call_arrives_as_sent_and_the_answer_as_given() {
    let (address, seen) = echo().await;
    let answer = exchange(
        address,
        b"POST /a%2Fb/?x=%20&y HTTP/1.1\r\nHost: h:1\r\nX-Odd:  a  b \r\nConnection: close\r\n\
          Content-Length: 4\r\n\r\nbody",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 418 "), "{answer}");
    assert!(answer.contains("\r\nx-amzn-requestid: r-1\r\n"), "{answer}");
    assert!(answer.contains("\r\ncontent-type: text/plain\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nbody"), "{answer}");
    let seen = seen.lock().expect("no panic under the lock");
    let request = &seen[0];
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/a%2Fb/"));
    assert_eq!(request.query, "x=%20&y");
    assert_eq!(request.header("host"), Some("h:1"));
    assert_eq!(request.header("x-odd"), Some("a  b"));
    assert_eq!(request.body, b"body");
}

#[tokio::test]
async fn what_is_no_http_is_refused_before_anybody_sees_it() {
    let (address, seen) = echo().await;
    let no_text = b"GET / HTTP/1.1\r\nHost: h\r\nX-Odd: \xff\xfe\r\n\r\n";
    assert!(exchange(address, no_text).await.starts_with("HTTP/1.1 400 "));
    let headers = "X-Odd: 1\r\n".repeat(HEADERS_MAX + 1);
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
    assert!(exchange(address, many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let long = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(2 * HEAD_BYTES_MAX));
    let answer = exchange(address, long.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert!(exchange(address, b"nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    assert!(seen.lock().expect("no panic under the lock").is_empty());
}

#[tokio::test]
async fn a_body_that_is_too_long_is_not_kept_and_whoever_answers_is_told() {
    let (address, seen) = echo().await;
    let long = "x".repeat(API_BODY_BYTES_MAX + 1);
    let head = "POST / HTTP/1.1\r\nHost: h\r\n";
    let counted = format!("{head}Content-Length: {}\r\n\r\n{long}", long.len());
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{long}", long.len());
    for request in [counted, chunked] {
        let answer = exchange(address, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 418 "), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        let request = seen.lock().expect("no panic under the lock").pop().expect("handed on");
        assert!(request.oversized && request.body.is_empty());
    }
    let most = "x".repeat(API_BODY_BYTES_MAX);
    let whole = format!("{head}Connection: close\r\nContent-Length: {}\r\n\r\n{most}", most.len());
    assert!(exchange(address, whole.as_bytes()).await.starts_with("HTTP/1.1 418 "));
    let request = seen.lock().expect("no panic under the lock").pop().expect("handed on");
    assert!(!request.oversized && request.body.len() == API_BODY_BYTES_MAX);
}

#[tokio::test]
async fn a_client_that_stops_in_the_middle_holds_up_nobody() {
    let (address, seen) = echo().await;
    let half_a_head = send(address, b"GET / HTTP/1.1\r\nHo").await;
    let half_a_body =
        send(address, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nab").await;
    let whole = b"GET /whole HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    assert!(exchange(address, whole).await.starts_with("HTTP/1.1 418 "));
    assert_eq!(seen.lock().expect("no panic under the lock").len(), 1);
    drop((half_a_head, half_a_body));
}

#[tokio::test]
async fn more_calls_than_fit_are_told_to_come_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let gate = Arc::new(Semaphore::new(0));
    let (entered_in, mut entered) = mpsc::channel(CALLS_MAX);
    let closed = Arc::clone(&gate);
    drop(tokio::spawn(serve(listener, move |_| {
        let (gate, entered) = (Arc::clone(&closed), entered_in.clone());
        async move {
            entered.send(()).await.ok()?;
            gate.acquire().await.ok()?.forget();
            let headers = Vec::new();
            Some(HttpResponse { status: 200, content_type: "text/plain", headers, body: vec![] })
        }
    })));
    let call = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let mut waiting = Vec::new();
    for _ in 0..CALLS_MAX {
        waiting.push(send(address, call).await);
        entered.recv().await.expect("the call was handed on");
    }
    assert!(exchange(address, call).await.starts_with("HTTP/1.1 503 "));
    gate.add_permits(CALLS_MAX);
    for mut stream in waiting {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("answered");
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
    }
    gate.add_permits(1);
    assert!(exchange(address, call).await.starts_with("HTTP/1.1 200 "), "room again");
}
