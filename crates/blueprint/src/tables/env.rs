//! Environment variables and groups.

use super::words::{DATABASE_PROPERTY, REFERENCE_TYPE, SERVICE_PROPERTY};
use super::{Choice, ChooseBy, Field, Item, Object, Shape, field, formats};

const KEY: Field = field("key", Shape::Text, "Name of the variable.").required().format(formats::env_key);
const PREVIEW: &str = "Moat makes no preview environments, `value` counts";

const LABELS: &[Field] = &[
    field("displayName", Shape::Text, "Label where the value is asked for."),
    field("description", Shape::Text, "What the value is for."),
    field("sensitive", Shape::Bool, "Whether the value is asked for without showing it."),
];

pub(crate) static FROM_VALUE: Object = Object::new(
    "envVarFromValue",
    "a variable with a value",
    "A variable that is written, generated, or asked for.",
    &[
        &[
            KEY,
            field("value", Shape::Value, "The value; numbers keep their source text."),
            field("generateValue", Shape::Bool, "Makes 256 random bits in base64, once."),
            field("sync", Shape::Bool, "`false`: the value is asked for and not kept in the file."),
            field("previewValue", Shape::Value, "The value in preview environments.").one_machine(PREVIEW),
        ],
        LABELS,
    ],
);

pub(crate) static DATABASE_REFERENCE: Object = Object::new(
    "databaseReference",
    "`fromDatabase`",
    "Names a database and what of it.",
    &[&[
        field("name", Shape::Text, "Name of the database.").required(),
        field("property", Shape::Word(&DATABASE_PROPERTY), "What of it.").required(),
    ]],
);
pub(crate) static FROM_DATABASE: Object = Object::new(
    "envVarFromDatabase",
    "a variable from a database",
    "A variable with a property of a database.",
    &[&[KEY, field("fromDatabase", Shape::Object(&DATABASE_REFERENCE), "The database and what of it.").required()], LABELS],
);

pub(crate) static SERVICE_REFERENCE: Object = Object::new(
    "serviceReference",
    "`fromService`",
    "Names a service and what of it: `property` or `envVarKey`.",
    &[&[
        field("name", Shape::Text, "Name of the service.").required(),
        field("type", Shape::Word(&REFERENCE_TYPE), "Type of the service."),
        field("property", Shape::Word(&SERVICE_PROPERTY), "What of it."),
        field("envVarKey", Shape::Text, "The variable of it, default ones included."),
    ]],
);
pub(crate) static FROM_SERVICE: Object = Object::new(
    "envVarFromService",
    "a variable from a service",
    "A variable with a property or variable of a service.",
    &[&[KEY, field("fromService", Shape::Object(&SERVICE_REFERENCE), "The service and what of it.").required()], LABELS],
);

pub(crate) static FROM_GROUP: Object = Object::new(
    "envVarFromGroup",
    "a link to a group",
    "All variables of a group.",
    &[&[field("fromGroup", Shape::Text, "Name of the group.").required()]],
);

pub(crate) static ENV_VARS: Choice =
    Choice { name: "envVar", objects: &[&FROM_VALUE, &FROM_DATABASE, &FROM_SERVICE, &FROM_GROUP], by: ChooseBy::EnvVar };

/// A variable with sources that exclude each other: only what they have in common is judged.
pub(crate) static ANY_ENV: Object =
    Object { name: "anyEnvVar", phrase: "a variable", doc: "A variable of any source.", groups: &[LABELS], open: true };

pub(crate) static GROUP: Object = Object::new(
    "envVarGroup",
    "a group of variables",
    "Variables that several services share.",
    &[&[
        field("name", Shape::Text, "Name of the group.").required(),
        field("envVars", Shape::List(Item::Object(&FROM_VALUE)), "The variables: written or generated.").required(),
    ]],
);
