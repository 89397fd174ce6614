//! Manifests and indexes, OCI and Docker schema 2, read with nothing believed.
//!
//! Source: OCI image specification 1.1 (*manifest*, *image index*), Docker *image manifest version 2, schema 2*.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Digest;
use crate::platform::Platform;

/// A pointer to content: what kind, which digest, how long.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

/// What a manifest endpoint, or a blob of a layout, can be.
#[derive(Debug)]
pub(crate) enum Document {
    /// A list of manifests, for several platforms.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest(Manifest),
}

/// One image: its config and its layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    artifact_type: String,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

const INDEXES: [&str; 2] = ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] = ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] = ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

impl Document {
    /// Reads a document; `served_as` is the media type its server or descriptor gave. The error is a reason.
    pub(crate) fn parse(bytes: &[u8], served_as: &str) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| format!("its manifest can't be read: {error}"))?;
        if raw.schema_version == Some(1) || served_as.contains("manifest.v1+") && served_as.contains("docker") {
            return Err("its manifest is of Docker's schema 1, which has no trustworthy digests and is no longer supported; push it again with a current tool".into());
        }
        if raw.schema_version != Some(2) {
            return Err("its manifest has no `schemaVersion` 2".into());
        }
        let known = |kind: &str| INDEXES.contains(&kind) || MANIFESTS.contains(&kind);
        // Specified against confusion of an index with a manifest: the document's own word is to match the one it was served with.
        if known(served_as) && known(&raw.media_type) && served_as != raw.media_type {
            return Err(format!("its manifest says `{}` and is served as `{served_as}`", raw.media_type));
        }
        let kind = if known(&raw.media_type) { raw.media_type.as_str() } else { served_as };
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) if !MANIFESTS.contains(&kind) => Ok(Self::Index(manifests)),
            (None, Some(config), layers) if !INDEXES.contains(&kind) => {
                // An image of no layers may have `null`.
                let layers = layers.unwrap_or_default();
                if !CONFIGS.contains(&config.media_type.as_str()) {
                    let what = if raw.artifact_type.is_empty() { config.media_type } else { raw.artifact_type };
                    return Err(format!("it is an artifact of the kind `{what}`, not an image"));
                }
                if let Some(layer) = layers.iter().find(|layer| !is_layer(&layer.media_type)) {
                    return Err(format!("its layer `{}` is of the unknown kind `{}`", layer.digest, layer.media_type));
                }
                Ok(Self::Manifest(Manifest { config, layers }))
            }
            _ => Err("it is neither a manifest nor an index".into()),
        }
    }
}

/// Whether a media type is a tar layer. How it is compressed is seen from its first bytes.
fn is_layer(kind: &str) -> bool {
    let plain = kind.strip_suffix("+gzip").or_else(|| kind.strip_suffix("+zstd")).unwrap_or(kind);
    matches!(
        plain,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    )
}

/// The entry of an index that runs best on a platform; of two that are alike the first. The error lists what there is.
pub(crate) fn choose<'a>(entries: &'a [Descriptor], wanted: &Platform) -> Result<&'a Descriptor, Vec<Platform>> {
    let runs = |entry: &Descriptor| entry.platform.as_ref().and_then(|platform| wanted.fitness(platform));
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in entries {
        if let Some(fitness) = runs(entry)
            && best.is_none_or(|(most, _)| fitness > most)
        {
            best = Some((fitness, entry));
        }
    }
    // An index of one image without a platform: the image's config says it.
    let single = || match entries {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    };
    best.map(|(_, entry)| entry).or_else(single).ok_or_else(|| {
        let real = |platform: &&Platform| platform.os != "unknown";
        entries.iter().filter_map(|entry| entry.platform.as_ref()).filter(real).cloned().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn only_images_and_indexes_are_read() {
        let d = |kind: &str| format!(r#"{{"mediaType":"{kind}","digest":"{D}","size":1}}"#);
        let oci = d(CONFIGS[0]);
        let layer = d("application/vnd.oci.image.layer.v1.tar+zstd");
        for (text, served_as, says) in [
            (format!(r#"{{"schemaVersion":2,"config":{oci},"layers":[{layer}]}}"#), MANIFESTS[0], ""),
            (format!(r#"{{"schemaVersion":2,"config":{oci},"layers":[{layer}]}}"#), "application/json", ""),
            (format!(r#"{{"schemaVersion":2,"mediaType":"{}","config":{oci},"layers":[]}}"#, MANIFESTS[0]), MANIFESTS[1], "is served as"),
            (format!(r#"{{"schemaVersion":2,"config":{oci},"layers":[]}}"#), INDEXES[0], "neither"),
            (r#"{"schemaVersion":2,"manifests":[]}"#.into(), INDEXES[1], ""),
            (format!(r#"{{"schemaVersion":2,"manifests":[],"config":{oci},"layers":[]}}"#), INDEXES[1], "neither"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.into(), "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
            (
                format!(r#"{{"schemaVersion":2,"config":{},"layers":[]}}"#, d("application/vnd.cncf.helm.config.v1+json")),
                MANIFESTS[0],
                "helm",
            ),
            (format!(r#"{{"schemaVersion":2,"config":{oci},"layers":[{}]}}"#, d("application/wasm")), MANIFESTS[0], "wasm"),
            (format!(r#"{{"schemaVersion":2,"config":{oci},"layers":null,"annotations":null}}"#), MANIFESTS[0], ""),
            ("{}".into(), "", "schemaVersion"),
            ("<html>".into(), "text/html", "can't be read"),
            (r#"{"schemaVersion":2,"manifests":[{"digest":"sha512:00","size":1}]}"#.into(), "", "sha512"),
            (format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{D}","size":-1}}]}}"#), "", "can't be read"),
        ] {
            match Document::parse(text.as_bytes(), served_as) {
                Ok(_) => assert_eq!(says, "", "{text}"),
                Err(reason) => assert!(!says.is_empty() && reason.contains(says), "{text}: {reason}"),
            }
        }
    }
}
