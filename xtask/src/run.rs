//! Running other programs, and where things are.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a command of the task runner comes to.
pub type Outcome = Result<(), Failure>;

/// Why a task failed, in words for the person who called it.
#[derive(Debug)]
pub struct Failure {
    /// A lower-case fragment.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The process' exit code.
    pub exit_code: u8,
}

impl Failure {
    /// A task that could not be done.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, exit_code: 1 }
    }
    /// A command line that makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some("`cargo xtask help` says what is understood".to_owned()), exit_code: 2 }
    }
    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A command line that is shown before it runs.
#[derive(Debug)]
pub struct Program(Command);

impl Program {
    /// A program by name (searched in `PATH`) or path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self(Command::new(program))
    }
    /// `cargo` of the toolchain that runs this, in the workspace's root.
    pub fn cargo() -> Self {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(root());
        Self(command)
    }
    /// A program as root: directly, or by `sudo` that keeps the named variables.
    pub fn as_root(program: impl AsRef<OsStr>, keep: &[&str]) -> Self {
        if is_root() {
            return Self::new(program);
        }
        let mut command = Command::new("sudo");
        if !keep.is_empty() {
            command.arg(format!("--preserve-env={}", keep.join(",")));
        }
        command.arg("--").arg(program);
        Self(command)
    }
    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.0.args(arguments);
        self
    }
    /// Sets a variable.
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(key, value);
        self
    }
    /// Shows the command line, runs it with this process' terminal, and fails when it does.
    pub fn run(mut self) -> Outcome {
        eprintln!("+ {self}");
        let status = self.0.status().map_err(|error| self.not_started(&error))?;
        if status.success() {
            return Ok(());
        }
        let exit_code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
        Err(Failure { message: format!("`{self}` failed ({status})"), hint: None, exit_code })
    }
    /// Runs it silently and returns what it printed.
    pub fn output(mut self) -> Result<String, Failure> {
        let output = self.0.output().map_err(|error| self.not_started(&error))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::new(format!("`{self}` failed ({}): {}", output.status, said.trim())));
        }
        String::from_utf8(output.stdout).map_err(|_| Failure::new(format!("`{self}` printed something that is not UTF-8")))
    }
    /// Whether it runs and succeeds; what it prints is thrown away.
    pub fn succeeds(mut self) -> bool {
        self.0.output().is_ok_and(|output| output.status.success())
    }
    fn not_started(&self, error: &std::io::Error) -> Failure {
        let program = self.0.get_program().to_string_lossy().into_owned();
        Failure::new(format!("`{program}` does not start: {error}"))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = root();
        let shown = |part: &OsStr| {
            let path = Path::new(part);
            path.strip_prefix(&root).unwrap_or(path).to_string_lossy().into_owned()
        };
        let program = Path::new(self.0.get_program());
        if program.file_name() == Some(OsStr::new("cargo")) {
            f.write_str("cargo")?;
        } else {
            f.write_str(&shown(program.as_os_str()))?;
        }
        for argument in self.0.get_args() {
            let argument = shown(argument);
            let argument = if argument.contains('\n') { "'…'" } else { &argument };
            write!(f, " {argument}")?;
        }
        Ok(())
    }
}

/// The workspace's root folder.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|about| about.uid() == 0)
}

/// Whether a program of this name is in `PATH` or where administrators' programs are.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|folder| {
        let file = folder.join(program);
        file.metadata().is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_names_itself_and_passes_its_code_on() {
        let failure = Program::new("sh").args(["-c", "exit 3"]).run().unwrap_err();
        assert_eq!(failure.exit_code, 3);
        assert!(failure.message.contains("sh -c exit 3"), "{}", failure.message);
        let failure = Program::new("no-such-program-here").run().unwrap_err();
        assert!(failure.message.contains("`no-such-program-here` does not start"), "{}", failure.message);
    }

    #[test]
    fn output_is_what_the_program_printed_and_its_complaint_is_kept() {
        assert_eq!(Program::new("sh").args(["-c", "echo hi"]).output().unwrap(), "hi\n");
        let failure = Program::new("sh").args(["-c", "echo bad >&2; exit 1"]).output().unwrap_err();
        assert!(failure.message.ends_with("bad"), "{}", failure.message);
    }

    #[test]
    fn the_root_is_the_workspace() {
        assert!(root().join("Cargo.lock").is_file());
    }

    #[test]
    fn programs_are_found_where_they_are() {
        assert!(on_path("sh"));
        assert!(!on_path("no-such-program-here"));
    }
}
