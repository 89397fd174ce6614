//! The codes of diagnostics that planning gives, and how they are collected.
//!
//! What reading says (`moat_blueprint`) is not said again here. The letter says the weight: `E` an error, `U` right but not run by this Moat (an error for `up` only), `W` a warning,
//! `N` a notice. Each code has one page under `docs/errors`.

use moat_model::{Diagnostic, Severity, Span};

macro_rules! codes {
    ($($(#[$doc:meta])* $id:ident;)*) => {
        /// A code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Code { $($(#[$doc])* $id),* }

        impl Code {
            /// The text, such as `E0301`.
            pub(crate) const fn id(self) -> &'static str {
                match self { $(Self::$id => stringify!($id)),* }
            }
        }

        /// Every code that planning can give, in order.
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
    /// A reference to something that does not exist.
    E0301;
    /// A reference to a database as a service, or the other way round.
    E0302;
    /// A property that the target does not have.
    E0303;
    /// The type in a reference is not the target's.
    E0304;
    /// A variable that the target does not have.
    E0305;
    /// References that go in a circle.
    E0306;
    /// A `PORT` that is no port, or a reserved one.
    E0307;
    /// A plan that the type can't have, or that does not exist.
    E0308;
    /// `allowFrom` names a service that does not exist.
    E0309;
    /// A secret file that was not given.
    E0310;
    /// An environment group that does not exist.
    E0311;
    /// No network or address is left.
    E0312;
    /// A name of a database or user that PostgreSQL can't have.
    E0313;
    /// A domain of two services, or one that Moat gives.
    E0314;
    /// `PORT` of something that receives nothing.
    W0301;
    /// The public address of a service that has none.
    W0302;
    /// A reference to something that the private network keeps out of reach.
    W0303;
    /// A variable that only Moat sets.
    W0304;
    /// `allowFrom` lets in someone who can't come.
    W0305;
    /// An environment that is closed in one file and open in another.
    W0306;
    /// A name of a database or user that can't change any more.
    W0307;
    /// A glob of `buildFilter` that can't be read.
    W0308;
    /// An image reference that no registry can have.
    U0302;
    /// A rewrite to a URL that is no public service here.
    U0303;
    /// A reference to something that is not in this file.
    N0301;
    /// An environment group that is not in this file.
    N0302;
    /// A variable that is no longer written stays.
    N0303;
    /// A value was given that nothing asks for.
    N0304;
    /// A service without a build command.
    N0305;
    /// A host name other than the name.
    N0306;
    /// A source that is fetched from another repository.
    N0307;
    /// A plan `free` of a kind that has none.
    N0308;
    /// A language that comes from its official image.
    N0310;
    /// Connections of the ingress that begin with a PROXY header.
    N0311;
}

impl Code {
    pub(crate) fn severity(self) -> Severity {
        match self.id().as_bytes().first() {
            Some(b'E') => Severity::Error,
            Some(b'U') => Severity::Unsupported,
            Some(b'W') => Severity::Warning,
            _ => Severity::Notice,
        }
    }
}

/// Collects diagnostics with the index of the input each belongs to.
#[derive(Debug, Default)]
pub(crate) struct Report {
    list: Vec<(usize, Diagnostic)>,
}

impl Report {
    pub(crate) fn say(
        &mut self,
        input: usize,
        code: Code,
        span: Span,
        pointer: impl Into<String>,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) {
        self.list.push((
            input,
            Diagnostic {
                code: code.id(),
                severity: code.severity(),
                span,
                pointer: pointer.into(),
                message: message.into(),
                help: help.into(),
            },
        ));
    }

    /// All of it, by input and place.
    pub(crate) fn finish(mut self) -> Vec<(usize, Diagnostic)> {
        self.list.sort_by(|(i, a), (j, b)| (i, a.span.start, a.severity, a.code).cmp(&(j, b.span.start, b.severity, b.code)));
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_page_that_says_more_than_its_title() {
        for code in CODES {
            let page = explain_code(code).unwrap();
            assert!(page.starts_with(&format!("# {code}: ")), "{code}");
            assert!(page.lines().count() > 5 && page.contains("```"), "{code} has no example");
        }
        assert_eq!(explain_code("E9999"), None);
    }
}
