//! DescribeAvailabilityZones and DescribeRegions: one region, as configured.

use super::{Body, Scope, Zones, end_of_checks, filter::Filters, form::Form, form::quoted};
use crate::api::ApiError;

const ZONE_FILTERS: [&str; 10] = [
    "group-name",
    "message",
    "opt-in-status",
    "parent-zone-id",
    "parent-zone-name",
    "region-name",
    "state",
    "zone-id",
    "zone-name",
    "zone-type",
];
const REGION_FILTERS: [&str; 3] = ["endpoint", "opt-in-status", "region-name"];

pub fn describe_zones(scope: &Scope<'_>, form: &mut Form) -> Result<Body, ApiError> {
    let dry_run = form.flag("DryRun")?.unwrap_or(false);
    form.flag("AllAvailabilityZones")?;
    let filters = Filters::take(form, &ZONE_FILTERS)?;
    let (names, ids) = (form.list("ZoneName"), form.list("ZoneId"));
    let zones = Zones::of(scope.view);
    let region = scope.view.place.region.clone();
    let known_name = |text: &String| zones.ids.iter().any(|(name, _)| name.as_str() == text);
    let known_id = |text: &String| zones.ids.iter().any(|(_, id)| id == text);
    let unknown = names
        .iter()
        .find(|text| !known_name(text))
        .or_else(|| ids.iter().find(|text| !known_id(text)));
    if let Some(text) = unknown {
        return Err(ApiError::new(
            "InvalidParameterValue",
            format!("Invalid availability zone: [{}]", quoted(text)),
        ));
    }
    end_of_checks(form, dry_run)?;
    let chosen = |name: &str, id: &str| {
        (names.is_empty() || names.iter().any(|n| n == name))
            && (ids.is_empty() || ids.iter().any(|i| i == id))
    };
    let values = |name: &str, id: &str, filter: &str| match filter {
        "group-name" => vec![format!("{region}-1")],
        "opt-in-status" => vec!["opt-in-not-required".to_owned()],
        "region-name" => vec![region.clone()],
        "state" => vec!["available".to_owned()],
        "zone-id" => vec![id.to_owned()],
        "zone-name" => vec![name.to_owned()],
        "zone-type" => vec!["availability-zone".to_owned()],
        _ => Vec::new(),
    };
    let found: Vec<(String, String)> = zones
        .ids
        .iter()
        .map(|(name, id)| (name.to_string(), id.clone()))
        .filter(|(name, id)| chosen(name, id))
        .filter(|(name, id)| filters.accept(|filter| values(name, id, filter)))
        .collect();
    Ok(Box::new(move |xml| {
        xml.list("availabilityZoneInfo", &found, |xml, (name, id)| {
            xml.value("zoneName", name);
            xml.value("zoneId", id);
            xml.value("zoneState", "available");
            xml.value("regionName", &region);
            xml.value("groupName", format!("{region}-1"));
            xml.value("networkBorderGroup", &region);
            xml.value("zoneType", "availability-zone");
            xml.value("optInStatus", "opt-in-not-required");
            xml.element("messageSet", |_| {});
        });
    }))
}

pub fn describe_regions(scope: &Scope<'_>, form: &mut Form) -> Result<Body, ApiError> {
    let dry_run = form.flag("DryRun")?.unwrap_or(false);
    form.flag("AllRegions")?;
    let filters = Filters::take(form, &REGION_FILTERS)?;
    let names = form.list("RegionName");
    let region = scope.view.place.region.clone();
    if let Some(text) = names.iter().find(|name| **name != region) {
        return Err(ApiError::new(
            "InvalidParameterValue",
            format!("Invalid region provided: {}", quoted(text)),
        ));
    }
    end_of_checks(form, dry_run)?;
    // EC2 gives a host without a scheme.
    let endpoint = scope.view.place.endpoint.clone();
    let endpoint = endpoint.split_once("://").map_or(endpoint.as_str(), |(_, host)| host);
    let endpoint = endpoint.trim_end_matches('/').to_owned();
    let shown = filters.accept(|filter| {
        vec![match filter {
            "endpoint" => endpoint.clone(),
            "opt-in-status" => "opt-in-not-required".to_owned(),
            _ => region.clone(),
        }]
    });
    Ok(Box::new(move |xml| {
        xml.list("regionInfo", shown.then_some(()), |xml, ()| {
            xml.value("regionName", &region);
            xml.value("regionEndpoint", &endpoint);
            xml.value("optInStatus", "opt-in-not-required");
        });
    }))
}
