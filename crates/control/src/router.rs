//! Where an API call goes: by path and by the service its signature names.
//!
//! Decides: which wire form a call speaks, that it is authenticated before anything of it is
//! believed, and how its answer is printed.
//! Does not: know a rule of volumes; change state; read a clock.
//! Invariants: pure functions of their arguments; no call reaches a [`Command`] without a
//! verified signature.

use crate::{
    api::{ApiError, Caller, Command, Done, View},
    http::{HttpRequest, HttpResponse},
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
pub struct Render {}

impl Render {
    /// `view` is the view after the command, with the request id of the call.
    pub fn render(self, view: &View<'_>, result: Result<Done, ApiError>) -> HttpResponse {
        let _ = (view, result);
        HttpResponse { status: 500, content_type: "text/xml", headers: vec![], body: vec![] }
    }
}

/// Reads one request. Never panics, whatever the bytes.
pub fn receive(view: &View<'_>, request: &HttpRequest) -> Received {
    let _ = (view, request);
    Received::Answer(HttpResponse {
        status: 400,
        content_type: "text/xml",
        headers: vec![],
        body: vec![],
    })
}
