//! The root, projects and environments.

use super::database::DATABASE;
use super::env::{ENV_VARS, GROUP};
use super::service::SERVICES;
use super::small::{BUILD_FILTER, CREDENTIAL, IMAGE, ROOT_PREVIEWS};
use super::words::{REGION, RUNTIME_BUILD, SWITCH, VERSION};
use super::{Field, Item, Object, Shape, field, formats};

const RESOURCES: &[Field] = &[
    field("services", Shape::List(Item::Choice(&SERVICES)), "Services and Key Values."),
    field("databases", Shape::List(Item::Object(&DATABASE)), "PostgreSQL databases."),
    field("envVarGroups", Shape::List(Item::Object(&GROUP)), "Variables that services share."),
];
const SOURCES: Field = field("buildSources", Shape::List(Item::Object(&BUILD_SOURCE)), "Builds that several services share.");

pub(crate) static BUILD_SOURCE_GIT: Object = Object::new(
    "buildSourceGit",
    "`git` of a build source",
    "A build from a repository.",
    &[&[
        field("repo", Shape::Text, "URL of the repository.").required(),
        field("branch", Shape::Text, "Branch."),
        field("runtime", Shape::Word(&RUNTIME_BUILD), "What builds it.").required(),
        field("buildCommand", Shape::Command, "Command that builds it."),
        field("buildFilter", Shape::Object(&BUILD_FILTER), "Which changed files cause a build."),
        field("envVars", Shape::List(Item::Choice(&ENV_VARS)), "Variables of the build."),
        field("rootDir", Shape::Text, "Working folder.").format(formats::inside),
        field("baseDir", Shape::Text, "Docker build context."),
        field("region", Shape::Word(&REGION), "Region."),
        field("dockerfilePath", Shape::Text, "Path of the Dockerfile."),
        field("registryCredential", Shape::Object(&CREDENTIAL), "Credential for private base images."),
    ]],
);
pub(crate) static BUILD_SOURCE: Object = Object::new(
    "buildSource",
    "a build source",
    "A build that several services share.",
    &[&[
        field("name", Shape::Text, "Name of the build.").required(),
        field("git", Shape::Object(&BUILD_SOURCE_GIT), "From a repository."),
        field("image", Shape::Object(&IMAGE), "From a published image."),
    ]],
);

pub(crate) static UNGROUPED: Object =
    Object::new("ungrouped", "`ungrouped`", "Resources that belong to no environment.", &[RESOURCES, &[SOURCES]]);

pub(crate) static NETWORKING: Object = Object::new(
    "networking",
    "`networking`",
    "The environment's network.",
    &[&[field("isolation", Shape::Word(&SWITCH), "`enabled`: private traffic neither enters nor leaves the environment.")]],
);
pub(crate) static PERMISSIONS: Object = Object::new(
    "permissions",
    "`permissions`",
    "Who may change the environment.",
    &[&[field("protection", Shape::Word(&SWITCH), "`enabled`: only administrators may change it.")]],
);
pub(crate) static ENVIRONMENT: Object = Object::new(
    "environment",
    "an environment",
    "An environment of a project.",
    &[
        &[field("name", Shape::Text, "Name of the environment.").required()],
        RESOURCES,
        &[
            field("networking", Shape::Object(&NETWORKING), "The environment's network."),
            field("permissions", Shape::Object(&PERMISSIONS), "Who may change the environment."),
        ],
    ],
);
pub(crate) static PROJECT: Object = Object::new(
    "project",
    "a project",
    "A project and its environments.",
    &[&[
        field("name", Shape::Text, "Name of the project.").required(),
        field("environments", Shape::List(Item::Object(&ENVIRONMENT)), "Its environments."),
        SOURCES,
    ]],
);

pub(crate) static ROOT: Object = Object::new(
    "blueprint",
    "the root of the file",
    "Services that run together on a private network.",
    &[
        &[field("version", Shape::Word(&VERSION), "Version of the format.")],
        RESOURCES,
        &[
            field("projects", Shape::List(Item::Object(&PROJECT)), "Projects with environments."),
            field("ungrouped", Shape::Object(&UNGROUPED), "Resources that belong to no environment."),
            SOURCES,
            field("previews", Shape::Object(&ROOT_PREVIEWS), "Preview environments."),
            field("previewsEnabled", Shape::Bool, "Whether preview environments are made.")
                .deprecated("previews.generation", "Moat makes no previews"),
            field("previewsExpireAfterDays", Shape::Int(1, 36_500), "Days until a preview is removed.")
                .deprecated("previews.expireAfterDays", "Moat makes no previews"),
        ],
    ],
);
