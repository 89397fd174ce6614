//! Self-signed certificates: what a database shows to clients that ask for TLS.
//!
//! They keep a listener out, as `sslmode=require` asks, and prove nothing to anyone: inside, the private network does that.

use moat_engine::EngineError;
use moat_model::{Secret, Slug};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The certificate and its key in one PEM text: read from the file, or made at the first call. A kill leaves it whole or
/// absent.
pub fn of(file: &Path, name: &Slug) -> Result<Secret, EngineError> {
    let doing = format!("prepare the certificate of `{name}`");
    let fail = |error: io::Error| EngineError::new(&doing, format!("`{}`: {error}", file.display())).caused_by(error);
    match fs::read_to_string(file) {
        Ok(text) => return Ok(Secret::new(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    let made = rcgen::generate_simple_self_signed([name.as_str().to_owned(), "localhost".to_owned()])
        .map_err(|error| EngineError::new(&doing, error.to_string()).caused_by(error))?;
    let text = format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem());
    let fresh = file.with_extension("new");
    let write = || -> io::Result<()> {
        let mut out = File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        fs::rename(&fresh, file)
    };
    write().map_err(fail)?;
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_certificate_is_made_once_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let (file, name) = (folder.path().join("dpg-1.pem"), Slug::new("orders").unwrap());
        let first = of(&file, &name).unwrap();
        for part in ["-----BEGIN CERTIFICATE-----", "-----BEGIN PRIVATE KEY-----"] {
            assert_eq!(first.expose().matches(part).count(), 1, "{part}");
        }
        assert_eq!(of(&file, &name).unwrap(), first);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
