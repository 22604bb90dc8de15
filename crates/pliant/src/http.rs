//! HTTP/1.1 as bytes in, bytes out: the API's door.
//!
//! Decides: how much of a machine's memory and time an unknown client may take.
//! Does not: know a path, a header's meaning or an account.
//! Invariants: connections, calls, header bytes, body bytes and every wait are bounded; a client
//! that breaks a bound loses its call or its connection, and nobody else notices.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use control::http::{HttpRequest, HttpResponse};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use model::limits::API_BODY_BYTES_MAX;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 512;
/// Calls handed on and not answered; more are told to come back.
const CALLS_MAX: usize = 256;
const HEADERS_MAX: usize = 100;
/// The request line and all headers. Must hold a presigned URL.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// From the first to the last byte of a head; also how long an idle connection is kept.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
const BODY_LIMIT: Duration = Duration::from_secs(30);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// A connection is closed after this long whatever it does: bounds what a client that does not
/// read its answers can hold.
const CONNECTION_LIMIT: Duration = Duration::from_secs(600);
/// After a failed accept (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const _: () = assert!(CALLS_MAX <= CONNECTIONS_MAX);

/// Serves until dropped. `answer` is asked once per call and gives `None` when it cannot answer.
pub async fn serve<F, A>(listener: TcpListener, answer: F)
where
    F: Fn(HttpRequest) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Option<HttpResponse>> + Send + 'static,
{
    let calls = Arc::new(Semaphore::new(CALLS_MAX));
    let router = Router::new().fallback(move |request: Request| {
        let (answer, calls) = (answer.clone(), Arc::clone(&calls));
        async move { call(request, answer, &calls).await }
    });
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                drop(tokio::spawn(async move {
                    connection(stream, router).await;
                    drop(permit);
                }));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an API connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "API connection");
    }
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(CONNECTION_LIMIT, served).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "API connection"),
    }
}

async fn call<F, A>(request: Request, answer: F, calls: &Semaphore) -> Response
where
    F: Fn(HttpRequest) -> A,
    A: Future<Output = Option<HttpResponse>>,
{
    let Ok(_permit) = calls.try_acquire() else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "too many calls at once; try again");
    };
    let request = match timeout(BODY_LIMIT, read(request)).await {
        Ok(Ok(request)) => request,
        Ok(Err(refusal)) => return refusal,
        Err(_) => return plain(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"),
    };
    let oversized = request.oversized;
    match timeout(ANSWER_LIMIT, answer(request)).await {
        Ok(Some(response)) if oversized => closing(print(response)),
        Ok(Some(response)) => print(response),
        Ok(None) => plain(StatusCode::SERVICE_UNAVAILABLE, "the manager is stopping; try again"),
        Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "no answer in time; try again"),
    }
}

async fn read(request: Request) -> Result<HttpRequest, Response> {
    let (head, body) = request.into_parts();
    let mut headers = Vec::with_capacity(head.headers.len());
    for (name, value) in &head.headers {
        let Ok(value) = std::str::from_utf8(value.as_bytes()) else {
            let text = format!("header '{name}' is not text");
            return Err(plain(StatusCode::BAD_REQUEST, &text));
        };
        headers.push((name.as_str().to_owned(), value.to_owned()));
    }
    let Ok(body) = read_body(body).await else {
        return Err(plain(StatusCode::BAD_REQUEST, "the body breaks off"));
    };
    Ok(HttpRequest {
        method: head.method.as_str().to_owned(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers,
        oversized: body.is_none(),
        body: body.unwrap_or_default(),
    })
}

/// `None`: longer than anybody may send.
async fn read_body(mut body: Body) -> Result<Option<Vec<u8>>, axum::Error> {
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(data) = frame?.into_data() else { continue };
        if bytes.len() + data.len() > API_BODY_BYTES_MAX {
            return Ok(None);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Some(bytes))
}

fn print(answer: HttpResponse) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() =
        StatusCode::from_u16(answer.status).expect("the manager answers with real statuses");
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    for (name, value) in answer.headers {
        match (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value)) {
            (Ok(name), Ok(value)) => drop(headers.append(name, value)),
            _ => tracing::error!(name, "left out a header that HTTP cannot carry"),
        }
    }
    response
}

/// A refusal of the door itself, before anybody who knows more has seen the call.
fn plain(status: StatusCode, text: &str) -> Response {
    let mut response = Response::new(Body::from(format!("{text}\n")));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    closing(response)
}

/// The rest of a refused body is not read, so the connection cannot go on.
fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests;
