//! `moat ps`.

use super::ask_one;
use crate::command_error::CommandError;
use crate::ui::{Cell, Tone, Ui, cell};
use moat_daemon::protocol::{Event, InstanceStatus, Request, ServicePhase, ServiceStatus};
use moat_model::state::InstancePhase;
use std::process::ExitCode;

/// Shows services and their instances.
pub async fn run(ui: &Ui) -> Result<ExitCode, CommandError> {
    let status = ask_one(Request::Status, |event| match event {
        Event::Status(status) => Some(status),
        _ => None,
    })
    .await?;
    if ui.json() {
        ui.print_json(&status)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for service in &status.services {
        rows.push(service_row(service));
        for instance in &service.instances {
            rows.push(instance_row(instance));
        }
    }
    ui.table(&["SERVICE", "TYPE", "STATE", "ADDRESS", "PORTS", ""], &rows);
    Ok(ExitCode::SUCCESS)
}

/// The tone of a phase.
pub fn phase_tone(phase: ServicePhase) -> Tone {
    match phase {
        ServicePhase::Live => Tone::Good,
        ServicePhase::Failed => Tone::Bad,
        ServicePhase::Restarting | ServicePhase::Suspended | ServicePhase::Sleeping => Tone::Warn,
        ServicePhase::Waiting | ServicePhase::Building | ServicePhase::PreDeploy | ServicePhase::Starting | ServicePhase::Stopping => {
            Tone::Plain
        }
    }
}

fn service_row(service: &ServiceStatus) -> Vec<Cell> {
    let more = match (&service.url, &service.next_run, &service.state.detail) {
        (_, _, Some(detail)) => detail.clone(),
        (Some(url), ..) => url.clone(),
        (None, Some(next), None) => format!("next run {next}"),
        (None, None, None) => String::new(),
    };
    let more = match service.disk {
        Some(disk) => {
            let disk = format!("disk {disk}");
            if more.is_empty() { disk } else { format!("{more}, {disk}") }
        }
        None => more,
    };
    let ready = service.instances.iter().filter(|instance| instance.ready).count();
    let more = if service.wanted > 1 { format!("{ready} of {} ready, {more}", service.wanted) } else { more };
    let more = if service.maintenance { format!("in maintenance, {more}") } else { more };
    let more = more.trim_end_matches(", ").to_owned();
    let (tone, more) = match &service.warning {
        Some(warning) => (Tone::Warn, if more.is_empty() { warning.clone() } else { format!("{more}, {warning}") }),
        None => (Tone::Dim, more),
    };
    vec![
        cell(Tone::Strong, service.state.service.as_str()),
        cell(Tone::Plain, service.state.kind.phrase()),
        cell(phase_tone(service.state.phase), service.state.phase.word()),
        cell(Tone::Plain, service.internal.clone().unwrap_or_else(|| "–".to_owned())),
        cell(Tone::Plain, service.address.map(|a| a.v4.to_string()).unwrap_or_default()),
        cell(tone, more),
    ]
}

fn instance_row(instance: &InstanceStatus) -> Vec<Cell> {
    let ports: Vec<String> = instance
        .listeners
        .iter()
        .map(|l| format!("{}/{}{}", l.endpoint.port, l.endpoint.proto, if l.loopback_only { " (loopback only)" } else { "" }))
        .collect();
    let state = match (&instance.phase, instance.ready) {
        _ if instance.draining => cell(Tone::Plain, "draining"),
        (_, true) => cell(Tone::Good, "ready"),
        (InstancePhase::Preparing, _) => cell(Tone::Plain, "preparing"),
        (InstancePhase::Running, _) => cell(Tone::Plain, "running"),
        (InstancePhase::Exited(_) | InstancePhase::Lost, _) => cell(Tone::Bad, "ended"),
    };
    let mut more = instance.pid.map(|pid| format!("pid {pid}")).unwrap_or_default();
    if instance.restarts > 0 {
        more = format!("{more}, {} restarts", instance.restarts);
    }
    vec![
        cell(Tone::Dim, format!("  {}", instance.id)),
        cell(Tone::Dim, format!("{:?}", instance.purpose).to_lowercase()),
        state,
        cell(Tone::Plain, instance.address.v4.to_string()),
        cell(Tone::Plain, ports.join(" ")),
        cell(Tone::Dim, more),
    ]
}
