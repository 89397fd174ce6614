//! `moat top`: what services do and use, between two looks.

use super::ask_one;
use crate::args::TopArgs;
use crate::command_error::CommandError;
use crate::ui::{Cell, Tone, Ui, cell};
use crossterm::{cursor, execute, terminal};
use moat_daemon::protocol::{Counted, Event, InstanceLoad, Load, Request, ServiceLoad, ServicePhase};

use serde::Serialize;
use std::io::{Read as _, stdin, stdout};
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Shows numbers until it is interrupted, or once.
pub async fn run(args: TopArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    let interval = Duration::from_secs(args.interval);
    let mut before = look().await?;
    if let Some(only) = &args.service
        && !before.services.iter().any(|service| service.service.as_str() == only)
    {
        return Err(CommandError::refused(format!("no service is called `{only}`")).hint("`moat ps` shows them"));
    }
    let screen = if args.once || !ui.terminal() { None } else { Some(Screen::enter()?) };
    let mut keys = if screen.is_some() { keys() } else { mpsc::unbounded_channel().1 };
    loop {
        let next = Instant::now() + interval;
        tokio::select! {
            () = sleep_until(next) => {}
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
            // While the screen is drawn on, an interrupt is a key too.
            key = keys.recv(), if screen.is_some() => match key {
                Some(key) if !matches!(key, b'q' | 3) => {}
                Some(_) | None => return Ok(ExitCode::SUCCESS),
            },
        }
        let now = look().await?;
        let shown = Shown::between(&before, &now, args.service.as_deref());
        match &screen {
            Some(screen) => screen.draw(shown.lines(ui))?,
            None if ui.json() && args.once => ui.print_json(&shown)?,
            None if ui.json() => ui.json_line(&shown),
            None => ui.raw(&(shown.lines(ui).join("\n") + "\n")),
        }
        if args.once {
            return Ok(ExitCode::SUCCESS);
        }
        before = now;
    }
}

/// What is typed, until the end of it. Reading may block for ever: it has a thread of its own, which ends with the process.
fn keys() -> mpsc::UnboundedReceiver<u8> {
    let (typed, keys) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut byte = [0];
        while matches!(stdin().read(&mut byte), Ok(1)) && typed.send(byte[0]).is_ok() {}
    });
    keys
}

async fn look() -> Result<Load, CommandError> {
    ask_one(Request::Load, |event| match event {
        Event::Load(load) => Some(*load),
        _ => None,
    })
    .await
}

/// The terminal, given back as it was when this is dropped.
struct Screen;

impl Screen {
    fn enter() -> Result<Self, CommandError> {
        terminal::enable_raw_mode().map_err(|error| failed(&error))?;
        let screen = Self;
        execute!(stdout(), terminal::EnterAlternateScreen, cursor::Hide).map_err(|error| failed(&error))?;
        Ok(screen)
    }

