//! Ids as callers write them, and EC2's complaints about them.

use model::id::{InstanceId, VolumeId};

use super::form::{invalid_value, quoted};
use crate::api::{ApiError, Resource};

pub fn volume(text: &str) -> Result<VolumeId, ApiError> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    match text.strip_prefix(VolumeId::PREFIX) {
        None => Err(invalid_value(text, "volumeId", "'vol-...'")),
        // The short form of ids from before 2016: well formed, never made here.
        Some(hex) if hex.len() == 8 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Err(volume_not_found(&[text]))
        }
        Some(_) => Err(ApiError::new(
            "InvalidVolumeID.Malformed",
            format!("Invalid id: \"{}\" (expecting {})", quoted(text), VolumeId::EXPECTED),
        )),
    }
}

pub fn instance(text: &str) -> Result<InstanceId, ApiError> {
    text.parse().map_err(|_| {
        ApiError::new(
            "InvalidInstanceID.Malformed",
            format!("Invalid id: \"{}\" (expecting {})", quoted(text), InstanceId::EXPECTED),
        )
    })
}

/// What a tag can be put on.
pub fn resource(text: &str) -> Result<Resource, ApiError> {
    if text.starts_with(VolumeId::PREFIX) {
        volume(text).map(Resource::Volume)
    } else if text.starts_with(InstanceId::PREFIX) {
        instance(text).map(Resource::Instance)
    } else {
        Err(ApiError::new("InvalidID", format!("The ID '{}' is not valid", quoted(text))))
    }
}

/// Names every id: clients take them out of the text and ask again without them.
pub fn volume_not_found(ids: &[impl ToString]) -> ApiError {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let message = match ids.as_slice() {
        [one] => format!("The volume '{one}' does not exist."),
        several => format!("The volumes '{}' do not exist.", several.join(", ")),
    };
    ApiError::new("InvalidVolume.NotFound", message)
}

pub fn instance_not_found(ids: &[InstanceId]) -> ApiError {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let message = match ids.as_slice() {
        [one] => format!("The instance ID '{one}' does not exist"),
        several => format!("The instance IDs '{}' do not exist", several.join(", ")),
    };
    ApiError::new("InvalidInstanceID.NotFound", message)
}
