//! The native JSON wire form, under `/v1`: what EC2's names cannot say, and plain words for the
//! rest. `openapi.json` beside this file describes it and is served with it.
//!
//! Decides: which endpoint a path names, what its JSON says, what a caller is shown.
//! Does not: change anything; know a rule of volumes.
//! Invariants: a caller is shown only what its account owns, the root account the fleet as well;
//! a key that is not known is refused.

mod asks;
mod fleet;
mod routes;
mod shown;

use model::{id::VolumeId, state::Duty};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

pub use routes::{Endpoint, Route, find};

use crate::{
    api::{ApiError, Caller, Command, CommandKind, Done, View},
    http::{HttpRequest, HttpResponse},
    sigv4::query_pairs,
};

const OPENAPI: &str = include_str!("openapi.json");

/// A call, understood.
#[derive(Debug)]
pub enum Call {
    /// A read, with its answer.
    Answered(HttpResponse),
    Command(Command),
}

/// `None`: the endpoint asks who calls.
pub fn receive_from_anyone(view: &View<'_>, endpoint: Endpoint) -> Option<HttpResponse> {
    match endpoint {
        Endpoint::Health => Some(success(view, &shown::health(view))),
        Endpoint::OpenApi => Some(response(view, 200, OPENAPI.into())),
        _ => None,
    }
}

pub fn receive(
    view: &View<'_>,
    caller: &Caller,
    route: &Route<'_>,
    request: &HttpRequest,
) -> Result<Call, ApiError> {
    let is_roots = matches!(
        route.endpoint,
        Endpoint::Servers
            | Endpoint::CordonServer
            | Endpoint::UncordonServer
            | Endpoint::DrainServer
            | Endpoint::Accounts
            | Endpoint::CreateAccount
    );
    if is_roots && !caller.root {
        return Err(ApiError::new(
            "UnauthorizedOperation",
            "Only the root account may see and change the fleet, and make accounts",
        ));
    }
    check_query(request)?;
    if let Some(command) = command(route, request)? {
        return Ok(Call::Command(command));
    }
    Ok(Call::Answered(read(view, caller, route)?))
}

/// No endpoint takes parameters in the query; a signature may stand there.
fn check_query(request: &HttpRequest) -> Result<(), ApiError> {
    let pairs = query_pairs(&request.query);
    match pairs.iter().find(|(name, _)| !name.starts_with(b"X-Amz-")) {
        None => Ok(()),
        Some((name, _)) => {
            let name: String = String::from_utf8_lossy(name).chars().take(100).collect();
            let message = format!("The parameter {name} is not recognized");
            Err(ApiError::new("UnknownParameter", message))
        }
    }
}

fn command(route: &Route<'_>, request: &HttpRequest) -> Result<Option<Command>, ApiError> {
    let kind = match route.endpoint {
        Endpoint::CreateVolume => body::<asks::CreateVolume>(request)?.command(),
        Endpoint::DeleteVolume => CommandKind::DeleteVolume { volume: volume_of(route)? },
        Endpoint::ModifyVolume => {
            let ask: asks::ModifyVolume = body(request)?;
            let dry_run = ask.dry_run;
            return Ok(Some(Command { dry_run, kind: ask.command(volume_of(route)?) }));
        }
        Endpoint::ScrubVolume => CommandKind::ScrubVolume { volume: volume_of(route)? },
        Endpoint::Attach => body::<asks::Attach>(request)?.command()?,
        Endpoint::Detach => body::<asks::Detach>(request)?.command()?,
        Endpoint::CordonServer => duty(route, Duty::Cordoned),
        Endpoint::UncordonServer => duty(route, Duty::Serving),
        Endpoint::DrainServer => duty(route, Duty::Draining),
        Endpoint::CreateAccount => {
            CommandKind::CreateAccount { name: body::<asks::CreateAccount>(request)?.name }
        }
        _ => return Ok(None),
    };
    Ok(Some(Command { dry_run: false, kind }))
}

fn duty(route: &Route<'_>, duty: Duty) -> CommandKind {
    let server = route.id.expect("the endpoint's path holds an id").to_owned();
    CommandKind::SetDuty { server, duty }
}

