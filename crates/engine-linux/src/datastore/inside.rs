//! Finds a datastore's server in an image. Nothing of the image is run for that.

use crate::toolchain::{Toolchain, postgres};
use moat_image::Image;
use moat_model::state::Workload;
use std::path::{Path, PathBuf};

/// More than a server's program has.
const LONGEST_PROGRAM: u64 = 256 << 20;
/// Where programs are that are not on an image's `PATH`.
const USUAL: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];

/// The server, by its path inside, and the folder to put on `PATH`; `major` is what PostgreSQL has to be. Else why not, in words.
pub fn server(image: &Image, workload: &Workload, major: Option<u16>) -> Result<Toolchain, String> {
    match workload {
        Workload::Postgres(_) => {
            let folders = major.iter().flat_map(|major| [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")]);
            let folder = on_path(image, folders, &["postgres", "initdb"])?.ok_or("the image has no `postgres` and `initdb`")?;
            let program = folder.join("postgres");
            let bytes = read(image, &program, LONGEST_PROGRAM)?.unwrap_or_default();
            let (found, version) = postgres::version_in(&bytes).ok_or("its `postgres` does not say which version it is")?;
            if let Some(major) = major.filter(|major| *major != found) {
                return Err(format!("the image holds PostgreSQL {version}, not {major}"));
            }
            if read(image, Path::new("/bin/sh"), 1)?.is_none() {
                return Err("the image has no `/bin/sh`".to_owned());
            }
            Ok(Toolchain { program, version, path: vec![folder], ..Toolchain::default() })
        }
        Workload::KeyValue(_) => {
            for name in ["valkey-server", "redis-server"] {
                if let Some(folder) = on_path(image, std::iter::empty(), &[name])? {
                    return Ok(Toolchain { program: folder.join(name), path: vec![folder], ..Toolchain::default() });
                }
            }
            Err("the image has neither `valkey-server` nor `redis-server`".to_owned())
        }
        Workload::Native(_) | Workload::Image(_) | Workload::Static(_) => Err("it is no datastore".to_owned()),
    }
}

/// The first folder of an image's `PATH`, of `more` and of the usual ones that has all of the programs.
fn on_path(image: &Image, more: impl Iterator<Item = String>, programs: &[&str]) -> Result<Option<PathBuf>, String> {
    let path = image.config.env.iter().find(|(key, _)| key == "PATH").map(|(_, value)| value.as_str()).unwrap_or_default();
    let folders = path.split(':').map(str::to_owned).chain(more).chain(USUAL.map(str::to_owned));
    'folders: for folder in folders.map(PathBuf::from).filter(|folder| folder.is_absolute()) {
        for program in programs {
            if read(image, &folder.join(program), 1)?.is_none() {
                continue 'folders;
            }
        }
        return Ok(Some(folder));
    }
    Ok(None)
}

fn read(image: &Image, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, String> {
    image.read(&path.to_string_lossy(), limit).map_err(|error| error.to_string())
}
