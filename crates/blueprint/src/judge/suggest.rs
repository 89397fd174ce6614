//! What to write instead of a key or word that does not exist.

use crate::tables::{OBJECTS, Object, squeeze};

/// Texts longer than this are compared with nothing.
const MAX_COMPARED: usize = 40;

/// The candidate nearest to a text, when it is near enough to be meant.
pub(crate) fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if text.is_empty() || text.len() > MAX_COMPARED {
        return None;
    }
    let squeezed = squeeze(text);
    candidates
        .filter_map(|candidate| {
            let other = squeeze(candidate);
            if other == squeezed {
                return Some((0, candidate));
            }
            let distance = strsim::damerau_levenshtein(&squeezed, &other);
            let limit = (squeezed.len().max(other.len()) / 3).clamp(1, 4);
            let near = distance <= limit && squeezed.len() > 2;
            let begins = squeezed.len() >= 5 && (other.starts_with(&squeezed) || squeezed.starts_with(&other) && other.len() >= 5);
            (near || begins).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Another object that has this field, in words.
pub(crate) fn owner(key: &str, not: &Object) -> Option<&'static str> {
    OBJECTS.iter().find(|object| object.name != not.name && object.fields().any(|field| field.name == key)).map(|object| object.phrase)
}

/// Help for keys that people write often and that are no misspelling.
pub(crate) fn hint(table: &Object, key: &str) -> Option<&'static str> {
    let table = match table.name {
        "blueprint" | "ungrouped" | "environment" | "project" => ROOT,
        "database" => DATABASE,
        "envVarFromValue" | "envVarFromDatabase" | "envVarFromService" | "envVarFromGroup" => ENV,
        "serviceReference" | "databaseReference" => REFERENCE,
        "image" => IMAGE,
        "disk" => DISK,
        "webService" | "privateService" | "backgroundWorker" | "cronJob" | "staticSite" | "keyValue" | "workflow" => SERVICE,
        _ => return None,
    };
    table.iter().find(|(keys, _)| keys.contains(&key)).map(|(_, help)| *help)
}

type Hints = &'static [(&'static [&'static str], &'static str)];

const SERVICE: Hints = &[
    (&["port", "ports", "internalPort", "targetPort"], "set the variable `PORT` under `envVars`"),
    (
        &["healthCheckTimeout", "healthCheckInterval", "healthCheckTimeoutSeconds", "healthCheckIntervalSeconds", "healthCheckGracePeriod"],
        "the timings of health checks are fixed: remove it",
    ),
    (&["healthCheck", "healthcheck", "health_check"], "write `healthCheckPath: /…`"),
    (&["instanceType", "instanceSize", "size", "tier", "resources", "memory", "cpu"], "CPU and memory come with `plan`"),
    (&["pythonVersion", "python_version"], "set the variable `PYTHON_VERSION` under `envVars`"),
    (&["nodeVersion", "node_version"], "set the variable `NODE_VERSION` under `envVars`"),
    (
        &["rubyVersion", "goVersion", "rustVersion", "runtimeVersion", "version"],
        "set a variable under `envVars`: `PYTHON_VERSION`, `NODE_VERSION`, `RUBY_VERSION`, …",
    ),
    (&["workingDirectory", "workingDir", "workDir", "workdir", "cwd", "directory", "root", "sourceDir"], "the working folder is `rootDir`"),
    (&["notifications", "notifyOnFail", "backup", "backups", "logs", "monitoring"], "it is not part of a blueprint: remove it"),
    (
        &["environment", "environmentVariables", "env_vars", "variables", "vars"],
        "variables go under `envVars`, each with `key` and `value`",
    ),
    (&["envVarGroups", "envGroups", "envVarGroup", "fromGroup"], "link a group under `envVars`: `- fromGroup: NAME`"),
    (
        &["command", "cmd", "entrypoint", "args", "run", "start"],
        "the command is `startCommand` (`dockerCommand` for images and Dockerfiles)",
    ),
    (&["build"], "the command is `buildCommand`"),
    (&["secrets", "secretFiles"], "write `x-moat: {secretFiles: {NAME: path}}`, or `sync: false` for a variable"),
    (&["replicas", "instances", "instanceCount", "count"], "the number is `numInstances`"),
    (&["autoscaling", "autoScaling"], "write `scaling` with `minInstances` and `maxInstances`"),
    (&["volumes", "volume", "disks", "persistentDisk"], "a service has one `disk`, with `name`, `mountPath` and `sizeGB`"),
    (&["dependsOn", "depends_on", "links"], "services find each other by name and start together: remove it"),
    (&["container_name", "restart", "networks", "expose", "restartPolicy"], "that is Compose's: remove it"),
    (&["publishDir", "publishPath", "publishDirectory", "outputDirectory"], "the folder is `staticPublishPath`"),
    (&["dockerfile", "Dockerfile"], "the path is `dockerfilePath`"),
    (&["releaseCommand", "preDeploy", "migrateCommand"], "the command is `preDeployCommand`"),
    (&["url", "host", "hostname"], "names and addresses follow from `name`: remove it"),
    (&["allowFrom", "egress"], "write it inside `x-moat`"),
];