    /// Shows as many lines as there is room for.
    #[expect(clippy::unused_self, reason = "only who has the screen may draw")]
    fn draw(&self, lines: Vec<String>) -> Result<(), CommandError> {
        let (_, rows) = terminal::size().map_err(|error| failed(&error))?;
        // A terminal that does not know its size has none.
        let rows = if rows == 0 { usize::MAX } else { usize::from(rows) };
        let mut text = String::new();
        for line in lines.into_iter().take(rows) {
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            text.push_str(&line);
            // What was there before.
            text.push_str("\x1b[K");
        }
        execute!(
            stdout(),
            terminal::BeginSynchronizedUpdate,
            cursor::MoveTo(0, 0),
            terminal::DisableLineWrap,
            crossterm::style::Print(text),
            terminal::Clear(terminal::ClearType::FromCursorDown),
            terminal::EnableLineWrap,
            terminal::EndSynchronizedUpdate
        )
        .map_err(|error| failed(&error))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // What fails here can't be told.
        let _ = execute!(stdout(), cursor::Show, terminal::LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

fn failed(error: &std::io::Error) -> CommandError {
    CommandError::engine(format!("the terminal can't be used: {error}")).hint("`moat top --once` needs none")
}

/// What happened between two looks.
#[derive(Debug, Serialize)]
struct Shown {
    seconds: f64,
    /// Whether requests were counted at all.
    counted: bool,
    services: Vec<ServiceRow>,
    /// For hosts that are nobody's.
    nobody: Traffic,
    http_connections: u64,
    https_connections: u64,
}

#[derive(Debug, Serialize)]
struct ServiceRow {
    service: String,
    state: Option<ServicePhase>,
    cpu_percent: Option<f64>,
    memory_bytes: Option<u64>,
    #[serde(flatten)]
    requests: Traffic,
    /// Bytes that one instance may use.
    memory_limit: Option<u64>,
    instances: Vec<InstanceRow>,
}

#[derive(Debug, Serialize)]
struct InstanceRow {
    instance: String,
    ready: bool,
    cpu_percent: Option<f64>,
    memory_bytes: Option<u64>,
    #[serde(flatten)]
    requests: Traffic,
}

/// Traffic of some seconds.
#[derive(Debug, Serialize)]
struct Traffic {
    requests_per_second: f64,
    /// Milliseconds until answers began.
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// Answers with 500 and above.
    errors_per_second: f64,
    /// Requests and tunnels that are not over.
    open: u64,
    received_per_second: f64,
    sent_per_second: f64,
}

#[expect(clippy::cast_precision_loss, reason = "numbers for people")]
impl Traffic {
    fn of(counted: &Counted, seconds: f64) -> Self {
        let errors: u64 = counted.answers.iter().filter(|(status, _)| **status >= 500).map(|(_, count)| count).sum();
        let each = |count: u64| tenths(count as f64 / seconds);
        let ms = |share| counted.quantile(share).map(|seconds| tenths(seconds * 1e3));
        Self {
            requests_per_second: each(counted.total()),
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            errors_per_second: each(errors),
            open: counted.open,
            received_per_second: each(counted.received),
            sent_per_second: each(counted.sent),
        }
    }
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[expect(clippy::cast_precision_loss, reason = "numbers for people")]
impl Shown {
    fn between(before: &Load, now: &Load, only: Option<&str>) -> Self {
        let micros = now.at_micros.saturating_sub(before.at_micros).max(1);
        let seconds = micros as f64 / 1e6;
        let rows = now.services.iter().filter(|service| only.is_none_or(|only| service.service.as_str() == only));
        let rows = rows.map(|service| {
            let then = before.services.iter().find(|then| then.service == service.service);
            ServiceRow::between(then, service, micros)
        });
        let services = rows.collect();
        Self {
            seconds,
            counted: now.counted,
            services,
            nobody: Traffic::of(&now.nobody.since(&before.nobody), seconds),
            http_connections: now.connections.0,
            https_connections: now.connections.1,
        }
    }

    fn lines(&self, ui: &Ui) -> Vec<String> {
        let mut rows = Vec::new();
        for service in &self.services {
            let state = service.state.map_or_else(|| cell(Tone::Dim, "gone"), |phase| cell(super::ps::phase_tone(phase), phase.word()));
            let use_of = (service.cpu_percent, service.memory_bytes, None);
            rows.push(row(cell(Tone::Strong, service.service.as_str()), state, use_of, &service.requests, self.counted));
            for instance in &service.instances {
                let state = if instance.ready { cell(Tone::Good, "ready") } else { cell(Tone::Plain, "not ready") };
                let name = cell(Tone::Dim, format!("  {}", instance.instance));
                let use_of = (instance.cpu_percent, instance.memory_bytes, service.memory_limit);
                rows.push(row(name, state, use_of, &instance.requests, self.counted));
            }
        }
        let Traffic { requests_per_second, .. } = self.nobody;
        let head = format!(
            "{} HTTP and {} HTTPS connections, {requests_per_second:.1} requests/s for unknown hosts",
            self.http_connections, self.https_connections
        );
        let columns = ["SERVICE", "STATE", "CPU", "MEMORY", "REQ/S", "P50 MS", "P99 MS", "5XX/S", "OPEN", "IN/S", "OUT/S"];
        let head = if self.counted { head } else { "the data plane does not answer: no requests are shown".to_owned() };
        let head = [ui.paint(Tone::Dim, &head), String::new()];
        head.into_iter().chain(ui.table_lines(&columns, &rows)).collect()
    }
}

impl ServiceRow {
    fn between(before: Option<&ServiceLoad>, now: &ServiceLoad, micros: u64) -> Self {
        let of = |id: &str| before.and_then(|then| then.instances.iter().find(|instance| instance.id == id));
        let rows = now.instances.iter().filter(|instance| instance.live);
        let instances: Vec<_> = rows.map(|instance| InstanceRow::between(of(&instance.id), instance, micros)).collect();
        let all = with_visits(now).since(&before.map(with_visits).unwrap_or_default());
        Self {
            service: now.service.to_string(),
            state: now.phase,
            cpu_percent: instances.iter().filter_map(|row| row.cpu_percent).reduce(|a, b| tenths(a + b)),
            memory_bytes: instances.iter().filter_map(|row| row.memory_bytes).reduce(|a, b| a + b),
            requests: Traffic::of(&all, seconds(micros)),
            memory_limit: now.limits.map(|limits| limits.memory_bytes),
            instances,
        }
    }
}

/// All requests of a service, and what goes to and from clients of a database.
fn with_visits(service: &ServiceLoad) -> Counted {
    let mut all = service.all();
    if let Some(visited) = &service.visits {
        all.add(&Counted { open: visited.open, received: visited.received, sent: visited.sent, ..Counted::default() });
    }
    all
}

impl InstanceRow {
    fn between(before: Option<&InstanceLoad>, now: &InstanceLoad, micros: u64) -> Self {
        let then = before.and_then(|then| then.usage);
        let cpu = now.usage.zip(then).map(|((now, _), (then, _))| tenths(100.0 * seconds(now.saturating_sub(then)) / seconds(micros)));
        let none = Counted::default();
        let counted = now.counted.since(before.map_or(&none, |then| &then.counted));
        Self {
            instance: now.id.clone(),
            ready: now.ready,
            cpu_percent: cpu,
            memory_bytes: now.usage.map(|(_, memory)| memory),
            requests: Traffic::of(&counted, seconds(micros)),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers for people")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// CPU, memory, and how much of that there may be.
type Use = (Option<f64>, Option<u64>, Option<u64>);

fn row(name: Cell, state: Cell, (cpu, memory, limit): Use, requests: &Traffic, counted: bool) -> Vec<Cell> {
    let dash = || "–".to_owned();
    let plain = |text: String| cell(Tone::Plain, text);
    let ms = |ms: Option<f64>| plain(ms.map_or_else(dash, |ms| format!("{ms:.1}")));
    let memory = memory.map_or_else(dash, |memory| match limit {
        Some(limit) => format!("{} of {}", size(memory), size(limit)),
        None => size(memory),
    });
    let mut cells = vec![name, state, plain(cpu.map_or_else(dash, |cpu| format!("{cpu:.1} %"))), plain(memory)];
    if !counted {
        return cells;
    }
    let tone = if requests.errors_per_second > 0.0 { Tone::Bad } else { Tone::Plain };
    cells.extend([
        plain(format!("{:.1}", requests.requests_per_second)),
        ms(requests.p50_ms),
        ms(requests.p99_ms),
        cell(tone, format!("{:.1}", requests.errors_per_second)),
        plain(requests.open.to_string()),
        plain(rate(requests.received_per_second)),
        plain(rate(requests.sent_per_second)),
    ]);
    cells
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    if bytes >= 10 << 30 { format!("{} GB", bytes >> 30) } else { format!("{} MB", bytes >> 20) }
}

/// Bytes in a second for people.
fn rate(bytes: f64) -> String {
    let (bytes, unit) = match bytes {
        bytes if bytes >= 1e9 => (bytes / 1e9, "GB"),
        bytes if bytes >= 1e6 => (bytes / 1e6, "MB"),
        bytes if bytes >= 1e3 => (bytes / 1e3, "kB"),
        bytes => (bytes, "B"),
    };
    if bytes >= 100.0 || unit == "B" { format!("{bytes:.0} {unit}") } else { format!("{bytes:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moat_daemon::protocol::Counters;

    #[test]
    fn rates_are_of_the_time_between() {
        let service = |micros, counters: &Counters| -> Load {
            let instance = InstanceLoad {
                id: "shop-1".to_owned(),
                live: true,
                ready: true,
                usage: Some((micros, 64 << 20)),
                counted: counters.read(),
            };
            let gone = InstanceLoad { id: "shop-0".to_owned(), live: false, ready: false, usage: None, counted: counters.read() };
            let service = ServiceLoad {
                service: moat_model::Slug::new("shop").unwrap(),
                kind: None,
                phase: Some(ServicePhase::Live),
                limits: None,
                own: Counted::default(),
                visits: None,
                instances: vec![instance, gone],
            };
            Load { at_micros: micros * 4, services: vec![service], counted: true, ..Load::default() }
        };
        let counters = Counters::default();
        counters.answered(200, Duration::from_millis(1));
        let before = service(1_000_000, &counters);
        for n in 0..40 {
            counters.answered(if n < 4 { 502 } else { 200 }, Duration::from_millis(2));
            counters.sent(1000);
        }
        let shown = Shown::between(&before, &service(2_000_000, &counters), None);
        let row = &shown.services[0];
        // Four seconds, and the numbers of two instances.
        assert!((row.requests.requests_per_second - 20.0).abs() < 0.01 && (row.requests.errors_per_second - 2.0).abs() < 0.01, "{row:?}");
        assert!(row.requests.p50_ms.is_some_and(|ms| (1.5..=2.0).contains(&ms)), "{row:?}");
        assert_eq!((row.instances.len(), row.instances[0].cpu_percent, row.memory_bytes), (1, Some(25.0), Some(64 << 20)));
        assert_eq!(
            (rate(999.0), rate(20_000.0), rate(123_456_789.0), size(512 << 20)),
            ("999 B".into(), "20.0 kB".into(), "123 MB".into(), "512 MB".into())
        );
        assert!(Shown::between(&before, &before, Some("other")).services.is_empty());
    }
}
