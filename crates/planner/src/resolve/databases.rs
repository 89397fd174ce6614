//! Databases: what a server is told to make, and what a reference to it stands for.
//!
//! Invariant: names and password are drawn once. A server that was made has them for good, whatever is written later.

use crate::alloc::letters;
use crate::codes::{Code, Report};
use crate::names::quoted;
use crate::resolve::defaults::default_port;
use moat_blueprint::spec::{DatabaseProperty, DatabaseSpec, Text};
use moat_model::state::PostgresWorkload;
use moat_model::{Secret, ServiceId, ServiceKind, Slug};
use std::collections::BTreeMap;

/// The most bytes of a name (`NAMEDATALEN` less one).
const LONGEST_NAME: usize = 63;

/// A database of a file, with its id, label and credentials.
#[derive(Debug)]
pub(crate) struct Database<'a> {
    /// Index of its file.
    pub(crate) input: usize,
    /// What is written.
    pub(crate) spec: &'a DatabaseSpec,
    /// Its label.
    pub(crate) slug: Slug,
    /// Its id.
    pub(crate) id: ServiceId,
    /// What its server runs.
    pub(crate) server: PostgresWorkload,
}

impl<'a> Database<'a> {
    /// Takes the credentials that are remembered, else those that are written, else new ones.
    pub(crate) fn new(
        input: usize,
        spec: &'a DatabaseSpec,
        slug: Slug,
        id: ServiceId,
        remembered: &mut BTreeMap<String, Secret>,
        random: &mut dyn FnMut() -> [u8; 32],
        report: &mut Report,
    ) -> Self {
        let mut choose = |key: &str, field: &str, written: Option<&Text>, draw: &mut dyn FnMut() -> String| {
            let pointer = || format!("{}/{field}", spec.pointer);
            let written = written.filter(|name| match problem(name, key) {
                None => true,
                Some(why) => {
                    let message = format!("{} can't be the name of a {key}: {why}", quoted(name));
                    let help = "write up to 63 letters, digits, `_` and `-`, or leave it out: a name is made then".to_owned();
                    report.say(input, Code::E0313, name.span, pointer(), message, help);
                    false
                }
            });
            let known = remembered.get(key).map(|name| name.expose().to_owned());
            if let (Some(known), Some(name)) = (&known, written)
                && *known != name.value
            {
                let message = format!("the {key} of {} stays {}: it was made with that name", quoted(&spec.name), quoted(known));
                let help = format!("write `{field}: {known}`; a database of another name holds other data");
                report.say(input, Code::W0307, name.span, pointer(), message, help);
            }
            let chosen = known.or_else(|| written.map(|name| name.value.clone())).unwrap_or_else(draw);
            remembered.insert(key.to_owned(), Secret::new(chosen.as_str()));
            chosen
        };
        let database = choose("database", "databaseName", spec.database_name.as_ref(), &mut || {
            format!("{}_{}", plain(slug.as_str()), letters(random(), 4))
        });
        let user = choose("user", "user", spec.user.as_ref(), &mut || format!("{database:.58}_user"));
        let password = remembered.entry("password".to_owned()).or_insert_with(|| Secret::new(letters(random(), 24))).clone();
        let major = spec.postgres_major_version.as_ref().and_then(|version| version.trim().parse().ok());
        Self { input, spec, slug, id, server: PostgresWorkload { major, database, user, password } }
    }

    /// What a reference to a property stands for. The URL has no port, as the platform's has none.
    pub(crate) fn property(&self, property: DatabaseProperty) -> String {
        let server = &self.server;
        match property {
            DatabaseProperty::ConnectionString | DatabaseProperty::ConnectionPoolString => {
                format!("postgresql://{}:{}@{}/{}", server.user, server.password.expose(), self.slug, server.database)
            }
            DatabaseProperty::Host => self.slug.to_string(),
            DatabaseProperty::Port => default_port(Some(ServiceKind::Postgres)).unwrap_or_default().to_string(),
            DatabaseProperty::User => server.user.clone(),
            DatabaseProperty::Password => server.password.expose().to_owned(),
            DatabaseProperty::Database => server.database.clone(),
        }
    }
}

/// A label as a name that needs no quotes in SQL.
fn plain(label: &str) -> String {
    let name = label.replace('-', "_");
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("db_{name:.40}") } else { format!("{name:.40}") }
}

/// Why PostgreSQL or this Moat can't have the name. `key` is `database` or `user`.
fn problem(name: &str, key: &str) -> Option<&'static str> {
    let taken: &[&str] = if key == "user" { &["moat", "public", "none"] } else { &["template0", "template1"] };
    if name.len() > LONGEST_NAME {
        Some("it is longer than 63 bytes")
    } else if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')) || name.starts_with('-') {
        Some("it holds other characters than letters, digits, `_` and `-`")
    } else if taken.contains(&name) || key == "user" && name.starts_with("pg_") {
        Some("the server keeps that name for itself")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_server_can_have() {
        for (name, user, database) in [
            ("shop", true, true),
            ("Shop-2_db", true, true),
            ("postgres", true, true),
            ("moat", false, true),
            ("pg_shop", false, true),
            ("public", false, true),
            ("template1", true, false),
            ("-shop", false, false),
            ("a b", false, false),
            ("a'b", false, false),
            ("a\"b", false, false),
            ("é", false, false),
            ("a\nb", false, false),
            (&"a".repeat(63), true, true),
            (&"a".repeat(64), false, false),
        ] {
            assert_eq!(problem(name, "user").is_none(), user, "{name}");
            assert_eq!(problem(name, "database").is_none(), database, "{name}");
        }
    }

    #[test]
    fn a_label_becomes_a_plain_name() {
        assert_eq!([plain("shop-db"), plain("1st")], ["shop_db", "db_1st"]);
        assert_eq!(plain(&"a".repeat(63)).len(), 40);
    }
}
