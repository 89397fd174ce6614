//! What a native service's release is made over: the machine's toolchain or the language's image, and the tools of its builds.

use super::{BuildRequest, Listing, MissingTool, Prepared, SEALED, builder, digest};
use crate::checkout::checkout;
use crate::engine::Inner;
use crate::images;
use crate::lock::{Language, Lock};
use crate::lower::sandbox::UID;
use crate::toolchain::wanted::{Wanted, wanted};
use crate::toolchain::{Toolchain, official};
use crate::tools::{self, Asked};
use crate::tree;
use moat_engine::EngineError;
use moat_image::Cancel;
use std::fs;

/// A toolchain, as far as a release's name depends on it.
struct Base {
    /// What tells it from others.
    identity: [String; 2],
    /// The version asked for of the machine's own, and the one that it is.
    version: Option<String>,
    exact: Option<String>,
    image: Option<Language>,
}

impl Base {
    fn host(toolchain: &Toolchain, version: Option<String>) -> Self {
        let exact = Some(toolchain.version.clone());
        Self { identity: [toolchain.version.clone(), toolchain.program.to_string_lossy().into_owned()], version, exact, image: None }
    }

    fn image(reference: &str, id: &str) -> Self {
        let image = Some(Language { reference: reference.to_owned(), image: id.to_owned() });
        Self { identity: [reference.to_owned(), id.to_owned()], version: None, exact: None, image }
    }
}

/// Copies the source, unless a finished release of the very same exists.
pub fn prepare(inner: &Inner, request: &BuildRequest, cancel: &Cancel, tell: impl Fn(String)) -> Result<Prepared, EngineError> {
    let listing = Listing::of(inner, &request.slug, checkout(inner, request.slug.as_str(), &request.source)?, &request.root_dir)?;
    let wanted = wanted(request.runtime, request.version.as_deref(), &listing.root, &request.root_dir);
    let asked = Asked {
        commands: request.commands.iter().map(String::as_str).collect(),
        env: &request.env,
        source: &listing.root,
        root_dir: &request.root_dir,
    };
    let needs = tools::needed(&asked);
    let mut notices = Vec::new();
    let root_dir = request.root_dir.to_string_lossy();
    // The tools that go with a toolchain, and what a release over both is made of.
    let with = |base: &Base| {
        let identity = base.identity.each_ref().map(String::as_str);
        let tools: Vec<String> = needs
            .iter()
            .map(|need| {
                let command = need.install("");
                tools::release_name(need, &digest([request.runtime.word(), &command].iter().chain(&identity)))
            })
            .collect();
        let mut made_of = vec![request.build_fingerprint.clone(), root_dir.to_string(), request.runtime.word().to_owned()];
        made_of.extend(base.identity.iter().chain(&tools).cloned());
        (tools, made_of)
    };
    let finished = |base: &Base| {
        let (tools, made_of) = with(base);
        let whole = tools.iter().all(|tool| inner.paths.releases().join(tool).join(SEALED).exists());
        listing.finished(inner, &words(&made_of)).filter(|_| whole)
    };

    let version = wanted.as_ref().map(|wanted| wanted.version.as_str());
    let base = match inner.toolchain(request.runtime, version) {
        Ok(toolchain) => Base::host(&toolchain, version.map(str::to_owned)),
        Err(missing) => {
            // A build of the very same over the image that is here stays; a new one begins with what the registry has now.
            let reference = official::reference(request.runtime, version);
            let known = reference.as_deref().and_then(|name| images::known(inner, name).ok().flatten().map(|id| (name, id.to_string())));
            let unchanged = known.as_ref().map(|(name, id)| Base::image(name, id)).and_then(|base| finished(&base));
            if let Some(release) = unchanged {
                return Ok(release.into());
            }
            let asked = Asking { wanted: wanted.as_ref(), reference: reference.as_deref(), missing, cancel };
            from_image(inner, request, asked, &mut notices, tell)?
        }
    };
    if let Some(release) = finished(&base) {
        return Ok(Prepared { release, tools: Vec::new(), notices });
    }
    let (tools, made_of) = with(&base);
    let lock = Lock { runtime: Some(request.runtime), version: base.version, exact: base.exact, image: base.image, tools };
    let mut missing = Vec::new();
    for (need, name) in needs.iter().zip(&lock.tools) {
        if begin_tool(inner, name, &lock)? {
            missing.push(MissingTool { release: name.clone(), words: need.words(), command: need.install(name) });
        }
    }
    let release = listing.copy(inner, &request.service, &words(&made_of), UID)?;
    if !release.cached {
        lock.write(&inner.paths.releases().join(&release.name))?;
    }
    Ok(Prepared { release, tools: missing, notices })
}

