//! What callers send: the JSON bodies, each turned into a command.

use std::collections::BTreeMap;

use model::{
    id::{InstanceId, VolumeId},
    units::{Gib, Iops, MibPerSec},
};
use serde::Deserialize;

use crate::api::{self, ApiError, CommandKind, ZoneChoice};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    zone: Option<String>,
    size_gib: Option<u32>,
    volume_type: Option<String>,
    iops: Option<u32>,
    throughput_mib: Option<u32>,
    stripes: Option<u32>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    client_token: Option<String>,
}

impl CreateVolume {
    pub fn command(self) -> CommandKind {
        CommandKind::CreateVolume(api::CreateVolume {
            zone: self.zone.map_or(ZoneChoice::Missing, ZoneChoice::Name),
            size: self.size_gib.map(Gib::new),
            volume_type: self.volume_type,
            iops: self.iops.map(Iops::new),
            throughput: self.throughput_mib.map(MibPerSec::new),
            multi_attach: false,
            encrypted: false,
            kms_key_id: None,
            snapshot_id: None,
            stripes: self.stripes,
            tags: self.tags,
            client_token: self.client_token,
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModifyVolume {
    size_gib: Option<u32>,
    volume_type: Option<String>,
    iops: Option<u32>,
    throughput_mib: Option<u32>,
    stripes: Option<u32>,
    zone: Option<String>,
    #[serde(default)]
    pub dry_run: bool,
}

impl ModifyVolume {
    pub fn command(self, volume: VolumeId) -> CommandKind {
        CommandKind::ModifyVolume(api::ModifyVolume {
            volume: Some(volume),
            size: self.size_gib.map(Gib::new),
            volume_type: self.volume_type,
            iops: self.iops.map(Iops::new),
            throughput: self.throughput_mib.map(MibPerSec::new),
            multi_attach: None,
            zone: self.zone,
            stripes: self.stripes,
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    volume_id: String,
    instance_id: String,
    device: String,
    /// Also make a kernel block device on the node.
    #[serde(default)]
    kernel_device: bool,
}

impl Attach {
    pub fn command(self) -> Result<CommandKind, ApiError> {
        Ok(CommandKind::AttachVolume(api::AttachVolume {
            volume: volume_id(&self.volume_id)?,
            instance: instance_id(&self.instance_id)?,
            device: self.device,
            kernel_device: self.kernel_device,
        }))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    volume_id: String,
    instance_id: Option<String>,
    #[serde(default)]
    force: bool,
}

impl Detach {
    pub fn command(self) -> Result<CommandKind, ApiError> {
        Ok(CommandKind::DetachVolume(api::DetachVolume {
            volume: volume_id(&self.volume_id)?,
            instance: self.instance_id.as_deref().map(instance_id).transpose()?,
            device: None,
            force: self.force,
        }))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateAccount {
    pub name: String,
}

pub fn volume_id(text: &str) -> Result<VolumeId, ApiError> {
    text.parse().map_err(|_| malformed("InvalidVolumeID.Malformed", text, VolumeId::EXPECTED))
}

fn instance_id(text: &str) -> Result<InstanceId, ApiError> {
    text.parse().map_err(|_| malformed("InvalidInstanceID.Malformed", text, InstanceId::EXPECTED))
}

fn malformed(code: &'static str, text: &str, expected: &str) -> ApiError {
    let shown: String = text.chars().take(100).collect();
    ApiError::new(code, format!("Invalid id: \"{shown}\" (expecting {expected})"))
}
