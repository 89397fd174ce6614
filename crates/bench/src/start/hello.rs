//! The program that every runtime starts: the same static file for all.

use crate::failure::{Doing, Failure, Outcome};
use crate::process::timed;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

const SOURCE: &str = include_str!("hello.c");

/// Compiles it to this file, which everyone may run.
pub fn compile(to: &Path) -> Outcome {
    let source = to.with_extension("c");
    std::fs::write(&source, SOURCE).doing("write the measured program")?;
    timed(Command::new("cc").args(["-O2", "-static", "-o"]).arg(to).arg(&source)).map(drop)?;
    std::fs::remove_file(&source).doing("remove the source of the measured program")
}

/// Nanoseconds since 1970, as the program says them.
pub fn now() -> Outcome<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).doing("read the clock")?.as_nanos())
}

/// When the program said it was first at work, in what it printed or what was logged of it.
pub fn first(said: &str) -> Outcome<u128> {
    let wrong = || Failure::new(format!("the measured program did not say when it started, but: {}", said.trim()));
    let digits = said.rsplit_once("first=").ok_or_else(wrong)?.1;
    digits.split(|c: char| !c.is_ascii_digit()).next().and_then(|number| number.parse().ok()).ok_or_else(wrong)
}

/// Milliseconds from running a program to the first instruction of the measured program, whose words it passes on.
pub fn through(command: &mut Command) -> Outcome<f64> {
    let asked = now()?;
    let output = command.output().doing(format_args!("run {command:?}"))?;
    if !output.status.success() {
        return Err(Failure::new(format!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim())));
    }
    Ok(millis(asked, first(&String::from_utf8_lossy(&output.stdout))?))
}

/// Milliseconds between two times.
#[expect(clippy::cast_precision_loss, reason = "durations of seconds fit")]
pub fn millis(from: u128, to: u128) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_found_in_plain_output_and_in_a_log() {
        assert_eq!(first("first=1700000000123456789\n").unwrap(), 1_700_000_000_123_456_789);
        assert_eq!(first("2026-11-21T05:00:00.000000Z stdout F first=42\n2026-11-21T05:00:01Z stderr F bye\n").unwrap(), 42);
        assert!(first("no such file").is_err());
    }

    #[test]
    fn the_program_compiles_and_says_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("hello");
        compile(&program).unwrap();
        let before = now().unwrap();
        let ms = through(&mut Command::new(&program)).unwrap();
        assert!(ms >= 0.0 && millis(before, now().unwrap()) >= ms, "{ms}");
    }
}
