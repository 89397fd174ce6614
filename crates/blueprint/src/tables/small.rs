//! The small objects inside services.

use super::words::{EGRESS, GENERATION, PROXY_HEADER, ROUTE_TYPE, SERVER_PLAN, START_ORDER};
use super::{Item, Object, Shape, field, formats};

const PREVIEW: &str = "Moat makes no preview environments";

pub(crate) static CREDENTIAL_NAME: Object = Object::new(
    "fromRegistryCreds",
    "a registry credential",
    "Names a credential for a container registry.",
    &[&[field("name", Shape::Text, "Name of the credential.").required()]],
);
pub(crate) static CREDENTIAL: Object = Object::new(
    "registryCredential",
    "a registry credential",
    "A credential for a container registry.",
    &[&[field("fromRegistryCreds", Shape::Object(&CREDENTIAL_NAME), "The credential, by its name.").required()]],
);
pub(crate) static IMAGE: Object = Object::new(
    "image",
    "`image`",
    "A published container image.",
    &[&[
        field("url", Shape::Text, "Image reference, such as `docker.io/library/nginx:1.29`.").required(),
        field("creds", Shape::Object(&CREDENTIAL), "Credential for a private registry."),
    ]],
);
pub(crate) static DISK: Object = Object::new(
    "disk",
    "`disk`",
    "A folder that outlives deploys; the service then has one instance.",
    &[&[
        field("name", Shape::Text, "Name of the disk.").required(),
        field("mountPath", Shape::Text, "Absolute path of the folder in the instance.").required().format(formats::mount_path),
        field("sizeGB", Shape::Int(1, 65_536), "Size in GB, 10 unless said."),
    ]],
);
pub(crate) static SCALING: Object = Object::new(
    "scaling",
    "`scaling`",
    "How many instances run, by load.",
    &[&[
        field("minInstances", Shape::Int(1, 100), "Fewest instances.").required(),
        field("maxInstances", Shape::Int(1, 100), "Most instances.").required(),
        field("targetMemoryPercent", Shape::Int(1, 90), "Memory use that the number of instances aims at."),
        field("targetCPUPercent", Shape::Int(1, 90), "CPU use that the number of instances aims at."),
    ]],
);
pub(crate) static BUILD_FILTER: Object = Object::new(
    "buildFilter",
    "`buildFilter`",
    "Which changed files cause a deploy.",
    &[&[
        field("paths", Shape::List(Item::Text), "Globs from the repository's root that cause a deploy."),
        field("ignoredPaths", Shape::List(Item::Text), "Globs that don't."),
    ]],
);
pub(crate) static MAINTENANCE: Object = Object::new(
    "maintenanceMode",
    "`maintenanceMode`",
    "Answers every public request with a maintenance page.",
    &[&[
        field("enabled", Shape::Bool, "Whether the page is shown."),
        field("uri", Shape::Text, "A page of your own, at another service.").format(formats::uri),
    ]],
);
pub(crate) static ALLOW_ENTRY: Object = Object::new(
    "ipAllowEntry",
    "an entry of `ipAllowList`",
    "A range of addresses that may connect from outside.",
    &[&[
        field("source", Shape::Text, "Address or range in CIDR notation.").required().format(formats::cidr),
        field("description", Shape::Text, "What the range is."),
    ]],
);
pub(crate) static HEADER: Object = Object::new(
    "header",
    "an entry of `headers`",
    "A response header of a static site.",
    &[&[
        field("path", Shape::Text, "Path pattern, such as `/*`, `/*.css` or `/**/*.css`.").required().format(formats::pattern),
        field("name", Shape::Text, "Header name.").required(),
        field("value", Shape::Value, "Header value.").required(),
    ]],
);
pub(crate) static ROUTE: Object = Object::new(
    "route",
    "an entry of `routes`",
    "A redirect or rewrite of a static site.",
    &[&[
        field("type", Shape::Word(&ROUTE_TYPE), "`redirect` (301) or `rewrite`.").required(),
        field("source", Shape::Text, "Path pattern, such as `/*` or `/blog/:slug`.").required().format(formats::pattern),
        field("destination", Shape::Text, "Path or URL.").required().format(formats::destination),
    ]],
);
pub(crate) static PREVIEWS: Object = Object::new(
    "servicePreviews",
    "`previews`",
    "How the service runs in previews.",
    &[&[
        field("generation", Shape::Word(&GENERATION), "When previews are made."),
        field("plan", Shape::Word(&SERVER_PLAN), "Plan in previews."),
        field("numInstances", Shape::Int(1, 100), "Number of instances in previews."),
    ]],
);
pub(crate) static STATIC_PREVIEWS: Object = Object::new(
    "staticPreviews",
    "`previews` of a static site",
    "When previews are made.",
    &[&[field("generation", Shape::Word(&GENERATION), "When previews are made.")]],
);
pub(crate) static ROOT_PREVIEWS: Object = Object::new(
    "rootPreviews",
    "`previews`",
    "Preview environments of the whole blueprint.",
    &[&[
        field("generation", Shape::Word(&GENERATION), "When preview environments are made."),
        field("expireAfterDays", Shape::Int(1, 36_500), "Days without a push until one is removed.").one_machine(PREVIEW),
    ]],
);
pub(crate) static MOAT: Object = Object::new(
    "moat",
    "`x-moat`",
    "What Moat adds to the format.",
    &[&[
        field("allowFrom", Shape::List(Item::Text), "Names of the only services that may reach this one."),
        field(
            "egress",
            Shape::WordOrTexts(&EGRESS),
            "What the service may open outside: `none`, `internet`, or a list of ranges in CIDR notation.",
        ),
        field(
            "secretFiles",
            Shape::TextMap,
            "Files shown at `/etc/secrets/NAME`: file name to the path of its content, relative to the blueprint.",
        ),
        field(
            "proxyProtocol",
            Shape::Word(&PROXY_HEADER),
            "The PROXY header, `v1` or `v2`, with the client's address at the begin of each connection of the ingress to a web service.",
        ),
        field(
            "start",
            Shape::Word(&START_ORDER),
            "Whether instances start `together` (unless said), or `one-by-one`, each once those before it are ready: for systems that look for their peers when they start.",
        ),
    ]],
);
