//! `moat verify`.

use super::ask_one;
use crate::args::VerifyArgs;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui, cell};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use moat_daemon::Paths;
use moat_daemon::client;
use moat_daemon::protocol::{Event, EventKind, Recorded, Request, Verified, VerifiedPair};
use std::process::ExitCode;

/// More disagreements than this are counted: the pairs in the table name them all.
const SHOWN: usize = 40;

/// What was mended so long ago is told beside the result, which does not show it any more.
const LATELY: SignedDuration = SignedDuration::from_mins(10);
/// At most so many of these.
const MENDED_SHOWN: usize = 5;

/// Runs the probes; exit code 1 on any disagreement.
pub async fn run(args: VerifyArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    if ui.terminal() {
        ui.say(&ui.paint_err(Tone::Dim, "probing every pair, from inside every instance, the host, the ingress and a neighbour …"));
    }
    let verified = ask_one(Request::Verify { random_ports: args.random_ports }, |event| match event {
        Event::Verified(verified) => Some(*verified),
        _ => None,
    })
    .await?;
    super::rootless::say_lacks(&Paths::from_env(), ui);
    if ui.json() {
        ui.print_json(&verified.report)?;
    } else {
        print(ui, &verified, args.all);
        tell_mended(ui).await?;
    }
    Ok(if verified.passed { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Says what somebody else changed and Moat put right before this verification could see it.
async fn tell_mended(ui: &Ui) -> Result<(), CommandError> {
    let since = Timestamp::now().checked_sub(LATELY).map_or(0, Timestamp::as_millisecond);
    let (service, kind, last) = (None, Some(EventKind::Repaired), Some(MENDED_SHOWN));
    let mut talk = client::ask(&Paths::from_env(), &Request::Events { service, kind, since: Some(since), last, follow: false }).await?;
    while let Some(event) = talk.next().await? {
        match event {
            Event::Recorded(Recorded { event, .. }) => {
                let time = Timestamp::from_millisecond(event.time).unwrap_or_default().to_zoned(TimeZone::system());
                let text = format!("{} changed by somebody else and mended since: {}", time.strftime("%H:%M:%S"), event.message);
                ui.line(&ui.paint(Tone::Warn, &text));
            }
            Event::End { .. } => break,
            _ => {}
        }
    }
    Ok(())
}

fn print(ui: &Ui, verified: &Verified, all: bool) {
    let shown = |p: &&VerifiedPair| all || !p.agrees || p.allowed.0 > 0 || !p.from.starts_with("build of");
    let rows: Vec<_> = verified
        .pairs
        .iter()
        .filter(shown)
        .map(|p| {
            let expected = match (p.allowed.0, p.denied.0) {
                (0, 0) => cell(Tone::Dim, "–"),
                (0, n) => cell(Tone::Plain, format!("deny {n}")),
                (n, 0) => cell(Tone::Plain, format!("allow {n}")),
                (a, d) => cell(Tone::Plain, format!("allow {a}, deny {d}")),
            };
            let observed = match (p.allowed.0, p.denied.0) {
                (0, 0) => "–".to_owned(),
                (0, _) => format!("denied {}", p.denied.1),
                (_, 0) => format!("arrived {}", p.allowed.1),
                _ => format!("arrived {}, denied {}", p.allowed.1, p.denied.1),
            };
            let unproven = if p.unproven > 0 { format!(", {} unproven", p.unproven) } else { String::new() };
            let (tone, mark) = if p.agrees { (Tone::Good, "✓") } else { (Tone::Bad, "✗") };
            vec![
                cell(tone, mark),
                cell(Tone::Strong, &p.from),
                cell(Tone::Strong, &p.to),
                expected,
                cell(if p.agrees { Tone::Plain } else { Tone::Bad }, format!("{observed}{unproven}")),
            ]
        })
        .collect();
    ui.table(&["", "FROM", "TO", "EXPECTED", "OBSERVED"], &rows);
    ui.line("");
    for (title, list) in [
        ("disagreements", &verified.disagreements),
        ("changed by somebody else", &verified.drift),
        ("probes that did not work themselves", &verified.failed_controls),
    ] {
        if list.is_empty() {
            continue;
        }
        ui.line(&ui.paint(Tone::Bad, &format!("{} {title}:", list.len())));
        for text in list.iter().take(SHOWN) {
            ui.line(&format!("  {text}"));
        }
        if list.len() > SHOWN {
            ui.line(&format!("  … and {} more (`--output json` has all)", list.len() - SHOWN));
        }
    }
    let seconds = f64::from(u32::try_from(verified.duration_ms).unwrap_or(u32::MAX)) / 1000.0;
    let facts = format!("{} probes over {} pairs, {} controls, {seconds:.1} s", verified.probes, verified.pairs.len(), verified.controls);
    ui.line(&if verified.passed {
        format!("{} {facts}", ui.paint(Tone::Good, "verified:"))
    } else {
        format!("{} {facts}", ui.paint(Tone::Bad, "not as it should be:"))
    });
}
