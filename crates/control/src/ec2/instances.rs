//! DescribeInstances: the instances that node managers registered.
//!
//! An instance is `running` while its node manager is connected, else `stopped`: volumes stay
//! attached, nothing is served.

use std::collections::BTreeSet;

use format::record::{Attachment, Instance};
use model::id::InstanceId;

use super::{
    Body, Scope, Zones, end_of_checks,
    filter::Filters,
    form::Form,
    ids,
    page::{Bounds, Page},
    volumes::print_tags,
    xml::Xml,
};
use crate::api::ApiError;

/// Not a type of Amazon's: clients that look limits up by type take their defaults.
const INSTANCE_TYPE: &str = "pliant.node";
const FILTERS: [&str; 19] = [
    "availability-zone",
    "availability-zone-id",
    "block-device-mapping.attach-time",
    "block-device-mapping.delete-on-termination",
    "block-device-mapping.device-name",
    "block-device-mapping.status",
    "block-device-mapping.volume-id",
    "instance-id",
    "instance-state-code",
    "instance-state-name",
    "instance-type",
    "launch-time",
    "owner-id",
    "placement.availability-zone",
    "private-dns-name",
    "reservation-id",
    "tag:",
    "tag-key",
    "tag-value",
];

pub fn describe(scope: &Scope<'_>, form: &mut Form) -> Result<Body, ApiError> {
    let bounds = Bounds { min: 5, max: 1000, clamp: false };
    let page = Page::take(form, scope.caller.account, "DescribeInstances", bounds)?;
    let dry_run = form.flag("DryRun")?.unwrap_or(false);
    form.flag("IncludeManagedResources")?;
    let filters = Filters::take(form, &FILTERS)?;
    let ids = form.list("InstanceId");
    page.refuse_with_ids(&ids, "instancesSet")?;
    let chosen = chosen(scope, &ids)?;
    end_of_checks(form, dry_run)?;
    let zones = Zones::of(scope.view);
    let found = chosen
        .into_iter()
        .map(|instance| Shown {
            up: scope.view.nodes_up.contains(&instance.node),
            instance: instance.clone(),
            attachments: scope.attachments_to(instance.instance).into_iter().cloned().collect(),
        })
        .filter(|shown| filters.accept(|name| shown.values(name, &zones)))
        .map(|shown| (shown.instance.instance.to_string(), shown));
    let (found, token) = page.cut(found);
    Ok(Box::new(move |xml| {
        xml.list("reservationSet", &found, |xml, shown| {
            xml.value("reservationId", shown.reservation());
            xml.value("ownerId", shown.instance.account);
            xml.element("groupSet", |_| {});
            xml.list("instancesSet", [shown], |xml, shown| shown.print(xml, &zones));
        });
        xml.optional("nextToken", token);
    }))
}

fn chosen<'a>(scope: &Scope<'a>, texts: &[String]) -> Result<Vec<&'a Instance>, ApiError> {
    if texts.is_empty() {
        return Ok(scope.instances().collect());
    }
    let ids: Result<BTreeSet<InstanceId>, ApiError> =
        texts.iter().map(|text| ids::instance(text)).collect();
    let mut ids = ids?;
    let found: Vec<&Instance> =
        scope.instances().filter(|instance| ids.remove(&instance.instance)).collect();
    if ids.is_empty() { Ok(found) } else { Err(ids::instance_not_found(&Vec::from_iter(ids))) }
}

struct Shown {
    instance: Instance,
    up: bool,
    attachments: Vec<Attachment>,
}

impl Shown {
    /// EC2's code and name.
    fn state(&self) -> (u8, &'static str) {
        if self.up { (16, "running") } else { (80, "stopped") }
    }

    /// Every instance is a reservation of its own.
    fn reservation(&self) -> String {
        self.instance.instance.to_string().replacen(InstanceId::PREFIX, "r-", 1)
    }

    fn values(&self, filter: &str, zones: &Zones) -> Vec<String> {
        let instance = &self.instance;
        let of_attachments =
            |value: &dyn Fn(&Attachment) -> String| self.attachments.iter().map(value).collect();
        if let Some(key) = filter.strip_prefix("tag:") {
            return instance.tags.get(key).cloned().into_iter().collect();
        }
        match filter {
            "availability-zone" | "placement.availability-zone" => vec![instance.zone.to_string()],
            "availability-zone-id" => {
                zones.id(&instance.zone).map(str::to_owned).into_iter().collect()
            }
            "block-device-mapping.attach-time" => of_attachments(&|a| a.attached.to_string()),
            "block-device-mapping.delete-on-termination" => {
                of_attachments(&|a| a.delete_on_termination.to_string())
            }
            "block-device-mapping.device-name" => of_attachments(&|a| a.device.clone()),
            "block-device-mapping.status" => of_attachments(&|a| a.state.to_string()),
            "block-device-mapping.volume-id" => of_attachments(&|a| a.volume.to_string()),
            "instance-id" => vec![instance.instance.to_string()],
            "instance-state-code" => vec![self.state().0.to_string()],
            "instance-state-name" => vec![self.state().1.to_owned()],
            "instance-type" => vec![INSTANCE_TYPE.to_owned()],
            "launch-time" => vec![instance.registered.to_string()],
            "owner-id" => vec![instance.account.to_string()],
            "private-dns-name" => vec![instance.node.to_string()],
            "reservation-id" => vec![self.reservation()],
            "tag-key" => instance.tags.keys().cloned().collect(),
            "tag-value" => instance.tags.values().cloned().collect(),
            _ => Vec::new(),
        }
    }

    fn print(&self, xml: &mut Xml, zones: &Zones) {
        let instance = &self.instance;
        let (code, name) = self.state();
        xml.value("instanceId", instance.instance);
        xml.element("instanceState", |xml| {
            xml.value("code", code);
            xml.value("name", name);
        });
        xml.value("instanceType", INSTANCE_TYPE);
        xml.value("launchTime", instance.registered);
        xml.element("placement", |xml| {
            xml.value("availabilityZone", &instance.zone);
            xml.optional("availabilityZoneId", zones.id(&instance.zone));
            xml.value("tenancy", "default");
        });
        xml.value("privateDnsName", &instance.node);
        xml.list("blockDeviceMapping", &self.attachments, |xml, attachment| {
            xml.value("deviceName", &attachment.device);
            xml.element("ebs", |xml| {
                xml.value("volumeId", attachment.volume);
                xml.value("status", attachment.state);
                xml.value("attachTime", attachment.attached);
                xml.value("deleteOnTermination", attachment.delete_on_termination);
            });
        });
        if !instance.tags.is_empty() {
            print_tags(xml, &instance.tags);
        }
    }
}
