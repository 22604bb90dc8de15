//! DescribeVolumeStatus: whether a volume serves, and with all its replicas.
//!
//! `ok`: served, every wanted replica in sync. `warning`, with `io-performance` `degraded`:
//! served by fewer. `impaired`, `stalled`: its primary is away, requests wait. `impaired` with
//! `io-enabled` `failed`: no replica is left that holds what was acknowledged. Each of these has an
//! event that says which replica is wrong. `insufficient-data`: not made yet.

use format::record::Volume;
use model::state::VolumeState;

use super::{Asked, Body, Scope, Zones, form::Form, xml::Xml};
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
        .map(|status| (status.volume.volume.to_string(), status));
    let (found, token) = page.cut(found);
    Ok(Box::new(move |xml| {
        xml.list("volumeStatusSet", found, |xml, status| status.print(xml, &zones));
        xml.optional("nextToken", token);
    }))
}

type Details = [(&'static str, &'static str); 3];

struct Status {
    volume: Volume,
    status: &'static str,
    details: Details,
    event: Option<Event>,
    instances: Vec<String>,
}

struct Event {
    /// The same as long as the same is wrong.
    id: String,
    kind: &'static str,
    description: String,
}

impl Event {
    fn of(volume: &Volume, health: &Health) -> Option<Self> {
        let kind = match health {
            _ if health.is_lost() => "potential-data-inconsistency",
            Health { primary_up: false, .. } => "io-performance:stalled",
            Health { degraded: true, .. } => "io-performance:degraded",
            _ => return None,
        };
        let description = match health.faults.as_slice() {
            [] => "A replica is being filled".to_owned(),
            faults => faults.join("; "),
        };
        let id = volume.volume.to_string().replace("vol-", "evol-");
        Some(Self { id, kind, description })
    }
}

impl Status {
    fn of(scope: &Scope<'_>, volume: &Volume) -> Self {
        let made = !matches!(volume.state, VolumeState::Creating | VolumeState::Error);
        let health = Health::of(scope.view, volume).filter(|_| made);
        let (status, enabled, performance, initialized) = match &health {
            None => ("insufficient-data", "not-applicable", "not-applicable", "initializing"),
            Some(health) if health.is_lost() => ("impaired", "failed", "stalled", "completed"),
            Some(health) if !health.primary_up => ("impaired", "passed", "stalled", "completed"),
            Some(health) if health.degraded => ("warning", "passed", "degraded", "completed"),
            Some(_) => ("ok", "passed", "normal", "completed"),
        };
        let instances =
            scope.attachments(volume.volume).iter().map(|a| a.instance.to_string()).collect();
        Self {
            volume: volume.clone(),
            status,
            details: [
                ("io-enabled", enabled),
                ("io-performance", performance),
                ("initialization-state", initialized),
            ],
            event: health.and_then(|health| Event::of(volume, &health)),
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
            "event.event-id" => self.event.iter().map(|e| e.id.clone()).collect(),
            "event.event-type" => self.event.iter().map(|e| owned(e.kind)).collect(),
            "event.description" => self.event.iter().map(|e| e.description.clone()).collect(),
            // An event has no times, and there are no actions.
            _ => Vec::new(),
        }
    }

    fn print(&self, xml: &mut Xml, zones: &Zones) {
        xml.value("volumeId", self.volume.volume);
        xml.value("availabilityZone", &self.volume.zone);
        xml.optional("availabilityZoneId", zones.id(&self.volume.zone));
        xml.element("volumeStatus", |xml| {
            xml.value("status", self.status);
            xml.list("details", self.details, |xml, (name, status)| {
                xml.value("name", name);
                xml.value("status", status);
            });
        });
        xml.list("eventsSet", &self.event, |xml, event| {
            xml.value("description", &event.description);
            xml.value("eventId", &event.id);
            xml.value("eventType", event.kind);
        });
        xml.element("actionsSet", |_| {});
        xml.list("attachmentStatuses", &self.instances, |xml, instance| {
            xml.value("instanceId", instance);
            xml.value("ioPerformance", self.details[1].1);
        });
    }
}
