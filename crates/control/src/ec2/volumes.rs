//! DescribeVolumes, and how a volume and an attachment print.

use format::record::{Attachment, Parameters, Volume};
use model::volume::VolumeType;

use super::{Asked, Body, Scope, Zones, form::Form, xml::Xml};
use crate::api::ApiError;

const FILTERS: [&str; 23] = [
    "attachment.attach-time",
    "attachment.delete-on-termination",
    "attachment.device",
    "attachment.instance-id",
    "attachment.status",
    "availability-zone",
    "availability-zone-id",
    "create-time",
    "encrypted",
    "fast-restored",
    "multi-attach-enabled",
    "operator.managed",
    "operator.principal",
    "size",
    "snapshot-id",
    "status",
    "tag:",
    "tag-key",
    "tag-value",
    "volume-id",
    "volume-type",
    "iops",
    "throughput",
];

pub fn describe(scope: &Scope<'_>, form: &mut Form) -> Result<Body, ApiError> {
    let Asked { page, filters, volumes, zones } =
        scope.ask_volumes(form, "DescribeVolumes", &FILTERS)?;
    let found = volumes
        .into_iter()
        .map(|volume| Shown { volume, attachments: scope.attachments(volume.volume) })
        .filter(|shown| filters.accept(|name| shown.values(name, &zones)))
        .map(|shown| (shown.volume.volume.to_string(), shown.to_owned()));
    let (found, token) = page.cut(found);
    Ok(Box::new(move |xml| {
        xml.list("volumeSet", &found, |xml, (volume, attachments)| {
            print(xml, &zones, volume, attachments);
        });
        xml.optional("nextToken", token);
    }))
}

struct Shown<'a> {
    volume: &'a Volume,
    attachments: Vec<&'a Attachment>,
}

impl Shown<'_> {
    fn to_owned(&self) -> (Volume, Vec<Attachment>) {
        (self.volume.clone(), self.attachments.iter().map(|a| (*a).clone()).collect())
    }

    fn values(&self, filter: &str, zones: &Zones) -> Vec<String> {
        let volume = self.volume;
        let of_attachments = |value: &dyn Fn(&Attachment) -> String| {
            self.attachments.iter().map(|a| value(a)).collect()
        };
        if let Some(key) = filter.strip_prefix("tag:") {
            return volume.tags.get(key).cloned().into_iter().collect();
        }
        let (iops, throughput) = shown_rate(&volume.parameters);
        match filter {
            "attachment.attach-time" => of_attachments(&|a| a.attached.to_string()),
            "attachment.delete-on-termination" => {
                of_attachments(&|a| a.delete_on_termination.to_string())
            }
            "attachment.device" => of_attachments(&|a| a.device.clone()),
            "attachment.instance-id" => of_attachments(&|a| a.instance.to_string()),
            "attachment.status" => of_attachments(&|a| a.state.to_string()),
            "availability-zone" => vec![volume.zone.to_string()],
            "availability-zone-id" => {
                zones.id(&volume.zone).map(str::to_owned).into_iter().collect()
            }
            "create-time" => vec![volume.created.to_string()],
            "encrypted" | "fast-restored" | "operator.managed" => vec!["false".to_owned()],
            "multi-attach-enabled" => vec![volume.multi_attach.to_string()],
            "size" => vec![volume.parameters.size.to_string()],
            "snapshot-id" => vec![String::new()],
            "status" => vec![volume.state.to_string()],
            "tag-key" => volume.tags.keys().cloned().collect(),
            "tag-value" => volume.tags.values().cloned().collect(),
            "volume-id" => vec![volume.volume.to_string()],
            "volume-type" => vec![volume.parameters.volume_type.to_string()],
            "iops" => iops.map(|n| n.to_string()).into_iter().collect(),
            "throughput" => throughput.map(|n| n.to_string()).into_iter().collect(),
            // Nothing here is managed by a service provider.
            _ => Vec::new(),
        }
    }
}

fn print(xml: &mut Xml, zones: &Zones, volume: &Volume, attachments: &[Attachment]) {
    print_head(xml, zones, volume);
    xml.list("attachmentSet", attachments, print_attachment);
    // Clients tell no tags from an empty list of them, as EC2 does.
    if !volume.tags.is_empty() {
        print_tags(xml, &volume.tags);
    }
    print_tail(xml, volume);
}

/// CreateVolume's answer: there are no attachments, and always tags.
pub fn print_created(xml: &mut Xml, zones: &Zones, volume: &Volume) {
    print_head(xml, zones, volume);
    print_tags(xml, &volume.tags);
    print_tail(xml, volume);
}

fn print_head(xml: &mut Xml, zones: &Zones, volume: &Volume) {
    xml.value("volumeId", volume.volume);
    xml.value("size", volume.parameters.size);
    xml.value("snapshotId", "");
    xml.value("availabilityZone", &volume.zone);
    xml.optional("availabilityZoneId", zones.id(&volume.zone));
    xml.value("status", volume.state);
    xml.value("createTime", volume.created);
}

fn print_tail(xml: &mut Xml, volume: &Volume) {
    let (iops, throughput) = shown_rate(&volume.parameters);
    xml.value("volumeType", volume.parameters.volume_type);
    xml.optional("iops", iops);
    xml.optional("throughput", throughput);
    xml.value("encrypted", false);
    xml.value("multiAttachEnabled", volume.multi_attach);
    xml.element("operator", |xml| xml.value("managed", false));
}

pub fn print_attachment(xml: &mut Xml, attachment: &Attachment) {
    xml.value("volumeId", attachment.volume);
    xml.value("instanceId", attachment.instance);
    xml.value("device", &attachment.device);
    xml.value("status", attachment.state);
    xml.value("attachTime", attachment.attached);
    xml.value("deleteOnTermination", attachment.delete_on_termination);
}

pub fn print_tags(xml: &mut Xml, tags: &std::collections::BTreeMap<String, String>) {
    xml.list("tagSet", tags, |xml, (key, value)| {
        xml.value("key", key);
        xml.value("value", value);
    });
}

/// IOPS and throughput as EC2 shows them: IOPS not of HDD types, throughput of gp3 alone.
pub fn shown_rate(parameters: &Parameters) -> (Option<u32>, Option<u32>) {
    let rate = parameters.rate;
    match parameters.volume_type {
        VolumeType::Gp3 => (Some(rate.iops.get()), Some(rate.throughput.get())),
        VolumeType::Gp2 | VolumeType::Io1 | VolumeType::Io2 => (Some(rate.iops.get()), None),
        VolumeType::St1 | VolumeType::Sc1 | VolumeType::Standard => (None, None),
    }
}
