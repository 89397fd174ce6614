//! `x-moat`.

use super::Context;
use super::object::{Obj, text};
use crate::codes::{E0211, E0216};
use crate::report::{Path, quoted};
use crate::spec::MoatSpec;
use crate::tables::{EGRESS, MOAT, PROXY_HEADER, START_ORDER};
use moat_model::{Egress, ProxyHeader, ServiceKind, Spanned, StartOrder};
use std::collections::BTreeSet;

/// Reads `x-moat` of a service.
pub(super) fn moat(obj: Obj<'_, '_>, kind: ServiceKind, path: &Path<'_>, cx: &mut Context<'_>) -> Option<MoatSpec> {
    let below = obj.below("x-moat", &MOAT)?;
    let path = path.key("x-moat");
    for (field, idle, why) in [
        ("allowFrom", !kind.receives(), "receives nothing"),
        ("egress", !kind.sends(), "opens nothing"),
        ("secretFiles", kind.is_datastore(), "runs no program of yours"),
        ("start", kind.is_datastore() || kind == ServiceKind::Cron, "never has several instances"),
        ("proxyProtocol", kind != ServiceKind::Web, "gets no connections of the ingress"),
    ] {
        if idle && let Some((span, path)) = below.place(field, &path) {
            let message = format!("`{field}` has no effect here: a {} {why}", kind.phrase());
            cx.report.say(E0211, span, &path, message, "remove it".to_owned());
        }
    }
    let allow_from = below.get("allowFrom").and_then(|node| node.items()).map(|_| below.texts("allowFrom"));
    let start = below.word("start", &START_ORDER).map(|word| {
        let order = if word.value == "one-by-one" { StartOrder::OneByOne } else { StartOrder::Together };
        Spanned::new(order, word.span)
    });
    let proxy_header = below.word("proxyProtocol", &PROXY_HEADER).map(|word| {
        let version = if word.value == "v1" { ProxyHeader::V1 } else { ProxyHeader::V2 };
        Spanned::new(version, word.span)
    });
    Some(MoatSpec { allow_from, egress: egress(below, &path, cx), secret_files: secret_files(below, &path, cx), start, proxy_header })
}

fn egress(below: Obj<'_, '_>, path: &Path<'_>, cx: &mut Context<'_>) -> Option<Spanned<Egress>> {
    let node = below.get("egress")?;
    let Some(items) = node.items() else {
        let egress = match below.word("egress", &EGRESS)?.as_str() {
            "none" => Egress::None,
            _ => Egress::Internet,
        };
        return Some(Spanned::new(egress, node.span));
    };
    let path = path.key("egress");
    let mut ranges = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        let Some(written) = item.text().filter(|_| !item.is_null()) else { continue };
        let range = written.parse::<ipnet::IpNet>().or_else(|_| written.parse::<std::net::IpAddr>().map(ipnet::IpNet::from));
        match range {
            Ok(range) => {
                ranges.insert(range.trunc());
            }
            Err(_) => cx.report.say(
                E0216,
                item.span,
                &path.item(index),
                format!("{} is no range of addresses", quoted(written)),
                "write CIDR notation, such as `203.0.113.0/24`".to_owned(),
            ),
        }
    }
    Some(Spanned::new(Egress::Ranges(ranges), node.span))
}

fn secret_files(below: Obj<'_, '_>, path: &Path<'_>, cx: &mut Context<'_>) -> Vec<(crate::spec::Text, crate::spec::Text)> {
    let path = path.key("secretFiles");
    let mut files = Vec::new();
    for entry in below.get("secretFiles").and_then(|node| node.entries()).unwrap_or_default() {
        let name = entry.key.as_ref();
        let bad = name.is_empty() || matches!(name, "." | "..") || name.contains(['/', '\0']);
        if bad {
            let message = format!("{} is no file name", quoted(name));
            let help = "write a name without `/`: the file is shown at `/etc/secrets/NAME`".to_owned();
            cx.report.say(E0216, entry.key_span, &path.key(name), message, help);
            continue;
        }
        let Some(source) = text(&entry.value) else { continue };
        if source.starts_with('/') || source.split('/').any(|part| part == "..") || source.trim().is_empty() {
            let message = format!("{} is no path below the blueprint's folder", quoted(&source));
            let help = "write a relative path without `..`".to_owned();
            cx.report.say(E0216, entry.value.span, &path.key(name), message, help);
            continue;
        }
        files.push((Spanned::new(name.to_owned(), entry.key_span), source));
    }
    files
}
