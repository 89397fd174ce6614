//! Judged tree → typed blueprint, and what fields say together.

mod database;
mod env;
mod moat;
mod names;
mod object;
mod root;
mod rules;
mod service;
mod small;

use crate::report::{Path, Report};
use crate::spec::Blueprint;
use crate::tables::ROOT;
use crate::yaml::Node;
use object::Obj;

/// What is known beside the text.
pub(crate) struct Context<'a> {
    /// Git remotes of the blueprint's folder.
    pub(crate) remotes: &'a [String],
    /// Where things are said.
    pub(crate) report: &'a mut Report,
    /// Whether it was said already that regions share this machine.
    pub(crate) region_said: bool,
}

/// Reads everything that was understood.
pub(crate) fn extract(root: &Node<'_>, cx: &mut Context<'_>) -> Blueprint {
    let mut blueprint = Blueprint::default();
    if let Some(root) = Obj::new(root, &ROOT) {
        root::root(root, &Path::Root, &mut blueprint, cx);
        names::unique(&blueprint, cx.report);
    }
    blueprint
}
