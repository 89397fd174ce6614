//! The only place that turns errors into words and exit codes.

use moat_daemon::client::ClientError;
use moat_daemon::protocol::Failure;
use std::fmt;
use std::path::Path;
use std::process::ExitCode;

/// Why a command failed, as a person reads it.
#[derive(Debug)]
pub struct CommandError {
    /// In words.
    pub message: String,
    /// What to do.
    pub hints: Vec<String>,
    /// The exit code.
    pub code: u8,
}

impl CommandError {
    /// The blueprint or the arguments are wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), hints: Vec::new(), code: 2 }
    }
    /// Refused, or a check failed.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { message: message.into(), hints: Vec::new(), code: 1 }
    }
    /// The machine did not do what was asked.
    pub fn engine(message: impl Into<String>) -> Self {
        Self { message: message.into(), hints: Vec::new(), code: 3 }
    }
    /// Moat is wrong.
    pub fn bug(message: impl Into<String>) -> Self {
        Self { message: message.into(), hints: vec!["this is a mistake of Moat: please report it".to_owned()], code: 70 }
    }
    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
    /// A file that can't be read.
    pub fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        let shown = path.display();
        if error.kind() == std::io::ErrorKind::NotFound {
            return Self::usage(format!("there is no `{shown}`")).hint("name the blueprint: `moat up path/to/render.yaml`");
        }
        Self::usage(format!("can't read `{shown}`: {error}"))
    }
    /// The process' exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NotRunning => Self::refused(error.to_string()).hint("run a blueprint first: `moat up FILE`"),
            ClientError::Permission(_) => {
                Self::refused(error.to_string()).hint("run it as root (`sudo moat …`), or as a member of the group `moat`")
            }
            ClientError::NoStart(_) => Self::engine(error.to_string()).hint("`moat doctor` shows what this machine lacks"),
            ClientError::Broken(_) => Self::engine(error.to_string()).hint("what runs goes on; ask again with `moat ps`"),
            ClientError::Foreign(_) => Self::bug(error.to_string()),
        }
    }
}

impl From<Failure> for CommandError {
    fn from(failure: Failure) -> Self {
        Self { message: failure.message, hints: failure.hint.into_iter().collect(), code: failure.exit_code }
    }
}
