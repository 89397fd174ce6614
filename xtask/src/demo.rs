//! `cargo xtask demo`: from a fresh clone to a running example.

use crate::packages;
use crate::run::{Failure, Outcome, Program, is_root, root};
use std::net::SocketAddr;
use std::path::PathBuf;

const BLUEPRINT: &str = "examples/shop/render.yaml";
const DEFAULT_LISTEN: &str = "127.0.0.1:8080";
/// Settings of `moat` that reach it through `sudo`.
const SETTINGS: [&str; 3] = ["MOAT_STATE_DIR", "MOAT_RUN_DIR", "MOAT_LISTEN"];

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    detach: bool,
    /// Where the page is served; given to `moat up` only when the caller chose it.
    listen: Option<String>,
    /// What stands after `--`, for `moat up` as it is.
    rest: Vec<String>,
}

/// Installs what is missing, builds `moat`, and runs the example in the foreground (or leaves it running).
pub fn run(arguments: &[String]) -> Outcome {
    let options = Options::parse(arguments)?;
    if !cfg!(target_os = "linux") {
        return Err(Failure::new("Moat runs on Linux only"));
    }
    packages::ensure(&[packages::TO_BUILD, packages::TO_RUN])?;
    Program::cargo().args(["build", "--release", "--locked", "--package", "moat-cli"]).run()?;
    let moat = target_folder()?.join("release/moat");
    let shown = moat.strip_prefix(root()).unwrap_or(&moat).display();
    let command = if is_root() { shown.to_string() } else { format!("sudo {shown}") };
    let listen = options.listen.clone().or_else(|| std::env::var("MOAT_LISTEN").ok());
    let hints = to_try(&command, listen.as_deref().unwrap_or(DEFAULT_LISTEN), options.detach);
    if !options.detach {
        println!("Once everything is ready, in another terminal (Ctrl-C here stops all):\n\n{hints}\n");
    }
    Program::as_root(&moat, &SETTINGS)
        .args(["up"])
        .args(options.detach.then_some("--detach"))
        .args(options.listen.iter().flat_map(|listen| ["--listen", listen]))
        .args(&options.rest)
        .args([root().join(BLUEPRINT)])
        .run()?;
    if options.detach {
        println!("\n{hints}");
    }
    Ok(())
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let mut options = Self { detach: false, listen: None, rest: Vec::new() };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "-d" | "--detach" => options.detach = true,
                "--listen" => {
                    let listen = rest.next().ok_or_else(|| Failure::usage("`--listen` wants ADDRESS:PORT"))?;
                    let address: SocketAddr = listen.parse().map_err(|_| Failure::usage(format!("`{listen}` is not ADDRESS:PORT")))?;
                    options.listen = Some(address.to_string());
                }
                "--" => options.rest = rest.by_ref().cloned().collect(),
                other => {
                    return Err(Failure::usage(format!("`{other}` is not an option of demo")));
                }
            }
        }
        Ok(options)
    }
}

fn to_try(moat: &str, listen: &str, detached: bool) -> String {
    let port = listen.rsplit(':').next().unwrap_or_default();
    let lines = [
        (format!("http://storefront.localhost:{port}"), "the shop, in a browser"),
        (format!("curl -s http://storefront.localhost:{port}/status.json"), "the same for programs"),
        (format!("{moat} ps"), "what runs"),
        (format!("{moat} reach"), "who reaches whom"),
        (format!("{moat} explain mailer catalog:8080"), "one pair, and which rule decides"),
        (format!("{moat} explain catalog mailer"), "the other way round"),
        (format!("{moat} verify"), "real connection attempts from everywhere"),
        (format!("{moat} down"), if detached { "stop everything" } else { "stop everything, as Ctrl-C here does" }),
    ];
    let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or_default();
    lines.iter().map(|(line, why)| format!("  {line:width$}   {why}")).collect::<Vec<_>>().join("\n")
}

/// Where cargo puts what it builds.
pub fn target_folder() -> Result<PathBuf, Failure> {
    let metadata = crate::tidy::metadata()?;
    let folder = metadata["target_directory"].as_str().ok_or_else(|| Failure::new("`cargo metadata` names no target folder"))?;
    Ok(PathBuf::from(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, Failure> {
        Options::parse(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read_or_refused() {
        let options = parse(&[]).unwrap();
        assert_eq!(options, Options { detach: false, listen: None, rest: Vec::new() });
        let options = parse(&["--listen", "127.0.0.1:9000", "-d", "--", "--set", "A=b"]).unwrap();
        assert!(options.detach);
        assert_eq!(options.listen.as_deref(), Some("127.0.0.1:9000"));
        assert_eq!(options.rest, ["--set", "A=b"]);
        for wrong in [&["--listen"][..], &["--listen", "9000"], &["--listen", "localhost:9000"], &["--fast"]] {
            assert_eq!(parse(wrong).unwrap_err().exit_code, 2, "{wrong:?}");
        }
    }

    #[test]
    fn the_hints_name_the_port_that_is_listened_on() {
        let text = to_try("target/release/moat", "127.0.0.1:9000", true);
        assert!(text.contains("http://storefront.localhost:9000 "), "{text}");
        assert!(text.contains("target/release/moat explain mailer catalog:8080"), "{text}");
    }

    #[test]
    fn the_blueprint_is_there_and_has_what_the_hints_name() {
        let text = std::fs::read_to_string(root().join(BLUEPRINT)).unwrap();
        for name in ["name: storefront", "name: mailer", "name: catalog", "value: 8080"] {
            assert!(text.contains(name), "{name}");
        }
    }
}
