//! DescribeVolumeStatus: whether a volume serves, and with all its replicas.
//!
//! `ok`: served, every wanted replica in sync. `warning`, with `io-performance` `degraded`:
//! served by fewer. `impaired`, `stalled`: its primary's server is away, requests wait.
//! `insufficient-data`: not made yet. Data is never suspect here, so `io-enabled` always passes.

use format::record::Volume;
use model::state::VolumeState;

use super::{Asked, Body, Scope, Zones, form::Form};
use crate::{api::ApiError, health::Health};

const FILTERS: [&str; 13] = [
    "action.code",
    "action.description",
    "action.event-id",
    "availability-zone",
    "event.description",
    "event.event-id",
    "event.event-type",
    "event.not-after",
    "event.not-before",
    "volume-status.details-name",
    "volume-status.details-status",
    "volume-status.status",
    "availability-zone-id",
];

pub fn describe(scope: &Scope<'_>, form: &mut Form) -> Result<Body, ApiError> {
    let Asked { page, filters, volumes, zones } =
        scope.ask_volumes(form, "DescribeVolumeStatus", &FILTERS)?;
    let found = volumes
        .into_iter()
        .map(|volume| Status::of(scope, volume))
        .filter(|status| filters.accept(|name| status.values(name, &zones)))
        .map(|status| (status.volume.volume.to_string(), status.print_later()));
    let (found, token) = page.cut(found);
    Ok(Box::new(move |xml| {
        xml.list("volumeStatusSet", found, |xml, (volume, status, details, instances)| {
            xml.value("volumeId", volume.volume);
            xml.value("availabilityZone", &volume.zone);
            xml.optional("availabilityZoneId", zones.id(&volume.zone));
            xml.element("volumeStatus", |xml| {
                xml.value("status", status);
                xml.list("details", details, |xml, (name, status)| {
                    xml.value("name", name);
                    xml.value("status", status);
                });
            });
            xml.element("eventsSet", |_| {});
            xml.element("actionsSet", |_| {});
            xml.list("attachmentStatuses", instances, |xml, instance| {
                xml.value("instanceId", instance);
                xml.value("ioPerformance", details[1].1);
            });
        });
        xml.optional("nextToken", token);
    }))
}

type Details = [(&'static str, &'static str); 3];

struct Status<'a> {
    volume: &'a Volume,
    status: &'static str,
    details: Details,
    instances: Vec<String>,
}

impl<'a> Status<'a> {
    fn of(scope: &Scope<'_>, volume: &'a Volume) -> Self {
        let made = !matches!(volume.state, VolumeState::Creating | VolumeState::Error);
        let health = Health::of(scope.view, volume);
        let (status, enabled, performance, initialized) = match health {
            _ if !made => ("insufficient-data", "not-applicable", "not-applicable", "initializing"),
            None => ("insufficient-data", "not-applicable", "not-applicable", "initializing"),
            Some(health) if !health.primary_up => ("impaired", "passed", "stalled", "completed"),
            Some(health) if health.degraded => ("warning", "passed", "degraded", "completed"),
            Some(_) => ("ok", "passed", "normal", "completed"),
        };
        let instances =
            scope.attachments(volume.volume).iter().map(|a| a.instance.to_string()).collect();
        Self {
            volume,
            status,
            details: [
                ("io-enabled", enabled),
                ("io-performance", performance),
                ("initialization-state", initialized),
            ],
            instances,
        }
    }

    fn values(&self, filter: &str, zones: &Zones) -> Vec<String> {
        let owned = |text: &str| text.to_owned();
        match filter {
            "availability-zone" => vec![self.volume.zone.to_string()],
            "availability-zone-id" => zones.id(&self.volume.zone).map(owned).into_iter().collect(),
            "volume-status.status" => vec![owned(self.status)],
            "volume-status.details-name" => self.details.iter().map(|d| owned(d.0)).collect(),
            "volume-status.details-status" => self.details.iter().map(|d| owned(d.1)).collect(),
            // There are no events and no actions.
            _ => Vec::new(),
        }
    }

    fn print_later(self) -> (Volume, &'static str, Details, Vec<String>) {
        (self.volume.clone(), self.status, self.details, self.instances)
    }
}
