//! `moat explain`.

use super::{ask_one, state_of};
use crate::args::ExplainArgs;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui};
use moat_daemon::protocol::{Event, Request};
use std::process::ExitCode;

/// Says allow or deny and by which rule; with `--trace`, the way a packet takes. Exit code 0 for both: it answers a question.
pub async fn run(args: ExplainArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    let state = state_of(args.file.as_deref()).await?;
    let parse = |text: &str| {
        moat_planner::explain::parse_peer(text).map_err(|error| {
            CommandError::usage(error.to_string())
                .hint("write `SERVICE`, `SERVICE:PORT`, `SERVICE:PORT/udp`, `internet`, `ingress`, `host` or `build:SERVICE`")
        })
    };
    let (from, _) = parse(&args.from)?;
    let (to, endpoint) = parse(&args.to)?;
    let explanation = moat_planner::explain::explain(&state, &from, &to, endpoint);
    let trace = if args.trace {
        let (from, to) = (args.from.clone(), args.to.clone());
        Some(
            ask_one(Request::Trace { from, to }, |event| match event {
                Event::Traced { steps, delivered } => Some((steps, delivered)),
                _ => None,
            })
            .await?,
        )
    } else {
        None
    };
    if ui.json() {
        ui.print_json(&serde_json::json!({
            "from": from, "to": to, "endpoint": endpoint, "verdict": explanation.verdict, "sentence": explanation.sentence,
            "trace": trace.as_ref().map(|(steps, delivered)| serde_json::json!({ "steps": steps, "delivered": delivered })),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let tone = if explanation.verdict.is_allowed() { Tone::Good } else { Tone::Bad };
    let (word, rest) = explanation.sentence.split_once(':').unwrap_or((explanation.sentence.as_str(), ""));
    ui.line(&format!("{}:{rest}", ui.paint(tone, word)));
    for hint in &explanation.hints {
        ui.say(&format!("{} {hint}", ui.paint_err(Tone::Link, "hint:")));
    }
    if let Some((steps, delivered)) = trace {
        for (n, step) in steps.iter().enumerate() {
            ui.line(&format!("  {} {step}", ui.paint(Tone::Dim, &format!("{:>2}", n + 1))));
        }
        ui.line(&if delivered { ui.paint(Tone::Good, "     delivered") } else { ui.paint(Tone::Bad, "     dropped") });
    }
    Ok(ExitCode::SUCCESS)
}
