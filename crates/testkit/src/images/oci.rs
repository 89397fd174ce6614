//! The files of an OCI image layout: blobs by digest, configuration, manifest and index (OCI image specification 1.1).

use super::{Compression, Recipe};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

/// A layer that is a blob.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Blob {
    /// Of the blob, with `sha256:` in front.
    pub digest: String,
    /// Of the archive inside.
    pub diff_id: String,
    /// Bytes of the blob.
    pub size: u64,
    /// Media type.
    pub media_type: String,
}

/// Compresses an archive into the blobs of a layout.
pub fn compress(archive: &Path, blobs: &Path, how: Compression) -> io::Result<Blob> {
    let (program, arguments, media_type): (_, &[&str], _) = match how {
        Compression::Gzip => ("gzip", &["--no-name", "--stdout", "-4"], "application/vnd.oci.image.layer.v1.tar+gzip"),
        Compression::Zstd => ("zstd", &["--quiet", "--stdout", "-3", "--no-check"], "application/vnd.oci.image.layer.v1.tar+zstd"),
    };
    let unnamed = blobs.join("unnamed");
    let status = Command::new(program)
        .args(arguments)
        .stdin(File::open(archive)?)
        .stdout(File::create(&unnamed)?)
        .stderr(Stdio::inherit())
        .status()
        .map_err(|error| io::Error::new(error.kind(), format!("`{program}`: {error}")))?;
    if !status.success() {
        return Err(io::Error::other(format!("`{program}` failed ({status})")));
    }
    let digest = sha256_of(&unnamed)?;
    let size = fs::metadata(&unnamed)?.len();
    fs::rename(&unnamed, blobs.join(&digest))?;
    Ok(Blob {
        digest: format!("sha256:{digest}"),
        diff_id: format!("sha256:{}", sha256_of(archive)?),
        size,
        media_type: media_type.to_owned(),
    })
}

/// Configuration, manifest and index over layers whose blobs are in the layout already.
pub fn write_image(layout: &Path, recipe: &Recipe, architecture: &str, layers: &[Blob]) -> io::Result<()> {
    let blobs = layout.join("blobs/sha256");
    let config = blob_of(&blobs, "application/vnd.oci.image.config.v1+json", &configuration(recipe, architecture, layers))?;
    let layers: Vec<Value> =
        layers.iter().map(|layer| json!({"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size})).collect();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
    let mut descriptor = blob_of(&blobs, media_type, &manifest)?;
    descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": recipe.name});
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor]});
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
}

/// Writes a document as a blob and gives its descriptor.
fn blob_of(blobs: &Path, media_type: &str, document: &Value) -> io::Result<Value> {
    let text = document.to_string();
    let digest = hex(&Sha256::digest(text.as_bytes()));
    fs::write(blobs.join(&digest), &text)?;
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": text.len()}))
}

fn configuration(recipe: &Recipe, architecture: &str, layers: &[Blob]) -> Value {
    let own_path = recipe.env.iter().any(|(key, _)| *key == "PATH");
    let path = (!own_path).then(|| "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    let env: Vec<String> =
        path.into_iter().chain(["LANG=C.UTF-8".to_owned()]).chain(recipe.env.iter().map(|(key, value)| format!("{key}={value}"))).collect();
    let set = |names: &[&str]| Value::Object(names.iter().map(|name| ((*name).to_owned(), json!({}))).collect());
    let mut config = Map::from_iter([("Env".to_owned(), json!(env)), ("Cmd".to_owned(), json!(recipe.cmd))]);
    for (key, value, is_empty) in [
        ("Entrypoint", json!(recipe.entrypoint), recipe.entrypoint.is_empty()),
        ("User", json!(recipe.user), recipe.user.is_empty()),
        ("WorkingDir", json!(recipe.workdir), recipe.workdir.is_empty()),
        ("StopSignal", json!(recipe.stop_signal), recipe.stop_signal.is_empty()),
        ("ExposedPorts", set(recipe.ports), recipe.ports.is_empty()),
        ("Volumes", set(recipe.volumes), recipe.volumes.is_empty()),
    ] {
        if !is_empty {
            config.insert(key.to_owned(), value);
        }
    }
    json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
        "history": layers.iter().map(|_| json!({"created": "1970-01-01T00:00:00Z", "created_by": "testkit"})).collect::<Vec<_>>(),
    })
}

/// SHA-256 of a file, in hexadecimal.
fn sha256_of(file: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut from = BufReader::new(File::open(file)?);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
