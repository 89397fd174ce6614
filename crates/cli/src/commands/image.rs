//! `moat image`.

use super::exec::{engine_error, open_engine};
use super::{ask_one, need_root};
use crate::args::ImageVerb;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui, cell};
use moat_daemon::protocol::{Event, Request};
use moat_daemon::{Paths, client};
use moat_engine_linux::Prune;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between two lines of how far a load is.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Shows, loads or removes images.
pub async fn run(verb: ImageVerb, ui: &Ui) -> Result<ExitCode, CommandError> {
    need_root()?;
    match verb {
        ImageVerb::List => list(ui).await?,
        ImageVerb::Load { path } => load(&path, ui).await?,
        ImageVerb::Prune => prune(ui).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(ui: &Ui) -> Result<(), CommandError> {
    let images = open_engine()?.images().await.map_err(engine_error)?;
    let names = |image: &moat_engine_linux::ListedImage| image.names.iter().map(ToString::to_string).collect::<Vec<_>>();
    if ui.json() {
        let list: Vec<_> = images
            .iter()
            .map(|image| {
                let layers: Vec<String> = image.layers.iter().map(ToString::to_string).collect();
                serde_json::json!({ "id": image.id.to_string(), "names": names(image), "layers": layers, "bytes": image.bytes })
            })
            .collect();
        return ui.print_json(&list);
    }
    if images.is_empty() {
        ui.line("no images are here");
        return Ok(());
    }
    let rows: Vec<Vec<_>> = images
        .iter()
        .map(|image| {
            let id = image.id.to_string();
            vec![
                cell(Tone::Strong, names(image).join(", ")),
                cell(Tone::Dim, id.get(..19).unwrap_or(&id)),
                cell(Tone::Plain, format!("{} MB", image.bytes.div_ceil(1_000_000))),
                cell(Tone::Dim, image.layers.len().to_string()),
            ]
        })
        .collect();
    ui.table(&["IMAGE", "ID", "SIZE", "LAYERS"], &rows);
    Ok(())
}

async fn load(path: &Path, ui: &Ui) -> Result<(), CommandError> {
    let path = std::fs::canonicalize(path).map_err(|error| CommandError::unreadable(path, &error))?;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let engine = open_engine()?;
    // Nobody listens any more only when the load is over.
    let loading = engine.load_images(path, move |text| drop(tell.send(text)));
    let telling = async {
        let mut last = None;
        while let Some(text) = told.recv().await {
            if last.is_none_or(|last: Instant| last.elapsed() >= TELL_EVERY) {
                last = Some(Instant::now());
                ui.say(&text);
            }
        }
    };
    let (loaded, ()) = tokio::join!(loading, telling);
    let loaded = loaded.map_err(engine_error)?;
    if ui.json() {
        let list: Vec<_> = loaded.iter().map(|(name, id)| serde_json::json!({ "name": name, "id": id })).collect();
        return ui.print_json(&list);
    }
    for (name, id) in &loaded {
        ui.line(&match name {
            Some(name) => format!("{} {}", ui.paint(Tone::Strong, name), ui.paint(Tone::Dim, id)),
            None => format!("{id} {}", ui.paint(Tone::Dim, "(it has no name)")),
        });
    }
    Ok(())
}

async fn prune(ui: &Ui) -> Result<(), CommandError> {
    let (images, bytes) = if client::is_running(&Paths::from_env()).await {
        ask_one(Request::PruneImages, |event| match event {
            Event::Pruned { images, bytes } => Some((images, bytes)),
            _ => None,
        })
        .await?
    } else {
        open_engine()?.prune_images(&BTreeSet::new(), Prune::All { under_way: false }).await.map_err(engine_error)?
    };
    if ui.json() {
        return ui.print_json(&serde_json::json!({ "images": images, "bytes": bytes }));
    }
    ui.line(&format!("{images} images removed, {} MB", bytes / 1_000_000));
    Ok(())
}
