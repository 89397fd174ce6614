//! `cargo xtask demo`: from a fresh clone to a running example.

use crate::packages;
use crate::run::{Failure, Outcome, Program, is_root, root};
use std::path::PathBuf;

const BLUEPRINT: &str = "examples/shop/render.yaml";
const DEFAULT_LISTEN: &str = "127.0.0.1:8080";
/// Settings of `moat` that reach it through `sudo`.
const SETTINGS: [&str; 2] = ["MOAT_STATE_DIR", "MOAT_RUN_DIR"];

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    detach: bool,
    listen: String,
}

/// Installs what is missing, builds `moat`, and runs the example in the foreground (or leaves it running).
pub fn run(arguments: &[String]) -> Outcome {
    let options = Options::parse(arguments)?;
    if !cfg!(target_os = "linux") {
        return Err(Failure::new("Moat runs on Linux only"));
    }
    packages::ensure(&[packages::TO_RUN])?;
    Program::cargo()
        .args(["build", "--release", "--locked", "--package", "moat-cli"])
        .run()?;
    let moat = target_folder()?.join("release/moat");
    let up = |extra: &[&str]| {
        Program::as_root(&moat, &SETTINGS)
            .args(["up", "--listen", &options.listen])
            .args(extra)
            .args([root().join(BLUEPRINT)])
            .run()
    };
    let shown = moat
        .strip_prefix(root())
        .unwrap_or(&moat)
        .display()
        .to_string();
    let command = if is_root() {
        shown
    } else {
        format!("sudo {shown}")
    };
    if options.detach {
        up(&["--detach"])?;
        println!("\n{}", to_try(&command, &options.listen, "stop everything"));
        Ok(())
    } else {
        println!(
            "Once everything is ready, in another terminal (Ctrl-C here stops all):\n\n{}",
            to_try(&command, &options.listen, "the same as Ctrl-C here")
        );
        up(&[])
    }
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let mut options = Self {
            detach: false,
            listen: DEFAULT_LISTEN.to_owned(),
        };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "-d" | "--detach" => options.detach = true,
                "--listen" => {
                    let listen = rest
                        .next()
                        .ok_or_else(|| Failure::usage("`--listen` wants ADDRESS:PORT"))?;
                    options.listen = listen
                        .parse::<std::net::SocketAddr>()
                        .map_err(|_| Failure::usage(format!("`{listen}` is not ADDRESS:PORT")))?
                        .to_string();
                }
                other => {
                    return Err(Failure::usage(format!(
                        "`{other}` is not an option of demo"
                    )));
                }
            }
        }
        Ok(options)
    }
}

fn to_try(moat: &str, listen: &str, down: &str) -> String {
    let port = listen.rsplit(':').next().unwrap_or_default();
    let lines = [
        (
            format!("http://storefront.localhost:{port}"),
            "the shop, in a browser",
        ),
        (
            format!("curl -s http://storefront.localhost:{port}/status.json"),
            "the same for programs",
        ),
        (format!("{moat} ps"), "what runs"),
        (format!("{moat} reach"), "who reaches whom"),
        (
            format!("{moat} explain mailer catalog:8080"),
            "one pair, and which rule decides",
        ),
        (
            format!("{moat} explain catalog mailer"),
            "the other way round",
        ),
        (
            format!("{moat} verify"),
            "real connection attempts from everywhere",
        ),
        (format!("{moat} down"), down),
    ];
    let width = lines
        .iter()
        .map(|(line, _)| line.len())
        .max()
        .unwrap_or_default();
    lines
        .iter()
        .map(|(line, why)| format!("  {line:width$}   {why}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Where cargo puts what it builds.
fn target_folder() -> Result<PathBuf, Failure> {
    let metadata = crate::tidy::metadata()?;
    let folder = metadata["target_directory"]
        .as_str()
        .ok_or_else(|| Failure::new("`cargo metadata` names no target folder"))?;
    Ok(PathBuf::from(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, Failure> {
        Options::parse(
            &words
                .iter()
                .map(|&word| word.to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn options_are_read_or_refused() {
        let options = |detach, listen: &str| Options {
            detach,
            listen: listen.to_owned(),
        };
        assert_eq!(parse(&[]).unwrap(), options(false, DEFAULT_LISTEN));
        assert_eq!(parse(&["--detach"]).unwrap(), options(true, DEFAULT_LISTEN));
        assert_eq!(
            parse(&["--listen", "127.0.0.1:9000", "-d"]).unwrap(),
            options(true, "127.0.0.1:9000")
        );
        for wrong in [
            &["--listen"][..],
            &["--listen", "9000"],
            &["--listen", "localhost:9000"],
            &["--fast"],
        ] {
            assert_eq!(parse(wrong).unwrap_err().exit_code, 2, "{wrong:?}");
        }
    }

    #[test]
    fn the_hints_name_the_port_that_is_listened_on() {
        let text = to_try("target/release/moat", "127.0.0.1:9000", "stop everything");
        assert!(text.contains("http://storefront.localhost:9000 "), "{text}");
        assert!(
            text.contains("target/release/moat explain mailer catalog:8080"),
            "{text}"
        );
    }

    #[test]
    fn the_blueprint_is_there_and_has_what_the_hints_name() {
        let text = std::fs::read_to_string(root().join(BLUEPRINT)).unwrap();
        for name in [
            "name: storefront",
            "name: mailer",
            "name: catalog",
            "value: 8080",
        ] {
            assert!(text.contains(name), "{name}");
        }
    }
}
