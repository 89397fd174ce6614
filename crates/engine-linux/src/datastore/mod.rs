//! Who provides a datastore's server: this machine, or an image.
//!
//! A datastore without a release runs the machine's own server; one with a release runs the server of that image, as
//! [`crate::lower::datastore`] says. Invariant: data is never handed to a server that is known not to read it, and what runs
//! is never moved to another server without being asked for.

mod choose;
mod data;
mod dump;
mod inside;
mod judge;

pub use choose::{ServerImages, Wanted, instead};

use crate::engine::{Inner, LinuxEngine};
use crate::images;
use crate::lower;
use crate::lower::image::Facts;
use crate::toolchain::{Toolchain, keyvalue, postgres};
use choose::Provider;
use moat_engine::EngineError;
use moat_image::{Cancel, Image, ImageId};
use moat_model::state::{Persistence, Workload};
use moat_model::{Service, ServiceId, Slug};
use moat_planner::plan::InstanceSpec;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where a datastore's server comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The machine.
    Machine,
    /// The image of this id, which instances name as their release.
    Image(String),
}

impl Origin {
    /// That of an instance with this release.
    pub fn of(release: Option<String>) -> Self {
        release.map_or(Self::Machine, Self::Image)
    }

    /// The release of its instances.
    pub fn release(self) -> Option<String> {
        match self {
            Self::Machine => None,
            Self::Image(id) => Some(id),
        }
    }
}

/// A datastore that is to be started.
#[derive(Debug, Clone)]
pub struct DatastoreRequest {
    service: ServiceId,
    slug: Slug,
    workload: Workload,
    before: Option<Origin>,
}

impl DatastoreRequest {
    /// Of a service; `None` for what is no datastore. `before` is what the very same datastore has run on so far, and well: it
    /// stays so for as long as it can.
    pub fn of(service: &Service, before: Option<Origin>) -> Option<Self> {
        let it = || Self { service: service.id.clone(), slug: service.slug.clone(), workload: service.workload.clone(), before };
        service.workload.is_datastore().then(it)
    }
}

/// Who provides a datastore's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provided {
    /// Where it comes from.
    pub origin: Origin,
    /// What people should know about the choice.
    pub said: Vec<String>,
}

impl LinuxEngine {
    /// Chooses who provides a datastore's server: the machine where it has one that fits, else an image, which is brought
    /// into the store. Says meanwhile how far that is, in words.
    pub async fn provide_datastore(
        &self,
        request: DatastoreRequest,
        tell: impl Fn(String) + Send + 'static,
    ) -> Result<Provided, EngineError> {
        self.bringing(move |inner, cancel| provide(inner, &request, cancel, tell)).await
    }
}

/// What datastores would run here, for whoever wants to know before. The machine is looked at once, when it is first needed.
#[derive(Debug, Default)]
pub struct Outlook {
    images: ServerImages,
    servers: Servers,
}

impl Outlook {
    /// With the images that the settings name.
    pub fn new(images: ServerImages) -> Self {
        Self { images, servers: Servers::default() }
    }

    /// Looks at the machine now, for kinds of datastores that are going to be asked about.
    pub fn look(&self, keyvalue: bool, postgres: bool) {
        if keyvalue {
            self.servers.keyvalue.get_or_init(keyvalue::installed);
        }
        if postgres {
            self.servers.postgres.get_or_init(postgres::installed);
        }
    }

    /// The image that a datastore would run; none where the machine's server runs it, or where the service is none.
    pub fn of(&self, state_dir: &Path, service: &Service) -> Result<Option<Wanted>, EngineError> {
        if !service.workload.is_datastore() {
            return Ok(None);
        }
        let data = state_dir.join("data").join(service.id.as_str());
        let data = match File::open(&data) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Path::new("/nonexistent"),
            _ => &data,
        };
        Ok(match self.servers.provider(&self.images, &service.workload, data)? {
            Provider::Machine(_) => None,
            Provider::Image(wanted) => Some(wanted),
        })
    }
}

/// The servers of this machine, as they were when they were first asked for.
#[derive(Debug, Default)]
struct Servers {
    postgres: OnceLock<BTreeMap<u16, (PathBuf, String)>>,
    keyvalue: OnceLock<Option<(Toolchain, keyvalue::Server)>>,
}

