//! How much an image may ask of this machine.

/// Upper bounds for what one image may hold. Each is checked while the content flows, never after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a manifest or an index. The distribution specification asks registries to accept 4 MiB.
    pub manifest_bytes: u64,
    /// Bytes of an image config.
    pub config_bytes: u64,
    /// Layers of an image; overlayfs takes 500.
    pub layers: usize,
    /// Entries of one layer.
    pub layer_entries: u64,
    /// Unpacked bytes of one layer, its tar headers and padding included.
    pub layer_bytes: u64,
    /// Unpacked bytes of all layers of an image that are not yet in the store.
    pub image_bytes: u64,
    /// Unpacked bytes for each compressed byte, looked at once a layer has grown past [`Limits::ratio_from_bytes`].
    pub ratio: u64,
    /// Unpacked bytes below which any compression is fine (a small file of zeros packs very well).
    pub ratio_from_bytes: u64,
    /// Bytes of an entry's path or of a link's target.
    pub path_bytes: usize,
    /// Bytes of one extended header (long names, PAX records with xattrs).
    pub extended_header_bytes: u64,
}

impl Default for Limits {
    /// Fits the largest images people publish (some 30 GiB) and still ends a bomb within seconds.
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            layers: 400,
            layer_entries: 2_000_000,
            layer_bytes: 64 << 30,
            image_bytes: 128 << 30,
            ratio: 200,
            ratio_from_bytes: 256 << 20,
            path_bytes: 4095,
            extended_header_bytes: 1 << 20,
        }
    }
}
