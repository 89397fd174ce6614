//! Databases.

use super::small::ALLOW_ENTRY;
use super::words::{CONNECTION_POOL, POSTGRES_PLAN, POSTGRES_VERSION, REGION};
use super::{Item, Object, Shape, field};

const PREVIEW: &str = "Moat makes no preview environments";

pub(crate) static HIGH_AVAILABILITY: Object = Object::new(
    "highAvailability",
    "`highAvailability`",
    "A standby that takes over.",
    &[&[field("enabled", Shape::Bool, "Whether there is a standby.").required()]],
);
pub(crate) static REPLICA: Object = Object::new(
    "readReplica",
    "a read replica",
    "A copy to read from.",
    &[&[field("name", Shape::Text, "Name of the replica.").required()]],
);
pub(crate) static DATABASE_OPTION: Object = Object::new(
    "databaseOption",
    "an entry of `databaseOptions`",
    "A setting of the server.",
    &[&[field("key", Shape::Text, "Name of the setting.").required(), field("value", Shape::Value, "Its value.").required()]],
);

pub(crate) static DATABASE: Object = Object::new(
    "database",
    "a database",
    "A PostgreSQL database.",
    &[&[
        field("name", Shape::Text, "Name of the database, unique in the file.").required(),
        field("plan", Shape::Word(&POSTGRES_PLAN), "Size."),
        field("region", Shape::Word(&REGION), "Region."),
        field("databaseName", Shape::Text, "Name inside the server."),
        field("user", Shape::Text, "User inside the server."),
        field("postgresMajorVersion", Shape::Word(&POSTGRES_VERSION), "Major version, newest unless said."),
        field("diskSizeGB", Shape::Int(1, 16_384), "Size of its disk in GB.")
            .one_machine("a database may fill the disk that the state folder is on"),
        field("storageAutoscalingEnabled", Shape::Bool, "Whether the disk grows when it fills."),
        field("connectionPool", Shape::Word(&CONNECTION_POOL), "Whether a connection pooler stands before it."),
        field("ipAllowList", Shape::List(Item::Object(&ALLOW_ENTRY)), "Who may connect from outside."),
        field("readReplicas", Shape::List(Item::Object(&REPLICA)), "Copies to read from, at most five."),
        field("highAvailability", Shape::Object(&HIGH_AVAILABILITY), "A standby that takes over."),
        field("databaseOptions", Shape::List(Item::Object(&DATABASE_OPTION)), "Settings of the server.")
            .one_machine("Moat chooses the server's settings by the plan"),
        field("previewPlan", Shape::Word(&POSTGRES_PLAN), "Plan in preview environments.").one_machine(PREVIEW),
        field("previewDiskSizeGB", Shape::Int(1, 16_384), "Size of the disk in preview environments.").one_machine(PREVIEW),
    ]],
);
