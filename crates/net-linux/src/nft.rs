//! The `nft` program, run in the namespace of the calling thread.

use crate::NetError;
use serde_json::Value;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// How to install it.
const HINT: &str = "install it: `apt-get install nftables`";

fn spawn_error(error: io::Error) -> NetError {
    if error.kind() == io::ErrorKind::NotFound {
        NetError::MissingTool { tool: "nft", hint: HINT }
    } else {
        NetError::io("run `nft`")(error)
    }
}

/// The program by its whole path: one that is searched for after the environment was cleared is started by fork(2), which
/// copies this process' page tables first.
fn program() -> Command {
    // Services' tools are often outside the PATH of a person who is not root.
    let mut path = std::env::var("PATH").unwrap_or_default();
    path.push_str(":/usr/sbin:/sbin:/usr/local/sbin");
    let places = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    let found = places.map(|folder| folder.join("nft")).find(|file| file.is_file());
    let mut command = Command::new(found.unwrap_or_else(|| PathBuf::from("nft")));
    command.env_clear().env("PATH", path).env("LC_ALL", "C");
    command
}

/// Applies text as one transaction.
pub fn apply(text: &str, doing: &'static str) -> Result<(), NetError> {
    if text.is_empty() {
        return Ok(());
    }
    let mut child =
        program().args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(spawn_error)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A broken pipe means that nft gave up; its message says why.
        match stdin.write_all(text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(NetError::io("write to `nft`")(error)),
            Ok(()) | Err(_) => {}
        }
    }
    let output = child.wait_with_output().map_err(NetError::io("run `nft`"))?;
    if output.status.success() {
        return Ok(());
    }
    let mut message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if let Some((end, _)) = message.char_indices().nth(600) {
        message.truncate(end);
        message.push('…');
    }
    Err(NetError::Nft { doing, output: message })
}

/// Runs a listing as JSON; `None` when what was asked for is not there.
pub fn list(arguments: &[&str]) -> Result<Option<Vec<Value>>, NetError> {
    let output = program().arg("-j").args(arguments).output().map_err(spawn_error)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        if text.contains("No such file or directory") || text.contains("does not exist") {
            return Ok(None);
        }
        return Err(NetError::Nft { doing: "list the filter", output: text.trim().to_owned() });
    }
    let unreadable = || NetError::Nft { doing: "list the filter", output: "its JSON can't be read".to_owned() };
    let mut value: Value = serde_json::from_slice(&output.stdout).map_err(|_| unreadable())?;
    match value.get_mut("nftables").map(Value::take) {
        Some(Value::Array(items)) => Ok(Some(items)),
        _ => Err(unreadable()),
    }
}

/// Whether a chain of a table is there.
pub fn has_chain(table: &str, chain: &str) -> Result<bool, NetError> {
    Ok(list(&["list", "chain", "inet", table, chain])?.is_some())
}

/// The names of the `inet` tables.
pub fn tables() -> Result<Vec<String>, NetError> {
    let items = list(&["list", "tables", "inet"])?.unwrap_or_default();
    Ok(items.iter().filter_map(|item| item["table"]["name"].as_str()).map(str::to_owned).collect())
}
