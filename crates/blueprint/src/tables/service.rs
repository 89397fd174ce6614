//! Services: one table per type, made of groups of fields that types share.

use super::env::ENV_VARS;
use super::small::{
    ALLOW_ENTRY, BUILD_FILTER, CREDENTIAL, DISK, HEADER, IMAGE, MAINTENANCE, MOAT, PREVIEWS, ROUTE, SCALING, STATIC_PREVIEWS,
};
use super::words::{
    CRON_PLAN, KEYVALUE_PLAN, MAXMEMORY, PERSISTENCE, REGION, RUNTIME, RUNTIME_STATIC, RUNTIME_WORKFLOW, SERVER_PLAN, SERVICE_TYPE, SWITCH,
    TRIGGER, TYPE_CRON, TYPE_KEYVALUE, TYPE_PSERV, TYPE_WEB, TYPE_WORKER, TYPE_WORKFLOW, Words,
};
use super::{Choice, ChooseBy, Field, Item, Object, Shape, field, formats};

const fn kind(words: &'static Words) -> Field {
    field("type", Shape::Type(words), "Type of the service.").required()
}
const NAME: Field =
    field("name", Shape::Text, "Name, unique in the file; the internal host name is made of it.").required().format(formats::service_name);
const RUNTIME_FIELD: Field = field("runtime", Shape::Word(&RUNTIME), "What runs it.").required().alias(&["env"]);
const REGION_FIELD: Field = field("region", Shape::Word(&REGION), "Region: services of one region share a network.");
const ENV_VARS_FIELD: Field = field("envVars", Shape::List(Item::Choice(&ENV_VARS)), "Environment variables.");
const IP_LIST: Shape = Shape::List(Item::Object(&ALLOW_ENTRY));
const X_MOAT: Field = field("x-moat", Shape::Object(&MOAT), "What Moat adds to the format.");
const SERVER_PLAN_FIELD: Field = field("plan", Shape::Word(&SERVER_PLAN), "CPU and memory of an instance.");

/// Where the source comes from.
const SOURCE: &[Field] = &[
    field("repo", Shape::Text, "URL of the repository, the blueprint's own unless said."),
    field("branch", Shape::Text, "Branch of the repository."),
    field("rootDir", Shape::Text, "Working folder, relative to the repository's root.").format(formats::inside),
    field("buildFilter", Shape::Object(&BUILD_FILTER), "Which changed files cause a deploy."),
    field("autoDeployTrigger", Shape::Word(&TRIGGER), "What causes a deploy."),
    field("autoDeploy", Shape::Bool, "Whether a commit causes a deploy.").deprecated("autoDeployTrigger", ""),
];
const BUILD: Field = field("buildCommand", Shape::Command, "Command that builds the service.");
const START: Field = field("startCommand", Shape::Command, "Command that runs the service.");
const PRE_DEPLOY: Field = field("preDeployCommand", Shape::Command, "Command that runs before each deploy.");

/// Images and Dockerfiles.
const DOCKER: &[Field] = &[
    field("image", Shape::Object(&IMAGE), "A published image (`runtime: image`)."),
    field("dockerCommand", Shape::Command, "Command instead of the image's own."),
    field("dockerfilePath", Shape::Text, "Path of the Dockerfile, relative to `rootDir`; `./Dockerfile` unless said."),
    field("dockerContext", Shape::Text, "Docker build context, relative to `rootDir`, which it is unless said."),
    field("registryCredential", Shape::Object(&CREDENTIAL), "Credential for private base images."),
];

/// What web services, private services and workers share.
const SERVER: &[Field] = &[
    SERVER_PLAN_FIELD,
    REGION_FIELD,
    field("buildSource", Shape::Text, "Name of an entry of `buildSources`.").refused("builds that services share are not made yet"),
    BUILD,
    START,
    PRE_DEPLOY,
    field("initialDeployHook", Shape::Command, "Command that runs once, after the first successful deploy.")
        .alias(&["afterFirstDeployCommand"]),
    field("numInstances", Shape::Int(1, 100), "Number of instances."),
    field("scaling", Shape::Object(&SCALING), "Number of instances by load."),
    field("disk", Shape::Object(&DISK), "A folder that outlives deploys."),
    field("maxShutdownDelaySeconds", Shape::Int(1, 300), "Seconds between SIGTERM and SIGKILL, 30 unless said."),
    field("previews", Shape::Object(&PREVIEWS), "How the service runs in previews."),
    field("pullRequestPreviewsEnabled", Shape::Bool, "Whether pull requests get previews.")
        .deprecated("previews.generation", "Moat makes no previews"),
    field("previewPlan", Shape::Word(&SERVER_PLAN), "Plan in previews.").deprecated("previews.plan", "Moat makes no previews"),
    ENV_VARS_FIELD,
    X_MOAT,
];

/// What stands at a public address.
const PUBLIC: &[Field] = &[
    field("domain", Shape::Text, "A custom domain.").format(formats::domain),
    field("domains", Shape::List(Item::Text), "Custom domains.").format(formats::domain),
    field("renderSubdomainPolicy", Shape::Word(&SWITCH), "`disabled`: only the custom domains answer."),
    field("ipAllowList", IP_LIST, "Who may connect from outside; everyone unless said."),
];
const NOT_PUBLIC: &str = "it has no public address";
const PUBLIC_IDLE: &[Field] = &[
    field("domain", Shape::Text, "No effect: no public address.").no_effect(NOT_PUBLIC),
    field("domains", Shape::List(Item::Text), "No effect: no public address.").no_effect(NOT_PUBLIC),
    field("renderSubdomainPolicy", Shape::Word(&SWITCH), "No effect: no public address.").no_effect(NOT_PUBLIC),
    field("ipAllowList", IP_LIST, "No effect: no public address.").no_effect(NOT_PUBLIC),
    field("maintenanceMode", Shape::Object(&MAINTENANCE), "No effect: no public address.").no_effect(NOT_PUBLIC),
];
const HEALTH: Field =
    field("healthCheckPath", Shape::Text, "Path that answers 2xx or 3xx when an instance is ready.").format(formats::path);

