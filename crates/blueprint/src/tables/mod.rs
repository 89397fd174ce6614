//! The format's definitions: one table per object, from which reading and the JSON schema come.
//!
//! An [`Object`] lists [`Field`]s; a field has a name, a [`Shape`], a text for people, and what Moat does about it.

mod database;
mod env;
pub(crate) mod formats;
mod root;
mod service;
mod small;
mod words;

pub(crate) use database::{DATABASE, DATABASE_OPTION, HIGH_AVAILABILITY, REPLICA};
pub(crate) use env::{ANY_ENV, DATABASE_REFERENCE, FROM_DATABASE, FROM_GROUP, FROM_SERVICE, FROM_VALUE, GROUP, SERVICE_REFERENCE};
pub(crate) use root::{BUILD_SOURCE, BUILD_SOURCE_GIT, ENVIRONMENT, NETWORKING, PERMISSIONS, PROJECT, ROOT, UNGROUPED};
pub(crate) use service::{ANY_SERVICE, CRON, KEYVALUE, PSERV, STATIC, WEB, WORKER, WORKFLOW};
pub(crate) use small::{
    ALLOW_ENTRY, BUILD_FILTER, CREDENTIAL, CREDENTIAL_NAME, DISK, HEADER, IMAGE, MAINTENANCE, MOAT, PREVIEWS, ROOT_PREVIEWS, ROUTE, SCALING,
};
pub(crate) use words::{
    CONNECTION_POOL, CRON_PLAN, DATABASE_PROPERTY, EGRESS, GENERATION, MAXMEMORY, Meant, PERSISTENCE, POSTGRES_PLAN, POSTGRES_VERSION,
    PROXY_HEADER, REFERENCE_TYPE, REGION, ROUTE_TYPE, RUNTIME, SERVER_PLAN, SERVICE_PROPERTY, SERVICE_TYPE, START_ORDER, SWITCH, TRIGGER,
    Words, squeeze,
};

/// An object of the format.
#[derive(Debug)]
pub(crate) struct Object {
    /// Its name in the schema.
    pub(crate) name: &'static str,
    /// The phrase for people: `a static site`.
    pub(crate) phrase: &'static str,
    /// What it is.
    pub(crate) doc: &'static str,
    /// Its fields, in groups that objects share; the first field of a name counts.
    pub(crate) groups: &'static [&'static [Field]],
    /// Keys that the format does not know are left alone.
    pub(crate) open: bool,
}

impl Object {
    const fn new(name: &'static str, phrase: &'static str, doc: &'static str, groups: &'static [&'static [Field]]) -> Self {
        Self { name, phrase, doc, groups, open: false }
    }

    /// Every field, in order.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &'static Field> + use<> {
        self.groups.iter().copied().flatten()
    }

    /// The field of this name or alias.
    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields().find(|field| field.name == name || field.aliases.contains(&name))
    }
}

/// A field of an object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    /// Its name.
    pub(crate) name: &'static str,
    /// Names it had before.
    pub(crate) aliases: &'static [&'static str],
    /// What its value looks like.
    pub(crate) shape: Shape,
    /// What it says.
    pub(crate) doc: &'static str,
    /// Whether it must be there.
    pub(crate) required: bool,
    /// What Moat does about it.
    pub(crate) fate: Fate,
    /// What a text must look like.
    pub(crate) format: Option<Format>,
}

/// What Moat does about a field that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is honoured, or the object it is in is refused as a whole, or a rule says what is not done.
    Honoured,
    /// It has no effect on one machine, for this reason.
    OneMachine(&'static str),
    /// It has no effect on this kind of object, for this reason.
    NoEffect(&'static str),
    /// It isn't done yet, and running without it would be wrong: the reason.
    Refused(&'static str),
    /// It is deprecated for this; and why it has no effect, empty where it has.
    Deprecated(&'static str, &'static str),
}

/// What a value looks like.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// Text.
    Text,
    /// A shell command; blank is none.
    Command,
    /// Text, a number, or true and false: the source text is kept.
    Value,
    /// One of some words.
    Word(&'static Words),
    /// `type` of a service: judged when the table is chosen.
    Type(&'static Words),
    /// True or false.
    Bool,
    /// A whole number from .. to, both included.
    Int(u32, u32),
    /// A list.
    List(Item),
    /// An object.
    Object(&'static Object),
    /// A mapping of free keys to texts.
    TextMap,
    /// A word, or a list of texts.
    WordOrTexts(&'static Words),
}

impl Shape {
    /// The words of an enumeration.
    pub(crate) const fn words(self) -> Option<&'static Words> {
        match self {
            Self::Word(words) => Some(words),
            Self::Text
            | Self::Command
            | Self::Value
            | Self::Type(_)
            | Self::Bool
            | Self::Int(..)
            | Self::List(_)
            | Self::Object(_)
            | Self::TextMap
            | Self::WordOrTexts(_) => None,
        }
    }
}

/// What an item of a list looks like.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Item {
    /// Text.
    Text,
    /// An object.
    Object(&'static Object),
    /// One of several objects.
    Choice(&'static Choice),
}

/// Several objects, told apart by what is written.
#[derive(Debug)]
pub(crate) struct Choice {
    /// Its name in the schema.
    pub(crate) name: &'static str,
    /// The objects.
    pub(crate) objects: &'static [&'static Object],
    /// How the object is chosen.
    pub(crate) by: ChooseBy,
}

/// How an object of a [`Choice`] is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChooseBy {
    /// By `type` and `runtime`.
    Service,
    /// By the source of the variable.
    EnvVar,
}

/// Why a text is malformed, and what to write.
pub(crate) type Malformed = (String, Option<String>);
/// Checks a text.
pub(crate) type Format = fn(&str) -> Result<(), Malformed>;

/// A field.
const fn field(name: &'static str, shape: Shape, doc: &'static str) -> Field {
    Field { name, aliases: &[], shape, doc, required: false, fate: Fate::Honoured, format: None }
}

impl Field {
    const fn required(mut self) -> Self {
        self.required = true;
        self
    }
    const fn alias(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }
    const fn one_machine(mut self, why: &'static str) -> Self {
        self.fate = Fate::OneMachine(why);
        self
    }
    const fn no_effect(mut self, why: &'static str) -> Self {
        self.fate = Fate::NoEffect(why);
        self
    }
    const fn refused(mut self, why: &'static str) -> Self {
        self.fate = Fate::Refused(why);
        self
    }
    const fn deprecated(mut self, instead: &'static str, also: &'static str) -> Self {
        self.fate = Fate::Deprecated(instead, also);
        self
    }
    const fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }
}

/// Every object that says where a field belongs.
pub(crate) static OBJECTS: &[&Object] = &[
    &ROOT,
    &WEB,
    &PSERV,
    &WORKER,
    &CRON,
    &STATIC,
    &KEYVALUE,
    &WORKFLOW,
    &DATABASE,
    &GROUP,
    &ENVIRONMENT,
    &DISK,
    &SCALING,
    &MAINTENANCE,
    &BUILD_FILTER,
    &MOAT,
    &FROM_VALUE,
];
