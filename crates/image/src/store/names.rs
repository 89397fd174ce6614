//! References and the images they stand for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ImageId, Lease, Name, Store, entries, read_json};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::platform::Platform;
use crate::reference::Reference;

/// `names/HEX.json`, where HEX is the SHA-256 of the reference's normal form.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NameRecord {
    pub(crate) reference: Reference,
    pub(crate) image: ImageId,
    /// Of the index and the manifest.
    digests: Vec<Digest>,
    /// That was asked for.
    platform: Platform,
    /// A registry gave it. A record of before this was written down counts as loaded, and so stays until it is pulled again.
    #[serde(default)]
    pub(super) pulled: bool,
}

impl NameRecord {
    /// Of the index and the manifest.
    pub(crate) fn digests(&self) -> Vec<Digest> {
        self.digests.clone()
    }
}

impl Store {
    /// Gives an image that is there another name.
    pub(crate) fn add_name(&self, lease: &Lease, name: &Name<'_>, image: ImageId) -> Result<(), ImageError> {
        self.write_name(lease, name, image)
    }

    /// The record of a reference: its own, or for a pinned one that of any name of the repository with this digest.
    pub(crate) fn find_name(&self, reference: &Reference, platform: Option<&Platform>) -> Result<Option<NameRecord>, ImageError> {
        let fits = |record: &NameRecord| platform.is_none_or(|platform| record.platform == *platform);
        let own: Option<NameRecord> = read_json(&self.name_path(reference))?;
        let found = match (own.filter(fits), reference.digest()) {
            (None, Some(digest)) => self.names()?.into_iter().find(|record| {
                let same = record.reference.registry() == reference.registry() && record.reference.repository() == reference.repository();
                same && record.digests.contains(&digest) && fits(record)
            }),
            (own, _) => own,
        };
        Ok(found)
    }

    /// The file of a reference's record.
    pub(super) fn name_path(&self, reference: &Reference) -> PathBuf {
        self.root.join("names").join(format!("{}.json", Digest::of(reference.to_string().as_bytes()).hex()))
    }

    pub(super) fn names(&self) -> Result<Vec<NameRecord>, ImageError> {
        let folder = self.root.join("names");
        let mut names = Vec::new();
        for entry in entries(&folder)? {
            names.extend(read_json::<NameRecord>(&folder.join(entry))?);
        }
        Ok(names)
    }

    pub(super) fn write_name(&self, lease: &Lease, name: &Name<'_>, image: ImageId) -> Result<(), ImageError> {
        let Name { reference, digests, platform, pulled } = name;
        let record =
            NameRecord { reference: (*reference).clone(), image, digests: digests.clone(), platform: (*platform).clone(), pulled: *pulled };
        super::write_json(lease, &self.name_path(reference), &record)
    }
}
