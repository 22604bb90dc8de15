//! Where an API call goes: by path and by the service its signature names.
//!
//! Decides: which wire form a call speaks, that it is authenticated before anything of it is
//! believed, and how its answer is printed.
//! Does not: know a rule of volumes; change state; read a clock.
//! Invariants: pure functions of their arguments; no call reaches a [`Command`] without a
//! verified signature.

use model::limits::API_BODY_BYTES_MAX;

use crate::{
    api::{ApiError, Caller, Command, Done, View},
    ec2,
    http::{HttpRequest, HttpResponse},
    native,
    sigv4::{self, Claim, Fault},
    sts,
};

/// What became of a request.
#[derive(Debug)]
pub enum Received {
    /// Answered from the view alone: a read, or a refusal.
    Answer(HttpResponse),
    /// To be carried out by the rules; the answer is printed by `render`.
    Command { caller: Caller, command: Command, render: Render },
}

/// How the answer to a command is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Render(Answer);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Ec2(ec2::Shape),
    Native,
}

impl Render {
    /// `view` is the view after the command, with the request id of the call.
    pub fn render(self, view: &View<'_>, result: Result<Done, ApiError>) -> HttpResponse {
        match (self.0, result) {
            (Answer::Ec2(shape), Ok(done)) => shape.print(view, done),
            (Answer::Ec2(_), Err(error)) => ec2::failure(view, &error),
            (Answer::Native, Ok(done)) => native::print(view, &done),
            (Answer::Native, Err(error)) => native::failure(view, &error),
        }
    }
}

/// Reads one request. Never panics, whatever the bytes.
pub fn receive(view: &View<'_>, request: &HttpRequest) -> Received {
    if request.path == "/v1" || request.path.starts_with("/v1/") {
        receive_native(view, request)
            .unwrap_or_else(|error| Received::Answer(native::failure(view, &error)))
    } else if request.path == "/" || request.path.is_empty() {
        receive_query(view, request)
    } else {
        let error = ApiError {
            status: 404,
            code: "InvalidAction",
            message: "There is nothing at this path; EC2 and STS calls go to /".to_owned(),
        };
        Received::Answer(ec2::failure(view, &error))
    }
}

fn receive_native(view: &View<'_>, request: &HttpRequest) -> Result<Received, ApiError> {
    check_size(request)?;
    let route = native::find(&request.method, &request.path)?;
    if let Some(answer) = native::receive_from_anyone(view, route.endpoint) {
        return Ok(Received::Answer(answer));
    }
    let caller = Claim::parse(request)
        .and_then(|claim| sigv4::verify(view, request, &claim, &["pliant", "ec2"]))
        .map_err(|fault| refusal(&fault))?;
    Ok(match native::receive(view, &caller, &route, request)? {
        native::Call::Answered(answer) => Received::Answer(answer),
        native::Call::Command(command) => {
            Received::Command { caller, command, render: Render(Answer::Native) }
        }
    })
}

/// EC2 and STS share a path; the signature's scope tells them apart.
fn receive_query(view: &View<'_>, request: &HttpRequest) -> Received {
    let claim = Claim::parse(request);
    if claim.as_ref().is_ok_and(|claim| claim.service() == "sts") {
        let answer =
            receive_sts(view, request, claim).unwrap_or_else(|error| sts::failure(view, &error));
        return Received::Answer(answer);
    }
    receive_ec2(view, request, claim)
        .unwrap_or_else(|error| Received::Answer(ec2::failure(view, &error)))
}

fn receive_ec2(
    view: &View<'_>,
    request: &HttpRequest,
    claim: Result<Claim, Fault>,
) -> Result<Received, ApiError> {
    check_query_form(request)?;
    let caller = claim
        .and_then(|claim| sigv4::verify(view, request, &claim, &["ec2"]))
        .map_err(|fault| refusal(&fault))?;
    Ok(match ec2::receive(view, &caller, request)? {
        ec2::Call::Answered(answer) => Received::Answer(answer),
        ec2::Call::Command(command, shape) => {
            Received::Command { caller, command, render: Render(Answer::Ec2(shape)) }
        }
    })
}

fn receive_sts(
    view: &View<'_>,
    request: &HttpRequest,
    claim: Result<Claim, Fault>,
) -> Result<HttpResponse, ApiError> {
    check_query_form(request)?;
    let caller = claim
        .and_then(|claim| sigv4::verify(view, request, &claim, &["sts"]))
        .map_err(|fault| sts_refusal(&fault))?;
    sts::receive(view, &caller, request)
}

fn check_query_form(request: &HttpRequest) -> Result<(), ApiError> {
    if !matches!(request.method.as_str(), "GET" | "POST") {
        return Err(ApiError {
            status: 405,
            code: "MethodNotAllowed",
            message: "EC2 and STS calls are POST or GET".to_owned(),
        });
    }
    check_size(request)
}

fn check_size(request: &HttpRequest) -> Result<(), ApiError> {
    let most = request.body.len().max(request.query.len());
    if request.oversized || most > API_BODY_BYTES_MAX {
        return Err(ApiError {
            status: 413,
            code: "RequestEntityTooLarge",
            message: format!("A request may carry {API_BODY_BYTES_MAX} bytes"),
        });
    }
    Ok(())
}

/// EC2 says AuthFailure for a wrong signature as for an unknown key.
fn refusal(fault: &Fault) -> ApiError {
    let code = match fault {
        Fault::Missing => "MissingAuthenticationToken",
        Fault::Incomplete(_) => "IncompleteSignature",
        Fault::Service(_) => "InvalidAction",
        Fault::Expired => "RequestExpired",
        Fault::UnknownKey | Fault::WrongSignature | Fault::Payload | Fault::SessionToken => {
            "AuthFailure"
        }
    };
    ApiError::new(code, fault.to_string())
}

fn sts_refusal(fault: &Fault) -> ApiError {
    match fault {
        Fault::UnknownKey | Fault::SessionToken => ApiError {
            status: 403,
            code: "InvalidClientTokenId",
            message: "The security token included in the request is invalid.".to_owned(),
        },
        Fault::WrongSignature => ApiError::new("SignatureDoesNotMatch", fault.to_string()),
        _ => refusal(fault),
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