impl Servers {
    fn provider(&self, images: &ServerImages, workload: &Workload, data: &Path) -> Result<Provider, EngineError> {
        match workload {
            Workload::Postgres(wanted) => {
                let installed = self.postgres.get_or_init(postgres::installed);
                choose::of_postgres(images.postgres.as_deref(), installed, wanted.major, data::version(data)?)
            }
            Workload::KeyValue(wanted) => {
                let format = if wanted.persistence == Persistence::Off { None } else { data::format(data)? };
                let installed = self.keyvalue.get_or_init(keyvalue::installed).clone();
                choose::of_keyvalue(images.keyvalue.as_deref(), installed, format)
            }
            Workload::Native(_) | Workload::Image(_) | Workload::Static(_) => {
                Err(EngineError::new("choose a server", "it is no datastore"))
            }
        }
    }
}

/// Who provides a server now.
fn provider(images: &ServerImages, workload: &Workload, data: &Path) -> Result<Provider, EngineError> {
    Servers::default().provider(images, workload, data)
}

fn provide(inner: &Inner, request: &DatastoreRequest, cancel: &Cancel, tell: impl Fn(String)) -> Result<Provided, EngineError> {
    let data = inner.paths.data(&request.service);
    if let Some(origin) = kept(inner, request, &data)? {
        return Ok(Provided { origin, said: Vec::new() });
    }
    let wanted = match provider(&inner.config.server_images, &request.workload, &data)? {
        Provider::Machine(_) => return Ok(Provided { origin: Origin::Machine, said: Vec::new() }),
        Provider::Image(wanted) => wanted,
    };
    let mut said = vec![format!("{}: the image `{}` is used", wanted.because, wanted.image)];
    tell(format!("pulling `{}`", wanted.image));
    let (id, instead_of) = images::pull(inner, &wanted.image, None, cancel, tell).map_err(|error| {
        error.hint(format!(
            "{}: {}, name a copy of the registry in MOAT_REGISTRY_MIRRORS, or bring the image here with `moat image load`",
            wanted.because, wanted.hint
        ))
    })?;
    said.extend(instead_of.map(|error| format!("{error}; using the image that is here")));
    let image = image(inner, &request.slug, &id)?;
    inside::server(&image, &request.workload, wanted.major).map_err(|why| {
        EngineError::new(format!("use `{}` for `{}`", wanted.image, request.slug), why)
            .hint(format!("{}, or name another image", wanted.hint))
    })?;
    Ok(Provided { origin: Origin::Image(id.to_string()), said })
}

/// What the same datastore has run so far, where it still can.
fn kept(inner: &Inner, request: &DatastoreRequest, data: &Path) -> Result<Option<Origin>, EngineError> {
    let there = match &request.before {
        None => false,
        Some(Origin::Machine) => matches!(provider(&ServerImages::default(), &request.workload, data)?, Provider::Machine(_)),
        Some(Origin::Image(id)) => id.parse().is_ok_and(|id: ImageId| images::store(inner).and_then(|store| store.image(&id)).is_ok()),
    };
    Ok(request.before.clone().filter(|_| there))
}

/// What a datastore's instance is started with: its server, and the image that has it, if any.
pub(crate) fn server_of(inner: &Inner, spec: &InstanceSpec) -> Result<(Toolchain, Option<Facts>), EngineError> {
    let data = inner.paths.data(&spec.service);
    let Some(release) = &spec.release else {
        return match provider(&ServerImages::default(), &spec.workload, &data)? {
            Provider::Machine(toolchain) => Ok((toolchain, None)),
            Provider::Image(wanted) => Err(EngineError::new(format!("start `{}`", spec.id), wanted.because)
                .hint(format!("{}; or `moat up` again, which takes the image `{}`", wanted.hint, wanted.image))),
        };
    };
    let doing = format!("start `{}`", spec.id);
    let id = release.parse().map_err(|error: moat_image::DigestError| EngineError::new(&doing, error.to_string()))?;
    let major = match &spec.workload {
        Workload::Postgres(wanted) => postgres::agreed(wanted.major, data::version(&data)?)?,
        Workload::KeyValue(_) | Workload::Native(_) | Workload::Image(_) | Workload::Static(_) => None,
    };
    let image = image(inner, &spec.slug, &id)?;
    let toolchain = inside::server(&image, &spec.workload, major).map_err(|why| EngineError::new(&doing, why))?;
    Ok((toolchain, Some(lower::datastore::facts(image, &spec.workload))))
}

fn image(inner: &Inner, slug: &Slug, id: &ImageId) -> Result<Image, EngineError> {
    images::store(inner)
        .and_then(|store| store.image(id))
        .map_err(|error| images::image_error(format!("look into the image of `{slug}`"), error))
}
