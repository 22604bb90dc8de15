//! A client of the native API (`/v1`), for the command line and whatever else runs beside it.
//!
//! Decides: where the service is and as whom to call it; how a refusal reads.
//! Does not: retry what changes something.

mod environment;
mod sign;

use std::{fmt, path::Path, time::Duration};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::clock;
use environment::Settings;
use sign::{Request, Signer};

const CALL_LIMIT: Duration = Duration::from_secs(70);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// The service said no, or that it cannot now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub message: String,
}

/// The service was not reached or broke off. A change may or may not have been made.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach the service at {endpoint}; is it running? (`pliant up --dir DIR`)")]
pub struct Unreachable {
    pub endpoint: String,
    #[source]
    source: ureq::Error,
}

#[derive(Debug, Clone)]
pub struct Client {
    agent: ureq::Agent,
    endpoint: String,
    host: String,
    signer: Signer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Get,
    Post,
    Delete,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        })
    }
}

impl Client {
    /// A client of the service that `pliant up --dir DIR` runs.
    pub fn from_dir(dir: &Path) -> anyhow::Result<Self> {
        Self::new(Settings::of_dir(dir)?)
    }

    /// A client of the service that the environment names.
    pub fn from_env() -> anyhow::Result<Self> {
        Self::new(Settings::of_env()?)
    }

    fn new(settings: Settings) -> anyhow::Result<Self> {
        let endpoint = settings.endpoint.trim_end_matches('/').to_owned();
        let Some(host) = endpoint.strip_prefix("http://") else {
            bail!("the endpoint '{endpoint}' is not of the form http://HOST:PORT");
        };
        if host.is_empty() || host.contains(['/', '?', '#', '@']) {
            bail!("the endpoint '{endpoint}' is not of the form http://HOST:PORT");
        }
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_global(Some(CALL_LIMIT))
            .user_agent(concat!("pliant/", env!("CARGO_PKG_VERSION")))
            .build();
        // HTTP leaves the default port out of the header that is signed.
        let host = host.strip_suffix(":80").unwrap_or(host).to_owned();
        Ok(Self { agent: config.new_agent(), endpoint, host, signer: settings.signer })
    }

    pub fn region(&self) -> &str {
        &self.signer.region
    }

    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::Get, path, None)
    }

    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call(Method::Post, path, Some(body))
    }

    pub fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::Delete, path, None)
    }

    /// Errors are [`Refusal`], [`Unreachable`] or an answer that makes no sense.
    fn call(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-_.~".contains(&b);
        if !path.bytes().all(plain) {
            bail!("'{path}' is not a path of the API");
        }
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let signed = self.signer.headers(Request {
            method: &method.to_string(),
            host: &self.host,
            path,
            body: &body,
            wall: clock::wall(),
        });
        let url = format!("{}{path}", self.endpoint);
        let sent = match method {
            Method::Get => with_headers(self.agent.get(&url), &signed).call(),
            Method::Delete => with_headers(self.agent.delete(&url), &signed).call(),
            Method::Post => with_headers(self.agent.post(&url), &signed)
                .content_type("application/json")
                .send(&body),
        };
        let unreachable = |source| Unreachable { endpoint: self.endpoint.clone(), source };
        let mut response = sent.map_err(unreachable)?;
        let status = response.status().as_u16();
        let limited = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let answer = limited.read_to_vec().map_err(unreachable)?;
        if (200..300).contains(&status) {
            return serde_json::from_slice(&answer)
                .with_context(|| format!("{method} {path}: the answer is not JSON"));
        }
        Err(refusal(status, &answer).into())
    }
}

fn with_headers<B>(
    request: ureq::RequestBuilder<B>,
    headers: &[(&'static str, String)],
) -> ureq::RequestBuilder<B> {
    headers.iter().fold(request, |request, (name, value)| request.header(*name, value))
}

/// The API's own refusals are JSON; those of its door are text.
fn refusal(status: u16, answer: &[u8]) -> Refusal {
    let parsed: Value = serde_json::from_slice(answer).unwrap_or_default();
    let error = parsed.get("error").unwrap_or(&parsed);
    let text = |name: &str| error.get(name).and_then(Value::as_str).map(str::to_owned);
    let code = text("code").unwrap_or_else(|| format!("HTTP {status}"));
    let message = text("message").unwrap_or_else(|| {
        let raw: String = String::from_utf8_lossy(answer).trim().chars().take(300).collect();
        if raw.is_empty() { "refused without a reason".to_owned() } else { raw }
    });
    Refusal { status, code, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_as_the_service_wrote_it() {
        let check = |body: &str, code: &str, message: &str| {
            let refusal = refusal(400, body.as_bytes());
            assert_eq!((refusal.code.as_str(), refusal.message.as_str()), (code, message));
        };
        check(r#"{"code":"A","message":"b"}"#, "A", "b");
        check(r#"{"error":{"code":"A","message":"b"}}"#, "A", "b");
        check("too many calls\n", "HTTP 400", "too many calls");
        check("", "HTTP 400", "refused without a reason");
    }
}