const ROOT: Hints = &[
    (&["region"], "write `region` at each service and database"),
    (&["plan"], "write `plan` at each service and database"),
    (&["redis", "keyvalue", "keyValue", "keyValues", "caches"], "a Key Value goes under `services`, with `type: keyvalue`"),
    (&["staticSites", "static", "staticSite", "sites"], "a static site goes under `services`, with `type: web` and `runtime: static`"),
    (&["environments"], "environments go inside a project: `projects: [{name: …, environments: [ … ]}]`"),
    (&["envVars", "env", "environment"], "share variables by `envVarGroups`, or write `envVars` at each service"),
    (
        &["web", "webServices", "workers", "worker", "pserv", "privateServices", "cron", "cronJobs", "crons", "jobs"],
        "every service goes under `services`, with its `type`",
    ),
    (&["postgres", "postgresql", "database", "db"], "databases go under `databases`"),
    (&["networks", "volumes", "secrets", "configs"], "that is Compose's: remove it"),
    (&["name", "notifications", "backup", "resources", "metadata"], "it is not part of a blueprint: remove it"),
];

const DATABASE: Hints = &[
    (
        &["type", "engine", "runtime", "env"],
        "everything under `databases` is PostgreSQL: remove it; a Key Value goes under `services`, with `type: keyvalue`",
    ),
    (&["maxmemoryPolicy", "maxMemoryPolicy", "persistenceMode"], "a Key Value goes under `services`, with `type: keyvalue`"),
    (&["version", "postgresVersion", "postgresqlVersion", "majorVersion"], "the version is `postgresMajorVersion`"),
    (
        &["databaseCluster", "cluster", "extensions", "backup", "backups", "password", "port", "host", "envVars"],
        "it is not part of a blueprint: remove it",
    ),
    (&["disk", "diskSize", "storage", "size", "sizeGB"], "the size is `diskSizeGB`"),
    (&["replicas"], "copies are `readReplicas: [{name: …}]`"),
];

const ENV: Hints = &[
    (&["name"], "the name of a variable is `key`"),
    (&["fromSecret", "secret", "secretKeyRef", "valueFrom", "fromSecretFile"], "a secret that is not in the file is `sync: false`"),
    (&["fromEnvGroup", "fromEnvVarGroup", "group", "ref"], "link a group by an entry of its own: `- fromGroup: NAME`"),
    (&["generate", "generated", "random"], "write `generateValue: true`"),
    (&["default", "defaultValue"], "write `value`"),
    (&["property", "type", "envVarKey"], "it goes below `fromService` or `fromDatabase`: indent it"),
    (&["scope", "secure", "hidden", "required", "optional", "comment"], "it is not part of a blueprint: remove it"),
];

const REFERENCE: Hints = &[
    (&["key", "envVar", "variable"], "the variable of a service is `envVarKey`"),
    (&["value", "field", "attribute"], "what is taken is `property`"),
];

const IMAGE: Hints = &[
    (&["name", "image", "repository", "path"], "the image reference is `url`"),
    (&["tag", "digest"], "write it in `url`, after `:` or `@`"),
    (&["credentials", "registryCredential"], "credentials are `creds`"),
];

const DISK: Hints =
    &[(&["size", "sizeGb", "capacity", "diskSizeGB"], "the size is `sizeGB`"), (&["path", "mount"], "the path is `mountPath`")];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{ROOT as ROOT_TABLE, WEB};

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let keys = || WEB.fields().map(|f| f.name);
        for (text, expect) in [
            ("healthcheckPath", Some("healthCheckPath")),
            ("health_check_path", Some("healthCheckPath")),
            ("buildComand", Some("buildCommand")),
            ("startCmd", Some("startCommand")),
            ("healthCheckPaths", Some("healthCheckPath")),
            ("zzz", None),
        ] {
            assert_eq!(nearest(text, keys()), expect, "{text}");
        }
        assert_eq!(nearest("atabases", ROOT_TABLE.fields().map(|f| f.name)), Some("databases"));
        assert_eq!(nearest(&"x".repeat(10_000), keys()), None);
    }
}