pub(crate) static WEB: Object = Object::new(
    "webService",
    "a web service",
    "A service with a public address, reachable on the private network too.",
    &[
        &[kind(&TYPE_WEB), NAME, RUNTIME_FIELD],
        SOURCE,
        DOCKER,
        SERVER,
        PUBLIC,
        &[HEALTH, field("maintenanceMode", Shape::Object(&MAINTENANCE), "Shows a maintenance page instead.")],
    ],
);
pub(crate) static PSERV: Object = Object::new(
    "privateService",
    "a private service",
    "A service that only the private network reaches.",
    &[&[kind(&TYPE_PSERV), NAME, RUNTIME_FIELD], SOURCE, DOCKER, SERVER, PUBLIC_IDLE, &[HEALTH]],
);
pub(crate) static WORKER: Object = Object::new(
    "backgroundWorker",
    "a background worker",
    "A service that nothing reaches.",
    &[
        &[kind(&TYPE_WORKER), NAME, RUNTIME_FIELD],
        SOURCE,
        DOCKER,
        SERVER,
        PUBLIC_IDLE,
        &[field("healthCheckPath", Shape::Text, "No effect: nothing reaches a worker.").no_effect("nothing reaches a background worker")],
    ],
);
pub(crate) static CRON: Object = Object::new(
    "cronJob",
    "a cron job",
    "A command that runs by a schedule; nothing reaches it.",
    &[
        &[
            kind(&TYPE_CRON),
            NAME,
            RUNTIME_FIELD,
            field("schedule", Shape::Text, "When it runs: five fields, in UTC.").required().format(formats::schedule),
            field("plan", Shape::Word(&CRON_PLAN), "CPU and memory of a run."),
            REGION_FIELD,
            BUILD,
            START,
            field("preDeployCommand", Shape::Command, "Command that runs before each deploy.")
                .no_effect("a cron job has no deploy of its own to run it before"),
            ENV_VARS_FIELD,
            X_MOAT,
        ],
        SOURCE,
        DOCKER,
    ],
);
pub(crate) static STATIC: Object = Object::new(
    "staticSite",
    "a static site",
    "Built files at a public address; not on the private network.",
    &[
        &[
            kind(&TYPE_WEB),
            NAME,
            field("runtime", Shape::Word(&RUNTIME_STATIC), "`static`.").required().alias(&["env"]),
            BUILD,
            PRE_DEPLOY,
            field("staticPublishPath", Shape::Text, "Folder of the built files."),
            field("headers", Shape::List(Item::Object(&HEADER)), "Response headers by path."),
            field("routes", Shape::List(Item::Object(&ROUTE)), "Redirects and rewrites."),
            field("previews", Shape::Object(&STATIC_PREVIEWS), "When previews are made."),
            field("pullRequestPreviewsEnabled", Shape::Bool, "Whether pull requests get previews.")
                .deprecated("previews.generation", "Moat makes no previews"),
            ENV_VARS_FIELD,
        ],
        SOURCE,
        PUBLIC,
    ],
);
pub(crate) static KEYVALUE: Object = Object::new(
    "keyValue",
    "a Key Value",
    "A Redis-compatible datastore.",
    &[&[
        kind(&TYPE_KEYVALUE),
        NAME,
        field("plan", Shape::Word(&KEYVALUE_PLAN), "Memory."),
        REGION_FIELD,
        field("ipAllowList", IP_LIST, "Who may connect from outside; `[]` is nobody.").required(),
        field("maxmemoryPolicy", Shape::Word(&MAXMEMORY), "What goes when memory is full, `allkeys-lru` unless said."),
        field("persistenceMode", Shape::Word(&PERSISTENCE), "How data is kept."),
        field("previewPlan", Shape::Word(&KEYVALUE_PLAN), "Plan in previews.").one_machine("Moat makes no preview environments"),
        X_MOAT,
    ]],
);
pub(crate) static WORKFLOW: Object = Object::new(
    "workflow",
    "a workflow",
    "A workflow service.",
    &[
        &[
            kind(&TYPE_WORKFLOW),
            NAME,
            field("runtime", Shape::Word(&RUNTIME_WORKFLOW), "`python` or `node`.").required().alias(&["env"]),
            field("region", Shape::Word(&REGION), "Region.").required(),
            BUILD,
            field("startCommand", Shape::Command, "Command that runs it.").required(),
            ENV_VARS_FIELD,
        ],
        SOURCE,
    ],
);

pub(crate) static SERVICES: Choice =
    Choice { name: "service", objects: &[&WEB, &PSERV, &WORKER, &CRON, &STATIC, &KEYVALUE, &WORKFLOW], by: ChooseBy::Service };

/// A service whose type can't be told: any field of any type, and only the name is needed.
pub(crate) static ANY_SERVICE: Object = Object {
    name: "anyService",
    phrase: "a service",
    doc: "A service of any type.",
    groups: &[
        &[
            field("type", Shape::Type(&SERVICE_TYPE), "Type of the service."),
            NAME,
            field("runtime", Shape::Word(&RUNTIME), "What runs it.").alias(&["env"]),
            HEALTH,
            field("schedule", Shape::Text, "When it runs.").format(formats::schedule),
        ],
        &[ENV_VARS_FIELD],
    ],
    open: true,
};
