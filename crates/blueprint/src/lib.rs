//! Blueprint text → [`Blueprint`] and every [`Diagnostic`], with spans; the JSON schema of the same definitions.
//!
//! Text → tree ([`yaml`]) → judged by tables ([`judge`], [`tables`]) → typed ([`extract`]).
//! Invariant: reading never stops at the first error, never panics, and is bounded in time and memory.

mod codes;
mod extract;
mod judge;
mod render;
mod report;
mod schema;
pub mod spec;
mod tables;
mod text;
mod yaml;

pub use codes::{CODES, explain_code};
pub use moat_model::{Diagnostic, Severity};
pub use render::render;
pub use schema::schema;
pub use spec::Blueprint;

use report::Report;
use yaml::Places;

/// What reading a blueprint gives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Read {
    /// All that could be understood; parts that are wrong are left out.
    pub blueprint: Blueprint,
    /// Everything there is to say, sorted by place.
    pub diagnostics: Vec<Diagnostic>,
}

/// Bytes of a text that is worth two threads.
const LARGE: usize = 64 * 1024;

/// Reads a blueprint; never panics, and takes time and memory in proportion to the text, which is refused past 4 MiB.
pub fn read(text: &str) -> Read {
    read_beside(text, &[])
}

/// Reads the bytes of a file; that they are not UTF-8 is a diagnostic.
pub fn read_bytes(bytes: &[u8]) -> Read {
    match std::str::from_utf8(bytes) {
        Ok(text) => read(text),
        Err(error) => {
            let mut report = Report::default();
            if text::short_enough(bytes.len(), &mut report) {
                text::not_utf8(bytes, error.valid_up_to(), &mut report);
            }
            Read { blueprint: Blueprint::default(), diagnostics: report.finish() }
        }
    }
}

/// Reads a blueprint that lies in a repository with these git remotes: a service whose `repo` is one of them runs the
/// blueprint's own folder, another `repo` is unsupported.
pub fn read_beside(text: &str, remotes: &[String]) -> Read {
    let mut report = Report::default();
    let mut blueprint = Blueprint::default();
    if text::short_enough(text.len(), &mut report) {
        let places = Places::new(text);
        if text::readable(&places, &mut report) {
            let root = yaml::load(&places, &mut report);
            if text::is_blueprint(root.as_ref(), &mut report)
                && let Some(root) = root
            {
                let mut extracted = Report::default();
                let mut extract = || {
                    let mut cx = extract::Context { remotes, report: &mut extracted, region_said: false };
                    blueprint = extract::extract(&root, &mut cx);
                };
                if text.len() < LARGE {
                    judge::judge(&root, &tables::ROOT, &mut report);
                    extract();
                } else {
                    // Neither needs anything of the other.
                    std::thread::scope(|scope| {
                        scope.spawn(|| judge::judge(&root, &tables::ROOT, &mut report));
                        extract();
                    });
                }
                report.add(extracted);
            }
        }
    }
    Read { blueprint, diagnostics: report.finish() }
}