fn read(view: &View<'_>, caller: &Caller, route: &Route<'_>) -> Result<HttpResponse, ApiError> {
    let state = view.state;
    Ok(match route.endpoint {
        Endpoint::Volumes => {
            let volumes = shown::own_volumes(view, caller);
            let volumes: Vec<_> = volumes.map(|v| shown::Volume::of(view, v)).collect();
            success(view, &json!({ "volumes": volumes }))
        }
        Endpoint::Volume => {
            let volume = own_volume(view, caller, route)?;
            success(view, &shown::Volume::of(view, volume))
        }
        Endpoint::Modifications => {
            let id = own_volume(view, caller, route)?.volume;
            let all = state.modifications.range((id, 0)..=(id, u32::MAX));
            let modifications: Vec<_> = all.map(|(_, m)| shown::Modification::of(m)).collect();
            success(view, &json!({ "modifications": modifications }))
        }
        Endpoint::Scrub => {
            let volume = own_volume(view, caller, route)?;
            let scrub = view.live.groups.get(&volume.group).and_then(|g| g.scrub.as_ref());
            let Some(scrub) = scrub else {
                let id = volume.volume;
                let text = format!("No scrub of '{id}' is known; POST here begins one");
                return Err(ApiError::new("Scrub.NotFound", text));
            };
            success(view, &shown::scrub(view, scrub))
        }
        Endpoint::Attachments => {
            let own = state.attachments.values().filter(|a| a.account == caller.account);
            let attachments: Vec<_> = own.map(|a| shown::Attachment::of(view, a)).collect();
            success(view, &json!({ "attachments": attachments }))
        }
        Endpoint::Servers => success(view, &json!({ "servers": fleet::servers(view) })),
        Endpoint::Nodes => success(view, &json!({ "nodes": shown::nodes(view, caller) })),
        Endpoint::Instances => {
            let own = state.instances.values().filter(|i| i.account == caller.account);
            let instances: Vec<_> = own.map(|i| shown::Instance::of(view, i)).collect();
            success(view, &json!({ "instances": instances }))
        }
        Endpoint::Zones => success(view, &shown::zones(view)),
        Endpoint::Accounts => success(view, &json!({ "accounts": shown::accounts(view) })),
        Endpoint::Caller => success(view, &shown::caller(caller)),
        Endpoint::Health
        | Endpoint::OpenApi
        | Endpoint::CreateVolume
        | Endpoint::DeleteVolume
        | Endpoint::ModifyVolume
        | Endpoint::ScrubVolume
        | Endpoint::Attach
        | Endpoint::Detach
        | Endpoint::CordonServer
        | Endpoint::UncordonServer
        | Endpoint::DrainServer
        | Endpoint::CreateAccount => unreachable!("answered before"),
    })
}

fn own_volume<'a>(
    view: &View<'a>,
    caller: &Caller,
    route: &Route<'_>,
) -> Result<&'a format::record::Volume, ApiError> {
    let id = volume_of(route)?;
    shown::own_volumes(view, caller).find(|v| v.volume == id).ok_or_else(|| {
        ApiError::new("InvalidVolume.NotFound", format!("The volume '{id}' does not exist."))
    })
}

fn volume_of(route: &Route<'_>) -> Result<VolumeId, ApiError> {
    asks::volume_id(route.id.expect("the endpoint's path holds an id"))
}

fn body<T: DeserializeOwned>(request: &HttpRequest) -> Result<T, ApiError> {
    // A list would be taken for the fields in their order, which are nobody's business.
    if request.body.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| *b != b'{') {
        let text = "The body is not what this call takes: it must be a JSON object";
        return Err(ApiError::new("ValidationError", text));
    }
    serde_json::from_slice(&request.body).map_err(|error| {
        let text: String = error.to_string().chars().take(300).collect();
        ApiError::new("ValidationError", format!("The body is not what this call takes: {text}"))
    })
}

/// Prints what a command did.
pub fn print(view: &View<'_>, done: &Done) -> HttpResponse {
    match done {
        Done::Volume(volume) => success(view, &shown::Volume::of(view, volume)),
        Done::Modification(m) => success(view, &shown::Modification::of(m)),
        Done::Attachment(a) => success(view, &shown::Attachment::of(view, a)),
        Done::Account { account, key } => success(view, &shown::new_account(account, key)),
        Done::Scrub(s) => success(view, &shown::scrub(view, s)),
        Done::Server(server) => success(view, &fleet::server(view, server)),
        Done::Nothing => success(view, &json!({})),
    }
}

pub fn failure(view: &View<'_>, error: &ApiError) -> HttpResponse {
    // EC2 says 400 for what does not exist; here the usual number serves.
    let status = if error.code.ends_with("NotFound") { 404 } else { error.status };
    let value = json!({ "error": { "code": error.code, "message": error.message } });
    response(view, status, value.to_string().into_bytes())
}

fn success(view: &View<'_>, value: &impl Serialize) -> HttpResponse {
    let body = serde_json::to_vec(value).expect("the shapes have text keys and no failing parts");
    response(view, 200, body)
}

fn response(view: &View<'_>, status: u16, body: Vec<u8>) -> HttpResponse {
    HttpResponse {
        status,
        content_type: "application/json",
        headers: vec![("x-amzn-requestid".to_owned(), view.request_id.to_owned())],
        body,
    }
}

#[cfg(test)]
mod tests;
