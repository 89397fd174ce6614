//! The codes of diagnostics. Each has one severity and one page under `docs/errors`.

use moat_model::Severity;

/// A code and its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code {
    /// The stable id.
    pub(crate) id: &'static str,
    /// The weight.
    pub(crate) severity: Severity,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $id:ident $severity:ident;)*) => {
        $($(#[$doc])* pub(crate) const $id: Code = Code { id: stringify!($id), severity: Severity::$severity };)*

        /// Every code that reading a blueprint can give, in order.
        pub const CODES: &[&str] = &[$(stringify!($id)),*];

        /// The page of a code, in Markdown: what it means, an example, and how to mend it.
        pub fn explain_code(code: &str) -> Option<&'static str> {
            match code {
                $(stringify!($id) => Some(include_str!(concat!("../../../docs/errors/", stringify!($id), ".md"))),)*
                _ => None,
            }
        }
    };
}

codes! {
    /// The text is not YAML.
    E0101 Error;
    /// The file is not UTF-8.
    E0102 Error;
    /// The file is too large.
    E0103 Error;
    /// Lists and mappings are nested too deeply.
    E0104 Error;
    /// A key is given twice in one mapping.
    E0105 Error;
    /// The file holds several documents.
    E0106 Error;
    /// A tab indents a line.
    E0107 Error;
    /// An alias or a merge key can't be expanded.
    E0108 Error;
    /// A key is not a plain word.
    E0109 Error;
    /// A YAML tag.
    E0110 Error;
    /// The file is no mapping, or is empty.
    E0111 Error;
    /// A character that YAML does not allow.
    E0112 Error;
    /// More problems than are shown.
    E0113 Error;
    /// A field that does not exist.
    E0201 Error;
    /// A field of something else.
    E0202 Error;
    /// A field is missing.
    E0203 Error;
    /// A value of the wrong shape.
    E0204 Error;
    /// A word that is not one of those allowed.
    E0205 Error;
    /// A number out of its range.
    E0206 Error;
    /// A deprecated spelling.
    E0207 Notice;
    /// A value read leniently.
    E0208 Notice;
    /// Something that Moat does not run yet.
    E0209 Unsupported;
    /// A field with no effect on one machine.
    E0210 Notice;
    /// A field with no effect on this service.
    E0211 Notice;
    /// One field in two spellings.
    E0212 Error;
    /// A variable without a source, or with several.
    E0213 Error;
    /// A variable's key that is no name.
    E0214 Error;
    /// A property that does not exist.
    E0215 Error;
    /// A text that is malformed.
    E0216 Error;
    /// A name that can't be used.
    E0217 Error;
    /// A name that is taken.
    E0218 Error;
    /// A source that a group can't have.
    E0219 Error;
    /// Fields that contradict each other.
    E0220 Error;
    /// A service of no known type, or in the wrong list.
    E0221 Error;
    /// Nothing where something was begun.
    E0222 Notice;
    /// An extension key that is not read.
    E0223 Notice;
    /// A variable given twice in one list.
    E0224 Warning;
    /// A plan that is not offered here.
    E0225 Warning;
    /// `sync: false` in a group.
    E0226 Notice;
    /// A service that can't run as it is written.
    E0227 Warning;
    /// A variable with a value that is also asked for or generated.
    E0228 Warning;
}