fn words(made_of: &[String]) -> Vec<&str> {
    made_of.iter().map(String::as_str).collect()
}

/// A language that this machine lacks.
struct Asking<'a> {
    wanted: Option<&'a Wanted>,
    reference: Option<&'a str>,
    missing: EngineError,
    cancel: &'a Cancel,
}

/// The image of a language that this machine lacks. What cannot be pulled and is here counts; where a file of the source only
/// wished for a version, the machine's own toolchain does too. Both are said.
fn from_image(
    inner: &Inner,
    request: &BuildRequest,
    asked: Asking<'_>,
    notices: &mut Vec<String>,
    tell: impl Fn(String),
) -> Result<Base, EngineError> {
    let Asking { wanted, reference, missing, cancel } = asked;
    let Some(reference) = reference else {
        return own_instead(inner, request, wanted, "no image has a tag for it", notices).ok_or(missing);
    };
    tell(format!("{}: pulling `{reference}`", missing.message));
    let error = match images::pull(inner, reference, None, cancel, tell) {
        Ok((id, instead_of)) => {
            notices.push(match instead_of {
                None => format!("{}: the image `{reference}` is used", missing.message),
                Some(error) => format!("{error}; using the image that is here"),
            });
            return Ok(Base::image(reference, &id.to_string()));
        }
        Err(error) if cancel.is_set() => return Err(error),
        Err(error) => error,
    };
    if let Some(base) = own_instead(inner, request, wanted, &format!("{error}"), notices) {
        return Ok(base);
    }
    let hint = missing.hint.as_deref().unwrap_or("install it");
    let hint = format!("{hint}; or let this machine reach the image's registry, or a copy of it named by MOAT_REGISTRY_MIRRORS");
    Err(EngineError::new(missing.doing, format!("{}, and its image can't be used: {error}", missing.message)).hint(hint).caused_by(error))
}

/// The machine's own toolchain where a file of the source asked for another.
fn own_instead(inner: &Inner, request: &BuildRequest, wanted: Option<&Wanted>, why: &str, notices: &mut Vec<String>) -> Option<Base> {
    let wanted = wanted?;
    let file = wanted.file.as_ref()?;
    let toolchain = inner.toolchain(request.runtime, None).ok()?;
    notices.push(format!(
        "`{file}` asks for {} {}, which is not here ({why}): {} is used",
        request.runtime.word(),
        wanted.version,
        toolchain.version
    ));
    Some(Base::host(&toolchain, None))
}

/// Makes the folder of a tool's release, unless it is finished (`false`) or being filled.
fn begin_tool(inner: &Inner, name: &str, over: &Lock) -> Result<bool, EngineError> {
    let folder = inner.paths.releases().join(name);
    if folder.join(SEALED).exists() {
        return Ok(false);
    }
    if builder(inner, name)?.is_none() {
        let project = folder.join("project");
        fs::create_dir_all(&project).map_err(|error| super::fail(name, &project, error))?;
        Lock { tools: Vec::new(), ..over.clone() }.write(&folder)?;
        tree::open_to_all(&folder).and_then(|()| tree::open_to_all(&project)).map_err(|error| super::fail(name, &folder, error))?;
    }
    Ok(true)
}
