//! The one place that writes to the terminal: data to stdout, the rest to stderr.

use crate::args::{Color, Output};
use crate::command_error::CommandError;
use anstyle::{AnsiColor, Style};
use serde::Serialize;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use unicode_width::UnicodeWidthStr as _;

/// How this run speaks.
#[derive(Debug)]
pub struct Ui {
    output: Output,
    color_out: bool,
    color_err: bool,
    terminal: bool,
}

/// Meanings that have a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    Plain,
    /// Fine.
    Good,
    /// Wrong.
    Bad,
    /// Attention.
    Warn,
    /// Less important.
    Dim,
    /// A heading.
    Strong,
    /// Something to open or copy.
    Link,
    /// One of the colours by which services are told apart.
    Nth(usize),
}

const ROUND: [AnsiColor; 6] =
    [AnsiColor::Cyan, AnsiColor::Magenta, AnsiColor::Blue, AnsiColor::Yellow, AnsiColor::Green, AnsiColor::BrightCyan];

impl Tone {
    fn style(self) -> Style {
        let fg = |color: AnsiColor| Style::new().fg_color(Some(color.into()));
        match self {
            Self::Plain => Style::new(),
            Self::Good => fg(AnsiColor::Green),
            Self::Bad => fg(AnsiColor::Red).bold(),
            Self::Warn => fg(AnsiColor::Yellow),
            Self::Dim => Style::new().dimmed(),
            Self::Strong => Style::new().bold(),
            Self::Link => fg(AnsiColor::Cyan).underline(),
            Self::Nth(n) => fg(ROUND[n % ROUND.len()]),
        }
    }
}

/// A text and its tone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// The text.
    pub text: String,
    /// Its tone.
    pub tone: Tone,
}

/// A cell.
pub fn cell(tone: Tone, text: impl Into<String>) -> Cell {
    Cell { text: text.into(), tone }
}

#[expect(clippy::unused_self, reason = "only who has the `Ui` may write")]
impl Ui {
    /// By what was asked and where the output goes.
    pub fn new(output: Output, color: Color) -> Self {
        let wanted = |terminal: bool| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        };
        Self {
            output,
            color_out: wanted(io::stdout().is_terminal()),
            color_err: wanted(io::stderr().is_terminal()),
            terminal: io::stderr().is_terminal() && io::stdout().is_terminal(),
        }
    }

    /// Whether to answer in JSON.
    pub fn json(&self) -> bool {
        self.output == Output::Json
    }

    /// Whether a person watches.
    pub fn terminal(&self) -> bool {
        self.terminal && !self.json()
    }

    /// Whether diagnostics on stderr are coloured.
    pub fn color_err(&self) -> bool {
        self.color_err
    }

    /// Whether data on stdout is coloured.
    pub fn color_out(&self) -> bool {
        self.color_out
    }

    /// A coloured text for stdout.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        if self.color_out { painted(tone, text) } else { text.to_owned() }
    }

    /// A coloured text for stderr.
    pub fn paint_err(&self, tone: Tone, text: &str) -> String {
        if self.color_err { painted(tone, text) } else { text.to_owned() }
    }

    /// A line of data.
    pub fn line(&self, text: &str) {
        // A reader that went away (`| head`) is no error.
        let _ = writeln!(io::stdout(), "{text}");
    }

    /// Data as it is.
    pub fn raw(&self, text: &str) {
        let mut out = io::stdout();
        let _ = out.write_all(text.as_bytes());
        let _ = out.flush();
    }

    /// A line about what goes on.
    pub fn say(&self, text: &str) {
        // Who watched and went away stops nothing.
        let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
    }

    /// Data as JSON: pretty on one go.
    pub fn print_json(&self, value: &impl Serialize) -> Result<(), CommandError> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| CommandError::bug(format!("the answer can't be written as JSON: {error}")))?;
        self.line(&text);
        Ok(())
    }

    /// One JSON value on a line of its own, for streams.
    pub fn json_line(&self, value: &impl Serialize) {
        if let Ok(text) = serde_json::to_string(value) {
            self.line(&text);
        }
    }

    /// Says an error with its hints and gives its exit code.
    pub fn fail(&self, error: &CommandError) -> ExitCode {
        if self.json() {
            self.json_line(&serde_json::json!({ "error": error.message, "hints": error.hints, "exitCode": error.code }));
        }
        self.say(&format!("{} {}", self.paint_err(Tone::Bad, "error:"), error.message));
        for hint in &error.hints {
            self.say(&format!("{} {hint}", self.paint_err(Tone::Link, " hint:")));
        }
        error.exit_code()
    }

    /// A table with aligned columns; the head is dimmed.
    pub fn table(&self, head: &[&str], rows: &[Vec<Cell>]) {
        let mut text = self.table_lines(head, rows).join("\n");
        if !text.is_empty() {
            text.push('\n');
            self.raw(&text);
        }
    }

    /// The lines of a table.
    pub fn table_lines(&self, head: &[&str], rows: &[Vec<Cell>]) -> Vec<String> {
        let mut widths: Vec<usize> = head.iter().map(|h| h.width()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.width());
            }
        }
        let render = |cells: Vec<(Tone, &str)>| {
            let mut line = String::new();
            let last = cells.len().saturating_sub(1);
            for (i, ((tone, text), width)) in cells.into_iter().zip(&widths).enumerate() {
                line.push_str(&self.paint(tone, text));
                if i != last {
                    line.push_str(&" ".repeat(width.saturating_sub(text.width()) + 2));
                }
            }
            line.trim_end().to_owned()
        };
        let mut lines = Vec::with_capacity(rows.len() + 1);
        if head.iter().any(|h| !h.is_empty()) {
            lines.push(render(head.iter().map(|h| (Tone::Dim, *h)).collect()));
        }
        lines.extend(rows.iter().map(|row| render(row.iter().map(|c| (c.tone, c.text.as_str())).collect())));
        lines
    }
}

fn painted(tone: Tone, text: &str) -> String {
    let style = tone.style();
    format!("{style}{text}{style:#}")
}
