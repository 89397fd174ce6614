//! The platform an image is made for, and which of an index's platforms fits this machine.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An operating system and processor, in the words of Go's `GOOS` and `GOARCH` (OCI image index, *platform*).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Always `linux` for an image that Moat runs.
    pub os: String,
    /// Such as `amd64` or `arm64`.
    #[serde(rename = "architecture")]
    pub arch: String,
    /// Such as `v7` of `arm`; none where the architecture has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Self {
        let (arch, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self::linux(arch, variant)
    }

    /// `linux` on an architecture.
    pub fn linux(arch: &str, variant: Option<&str>) -> Self {
        Self { os: "linux".into(), arch: arch.into(), variant: variant.map(Into::into) }
    }

    /// How well an image of another platform runs here: the greatest is best, none does not run.
    ///
    /// An `arm` of version 7 runs 7, 6 and 5, the newest first. A missing variant is the plainest one, which every machine of that
    /// architecture runs; `amd64` variants (`v2` to `v4`) are only taken when asked for.
    pub(crate) fn fitness(&self, image: &Self) -> Option<u32> {
        if self.os != image.os || self.arch != image.arch {
            return None;
        }
        let level = |platform: &Self| match (platform.arch.as_str(), platform.variant.as_deref().filter(|variant| !variant.is_empty())) {
            ("arm64", None) => Some(8),
            ("amd64", None) => Some(1),
            ("arm", None) => Some(5),
            (_, None) => Some(0),
            (_, Some(variant)) => variant.strip_prefix('v').unwrap_or(variant).split('.').next().and_then(|number| number.parse().ok()),
        };
        match (level(self), level(image)) {
            (Some(here), Some(there)) => (there <= here).then_some(there + 1),
            _ => (self.variant == image.variant).then_some(1),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.arch)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_platform_that_runs_here_wins() {
        let p = |text: &str| {
            let mut parts = text.split('/');
            Platform { os: parts.next().unwrap().into(), arch: parts.next().unwrap().into(), variant: parts.next().map(Into::into) }
        };
        for (here, offered, want) in [
            ("linux/amd64", "windows/amd64 linux/arm64/v8 linux/amd64", Some(2)),
            ("linux/arm64/v8", "linux/arm64", Some(0)),
            ("linux/arm64", "linux/arm64/v8", Some(0)),
            ("linux/arm/v7", "linux/arm/v5 linux/arm/v7 linux/arm/v6", Some(1)),
            ("linux/arm/v6", "linux/arm/v7 linux/arm/v5", Some(1)),
            ("linux/amd64", "linux/amd64/v3", None),
            ("linux/amd64/v3", "linux/amd64 linux/amd64/v2", Some(1)),
            ("linux/amd64", "linux/amd64/", Some(0)),
            ("linux/amd64", "unknown/unknown", None),
            ("linux/arm", "linux/arm64/v8", None),
        ] {
            let best = offered.split(' ').map(p).enumerate().filter_map(|(i, o)| Some((p(here).fitness(&o)?, i))).max().map(|(_, i)| i);
            assert_eq!(best, want, "{here}: {offered}");
        }
    }
}
