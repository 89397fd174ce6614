//! The small objects inside services.

use super::object::Obj;
use crate::spec::{AllowEntry, BuildFilterSpec, DiskSpec, HeaderSpec, ImageSpec, MaintenanceSpec, RouteSpec, ScalingSpec, Text};
use crate::tables::{ALLOW_ENTRY, BUILD_FILTER, CREDENTIAL, CREDENTIAL_NAME, DISK, HEADER, IMAGE, MAINTENANCE, ROUTE, ROUTE_TYPE, SCALING};
use moat_model::Spanned;

/// The credential's name of `registryCredential` or `creds`.
pub(super) fn credential(obj: Obj<'_, '_>, field: &str) -> Option<Text> {
    obj.below(field, &CREDENTIAL)?.below("fromRegistryCreds", &CREDENTIAL_NAME)?.filled("name")
}

pub(super) fn image(obj: Obj<'_, '_>) -> Option<ImageSpec> {
    Some(ImageSpec { url: obj.filled("url")?, credential: credential(obj, "creds") })
}

pub(super) fn image_of(obj: Obj<'_, '_>) -> Option<ImageSpec> {
    image(obj.below("image", &IMAGE)?)
}

pub(super) fn allow_list(obj: Obj<'_, '_>) -> Option<Spanned<Vec<AllowEntry>>> {
    let node = obj.get("ipAllowList")?;
    node.items()?;
    let entries = obj
        .list("ipAllowList", &ALLOW_ENTRY)
        .filter_map(|(_, entry)| Some(AllowEntry { source: entry.filled("source")?, description: entry.filled("description") }))
        .collect();
    Some(Spanned::new(entries, node.span))
}

pub(super) fn maintenance(obj: Obj<'_, '_>) -> Option<Spanned<MaintenanceSpec>> {
    let below = obj.below("maintenanceMode", &MAINTENANCE)?;
    let spec = MaintenanceSpec { enabled: below.boolean("enabled").is_some_and(|enabled| enabled.value), uri: below.filled("uri") };
    Some(Spanned::new(spec, below.span()))
}

pub(super) fn scaling(obj: Obj<'_, '_>) -> Option<Spanned<ScalingSpec>> {
    let below = obj.below("scaling", &SCALING)?;
    let spec = ScalingSpec {
        min: below.int("minInstances", 1, 100)?.value,
        max: below.int("maxInstances", 1, 100)?.value,
        memory_percent: below.int("targetMemoryPercent", 1, 90).map(|percent| percent.value),
        cpu_percent: below.int("targetCPUPercent", 1, 90).map(|percent| percent.value),
    };
    Some(Spanned::new(spec, below.span()))
}

pub(super) fn build_filter(obj: Obj<'_, '_>) -> Option<Spanned<BuildFilterSpec>> {
    let below = obj.below("buildFilter", &BUILD_FILTER)?;
    let spec = BuildFilterSpec { paths: below.texts("paths"), ignored_paths: below.texts("ignoredPaths") };
    Some(Spanned::new(spec, below.span()))
}

pub(super) fn disk(obj: Obj<'_, '_>) -> Option<Spanned<DiskSpec>> {
    let below = obj.below("disk", &DISK)?;
    let spec = DiskSpec {
        name: below.filled("name")?,
        mount_path: below.filled("mountPath")?,
        size_gb: match below.get("sizeGB") {
            None => 10,
            Some(_) => below.int("sizeGB", 1, 65_536)?.value,
        },
    };
    Some(Spanned::new(spec, below.span()))
}

pub(super) fn headers(obj: Obj<'_, '_>) -> Vec<HeaderSpec> {
    obj.list("headers", &HEADER)
        .filter_map(|(_, header)| Some(HeaderSpec { path: header.text("path")?, name: header.text("name")?, value: header.text("value")? }))
        .collect()
}

pub(super) fn routes(obj: Obj<'_, '_>) -> Vec<RouteSpec> {
    obj.list("routes", &ROUTE)
        .filter_map(|(_, route)| {
            Some(RouteSpec {
                redirect: route.word("type", &ROUTE_TYPE)?.value == "redirect",
                source: route.text("source")?,
                destination: route.text("destination")?,
            })
        })
        .collect()
}
