//! Which endpoint a method and a path name.

use crate::api::ApiError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    Volumes,
    CreateVolume,
    Volume,
    DeleteVolume,
    ModifyVolume,
    Modifications,
    ScrubVolume,
    Scrub,
    Attachments,
    Attach,
    Detach,
    Servers,
    CordonServer,
    UncordonServer,
    DrainServer,
    Nodes,
    Instances,
    Zones,
    Accounts,
    CreateAccount,
    Caller,
    Health,
    OpenApi,
}

/// Paths as the OpenAPI document writes them.
pub const ROUTES: [(&str, &str, Endpoint); 23] = [
    ("GET", "/v1/volumes", Endpoint::Volumes),
    ("POST", "/v1/volumes", Endpoint::CreateVolume),
    ("GET", "/v1/volumes/{volume_id}", Endpoint::Volume),
    ("DELETE", "/v1/volumes/{volume_id}", Endpoint::DeleteVolume),
    ("POST", "/v1/volumes/{volume_id}/modify", Endpoint::ModifyVolume),
    ("GET", "/v1/volumes/{volume_id}/modifications", Endpoint::Modifications),
    ("POST", "/v1/volumes/{volume_id}/scrub", Endpoint::ScrubVolume),
    ("GET", "/v1/volumes/{volume_id}/scrub", Endpoint::Scrub),
    ("GET", "/v1/attachments", Endpoint::Attachments),
    ("POST", "/v1/attachments", Endpoint::Attach),
    ("POST", "/v1/attachments/detach", Endpoint::Detach),
    ("GET", "/v1/servers", Endpoint::Servers),
    ("POST", "/v1/servers/{server}/cordon", Endpoint::CordonServer),
    ("POST", "/v1/servers/{server}/uncordon", Endpoint::UncordonServer),
    ("POST", "/v1/servers/{server}/drain", Endpoint::DrainServer),
    ("GET", "/v1/nodes", Endpoint::Nodes),
    ("GET", "/v1/instances", Endpoint::Instances),
    ("GET", "/v1/zones", Endpoint::Zones),
    ("GET", "/v1/accounts", Endpoint::Accounts),
    ("POST", "/v1/accounts", Endpoint::CreateAccount),
    ("GET", "/v1/caller", Endpoint::Caller),
    ("GET", "/v1/health", Endpoint::Health),
    ("GET", "/v1/openapi.json", Endpoint::OpenApi),
];

/// An endpoint, and the id in its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route<'a> {
    pub endpoint: Endpoint,
    pub id: Option<&'a str>,
}

pub fn find<'a>(method: &str, path: &'a str) -> Result<Route<'a>, ApiError> {
    let mut path_known = false;
    for (route_method, pattern, endpoint) in ROUTES {
        if let Some(id) = fits(pattern, path) {
            path_known = true;
            if route_method == method {
                return Ok(Route { endpoint, id });
            }
        }
    }
    let shown: String = path.chars().take(100).collect();
    Err(if path_known {
        ApiError {
            status: 405,
            code: "MethodNotAllowed",
            message: format!("{shown} does not take this method; see /v1/openapi.json"),
        }
    } else {
        ApiError {
            status: 404,
            code: "NotFound",
            message: format!("There is nothing at {shown}; see /v1/openapi.json"),
        }
    })
}

/// `None`: the path does not fit. Else the segment at the pattern's `{…}`, where it has one.
fn fits<'a>(pattern: &str, path: &'a str) -> Option<Option<&'a str>> {
    let mut id = None;
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(id),
            (Some(w), Some(g)) if w.starts_with('{') && !g.is_empty() => id = Some(g),
            (Some(w), Some(g)) if w == g => {}
            _ => return None,
        }
    }
}
