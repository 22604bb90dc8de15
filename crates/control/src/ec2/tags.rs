//! DescribeTags: the tags of every volume and instance of the account.

use super::{
    Body, Scope, end_of_checks,
    filter::Filters,
    form::Form,
    page::{Bounds, Page},
};
use crate::api::ApiError;

const FILTERS: [&str; 5] = ["key", "resource-id", "resource-type", "tag:", "value"];

struct Tag {
    resource: String,
    resource_type: &'static str,
    key: String,
    value: String,
}

pub fn describe(scope: &Scope<'_>, form: &mut Form) -> Result<Body, ApiError> {
    let bounds = Bounds { min: 5, max: 1000, clamp: false };
    let page = Page::take(form, scope.caller.account, "DescribeTags", bounds)?;
    let dry_run = form.flag("DryRun")?.unwrap_or(false);
    let filters = Filters::take(form, &FILTERS)?;
    end_of_checks(form, dry_run)?;
    let of_volumes = scope.volumes().flat_map(|v| tags(v.volume.to_string(), "volume", &v.tags));
    let of_instances =
        scope.instances().flat_map(|i| tags(i.instance.to_string(), "instance", &i.tags));
    // In the order of their ids: instances come before volumes.
    let found = of_instances
        .chain(of_volumes)
        .filter(|tag| filters.accept(|name| tag.values(name)))
        .map(|tag| (format!("{} {}", tag.resource, tag.key), tag));
    let (found, token) = page.cut(found);
    Ok(Box::new(move |xml| {
        xml.list("tagSet", &found, |xml, tag| {
            xml.value("key", &tag.key);
            xml.value("resourceId", &tag.resource);
            xml.value("resourceType", tag.resource_type);
            xml.value("value", &tag.value);
        });
        xml.optional("nextToken", token);
    }))
}

fn tags(
    resource: String,
    resource_type: &'static str,
    tags: &std::collections::BTreeMap<String, String>,
) -> impl Iterator<Item = Tag> {
    tags.iter().map(move |(key, value)| Tag {
        resource: resource.clone(),
        resource_type,
        key: key.clone(),
        value: value.clone(),
    })
}

impl Tag {
    fn values(&self, filter: &str) -> Vec<String> {
        if let Some(key) = filter.strip_prefix("tag:") {
            return if self.key == key { vec![self.value.clone()] } else { Vec::new() };
        }
        vec![match filter {
            "key" => self.key.clone(),
            "resource-id" => self.resource.clone(),
            "resource-type" => self.resource_type.to_owned(),
            _ => self.value.clone(),
        }]
    }
}
