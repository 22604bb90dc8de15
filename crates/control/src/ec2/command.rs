//! EC2 calls that change something, decoded. What they may say is known here; what they may do is
//! decided by the rules.

use std::collections::{BTreeMap, btree_map::Entry};

use model::units::{Gib, Iops, MibPerSec};

use super::{
    form::{Form, quoted},
    ids,
};
use crate::api::{
    ApiError, AttachVolume, Command, CommandKind, CreateVolume, DetachVolume, ModifyVolume,
    Resource, ZoneChoice,
};

/// Resources that one CreateTags or DeleteTags may name.
const RESOURCES_MAX: usize = 1000;

/// `None`: the action is no command.
pub fn decode(action: &str, form: &mut Form) -> Option<Result<Command, ApiError>> {
    let decode: fn(&mut Form) -> Result<CommandKind, ApiError> = match action {
        "CreateVolume" => create_volume,
        "DeleteVolume" => delete_volume,
        "ModifyVolume" => modify_volume,
        "AttachVolume" => attach_volume,
        "DetachVolume" => detach_volume,
        "CreateTags" => create_tags,
        "DeleteTags" => delete_tags,
        _ => return None,
    };
    Some(whole(form, decode))
}

fn whole(
    form: &mut Form,
    decode: fn(&mut Form) -> Result<CommandKind, ApiError>,
) -> Result<Command, ApiError> {
    let dry_run = form.flag("DryRun")?.unwrap_or(false);
    let kind = decode(form)?;
    form.finish()?;
    Ok(Command { dry_run, kind })
}

fn create_volume(form: &mut Form) -> Result<CommandKind, ApiError> {
    for name in ["OutpostArn", "VolumeInitializationRate", "Operator.Principal"] {
        if form.take(name).is_some() {
            return Err(ApiError::new(
                "UnsupportedOperation",
                format!("The parameter {name} is not supported"),
            ));
        }
    }
    let zone = match (form.take("AvailabilityZone"), form.take("AvailabilityZoneId")) {
        (None, None) => ZoneChoice::Missing,
        (Some(name), None) => ZoneChoice::Name(name),
        (None, Some(id)) => ZoneChoice::Id(id),
        (Some(_), Some(_)) => ZoneChoice::Both,
    };
    Ok(CommandKind::CreateVolume(CreateVolume {
        zone,
        size: form.integer("Size")?.map(Gib::new),
        volume_type: form.take("VolumeType"),
        iops: form.integer("Iops")?.map(Iops::new),
        throughput: form.integer("Throughput")?.map(MibPerSec::new),
        multi_attach: form.flag("MultiAttachEnabled")?.unwrap_or(false),
        encrypted: form.flag("Encrypted")?.unwrap_or(false),
        kms_key_id: form.take("KmsKeyId"),
        snapshot_id: form.take("SnapshotId").filter(|id| !id.is_empty()),
        stripes: None,
        tags: tag_specifications(form)?,
        client_token: form.take("ClientToken"),
    }))
}

fn tag_specifications(form: &mut Form) -> Result<BTreeMap<String, String>, ApiError> {
    let mut tags = BTreeMap::new();
    for mut specification in form.structures("TagSpecification") {
        let resource_type = specification.required("ResourceType")?;
        if resource_type != "volume" {
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!(
                    "'{}' is not a valid taggable resource type for this operation. Expected: \
                     volume.",
                    quoted(&resource_type)
                ),
            ));
        }
        take_tags(&mut specification, &mut tags)?;
        specification.finish()?;
    }
    Ok(tags)
}

fn take_tags(form: &mut Form, tags: &mut BTreeMap<String, String>) -> Result<(), ApiError> {
    for (key, value) in tag_structures(form)? {
        insert_tag(tags, key, value.unwrap_or_default())?;
    }
    Ok(())
}

fn insert_tag<V>(tags: &mut BTreeMap<String, V>, key: String, value: V) -> Result<(), ApiError> {
    match tags.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(value);
            Ok(())
        }
        Entry::Occupied(entry) => Err(ApiError::new(
            "InvalidParameterValue",
            format!("Duplicate tag key '{}' specified.", quoted(entry.key())),
        )),
    }
}

fn tag_structures(form: &mut Form) -> Result<Vec<(String, Option<String>)>, ApiError> {
    form.structures("Tag")
        .into_iter()
        .map(|mut tag| {
            let key = tag.required("Key")?;
            let value = tag.take("Value");
            tag.finish()?;
            Ok((key, value))
        })
        .collect()
}

fn delete_volume(form: &mut Form) -> Result<CommandKind, ApiError> {
    Ok(CommandKind::DeleteVolume { volume: ids::volume(&form.required("VolumeId")?)? })
}

fn modify_volume(form: &mut Form) -> Result<CommandKind, ApiError> {
    Ok(CommandKind::ModifyVolume(ModifyVolume {
        volume: Some(ids::volume(&form.required("VolumeId")?)?),
        size: form.integer("Size")?.map(Gib::new),
        volume_type: form.take("VolumeType"),
        iops: form.integer("Iops")?.map(Iops::new),
        throughput: form.integer("Throughput")?.map(MibPerSec::new),
        multi_attach: form.flag("MultiAttachEnabled")?,
        zone: None,
        stripes: None,
    }))
}

fn attach_volume(form: &mut Form) -> Result<CommandKind, ApiError> {
    if form.integer::<u32>("EbsCardIndex")?.is_some_and(|index| index != 0) {
        return Err(ApiError::new(
            "InvalidParameterValue",
            "The parameter EbsCardIndex must be 0: an instance has one EBS card",
        ));
    }
    let (volume, instance, device) =
        (form.required("VolumeId")?, form.required("InstanceId")?, form.required("Device")?);
    Ok(CommandKind::AttachVolume(AttachVolume {
        volume: ids::volume(&volume)?,
        instance: ids::instance(&instance)?,
        device,
        kernel_device: false,
    }))
}

fn detach_volume(form: &mut Form) -> Result<CommandKind, ApiError> {
    Ok(CommandKind::DetachVolume(DetachVolume {
        volume: ids::volume(&form.required("VolumeId")?)?,
        instance: form.take("InstanceId").map(|id| ids::instance(&id)).transpose()?,
        device: form.take("Device").filter(|device| !device.is_empty()),
        force: form.flag("Force")?.unwrap_or(false),
    }))
}

fn create_tags(form: &mut Form) -> Result<CommandKind, ApiError> {
    let resources = resources(form)?;
    let mut tags = BTreeMap::new();
    take_tags(form, &mut tags)?;
    if tags.is_empty() {
        return Err(form.missing("Tag.1.Key"));
    }
    Ok(CommandKind::CreateTags { resources, tags })
}

fn delete_tags(form: &mut Form) -> Result<CommandKind, ApiError> {
    let resources = resources(form)?;
    let mut tags = BTreeMap::new();
    for (key, value) in tag_structures(form)? {
        insert_tag(&mut tags, key, value)?;
    }
    let tags = if tags.is_empty() { None } else { Some(tags) };
    Ok(CommandKind::DeleteTags { resources, tags })
}

fn resources(form: &mut Form) -> Result<Vec<Resource>, ApiError> {
    let texts = form.list("ResourceId");
    if texts.is_empty() {
        return Err(form.missing("ResourceId.1"));
    }
    if texts.len() > RESOURCES_MAX {
        return Err(ApiError::new(
            "InvalidParameterValue",
            format!("A call may name {RESOURCES_MAX} resources"),
        ));
    }
    texts.iter().map(|text| ids::resource(text)).collect()
}
