//! `moat reach`.

use super::state_of;
use crate::args::ReachArgs;
use crate::command_error::CommandError;
use crate::ui::{Cell, Tone, Ui, cell};
use moat_model::{DesiredState, Peer, Verdict};
use moat_planner::reach::{ReachMatrix, reach};
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Wider matrices become a list: a table of more columns can't be read.
const WIDEST: usize = 14;

/// Shows the whole matrix, and why each denied pair is denied.
pub async fn run(args: ReachArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    let state = state_of(args.file.as_deref()).await?;
    let matrix = reach(&state);
    if ui.json() {
        ui.print_json(&matrix.to_json())?;
        return Ok(ExitCode::SUCCESS);
    }
    let peers: Vec<&Peer> = matrix.peers().iter().filter(|p| !matches!(p, Peer::Build(_))).collect();
    if peers.len() <= WIDEST {
        let head: Vec<String> = std::iter::once("FROM ╲ TO".to_owned()).chain(peers.iter().map(ToString::to_string)).collect();
        let rows: Vec<Vec<Cell>> = peers
            .iter()
            .map(|from| {
                std::iter::once(cell(Tone::Strong, from.to_string())).chain(peers.iter().map(|to| mark(&matrix, from, to))).collect()
            })
            .collect();
        ui.table(&head.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
        ui.line("");
    }
    for line in compact(ui, &state) {
        ui.line(&line);
    }
    ui.line("");
    for (because, pairs) in reasons(&matrix, &peers) {
        ui.line(&format!("{} {}", ui.paint(Tone::Bad, &format!("{because:<26}")), ui.paint(Tone::Dim, &pairs)));
    }
    ui.line(&ui.paint(Tone::Dim, "one pair: moat explain FROM TO:PORT"));
    Ok(ExitCode::SUCCESS)
}

fn mark(matrix: &ReachMatrix, from: &Peer, to: &Peer) -> Cell {
    if from == to && !matches!(from, Peer::Service(_)) {
        return cell(Tone::Dim, "–");
    }
    match matrix.cell(from, to) {
        Verdict::Allow { .. } => cell(Tone::Good, "✓"),
        Verdict::Deny { .. } => cell(Tone::Dim, "·"),
    }
}

/// A line for each peer that opens flows: whom it reaches.
pub fn compact(ui: &Ui, state: &DesiredState) -> Vec<String> {
    let matrix = reach(state);
    let peers: Vec<&Peer> = matrix.peers().iter().filter(|p| !matches!(p, Peer::Build(_))).collect();
    let width = peers.iter().map(|p| p.to_string().len()).max().unwrap_or(0);
    peers
        .iter()
        .filter(|from| !matches!(from, Peer::Host))
        .map(|from| {
            let to: Vec<String> =
                peers.iter().filter(|to| *to != from && matrix.cell(from, to).is_allowed()).map(ToString::to_string).collect();
            let name = ui.paint(Tone::Strong, &format!("{from:>width$}"));
            if to.is_empty() {
                format!("{name} {} nobody", ui.paint(Tone::Dim, "→"))
            } else {
                format!("{name} {} {}", ui.paint(Tone::Good, "→"), to.join(", "))
            }
        })
        .collect()
}

/// Reasons of denied pairs between services, with the pairs.
fn reasons(matrix: &ReachMatrix, peers: &[&Peer]) -> BTreeMap<String, String> {
    let mut by_reason: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for from in peers {
        for to in peers {
            if let Verdict::Deny { because } = matrix.cell(from, to)
                && from != to
                && matches!((from, to), (Peer::Service(_) | Peer::Internet, Peer::Service(_)))
            {
                let word = serde_json::to_value(because).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
                by_reason.entry(word).or_default().entry(to.to_string()).or_default().push(from.to_string());
            }
        }
    }
    by_reason
        .into_iter()
        .map(|(word, pairs)| {
            let text: Vec<String> = pairs
                .into_iter()
                .map(|(to, from)| format!("{} ↛ {to}", if from.len() > 3 { format!("{} peers", from.len()) } else { from.join(", ") }))
                .collect();
            (word, text.join("; "))
        })
        .collect()
}
