//! Databases.

use super::object::Obj;
use super::{Context, rules, small};
use crate::codes::{E0206, E0210};
use crate::report::Path;
use crate::spec::{DatabaseSpec, EnvironmentIndex};
use crate::tables::{CONNECTION_POOL, DATABASE_OPTION, HIGH_AVAILABILITY, POSTGRES_PLAN, POSTGRES_VERSION, REGION, REPLICA};

const MAX_REPLICAS: usize = 5;

/// Reads a database and says which of its fields do nothing here.
pub(super) fn database(obj: Obj<'_, '_>, path: &Path<'_>, environment: EnvironmentIndex, cx: &mut Context<'_>) -> Option<DatabaseSpec> {
    let replicas: Vec<_> = obj.list("readReplicas", &REPLICA).filter_map(|(_, replica)| replica.filled("name")).collect();
    if replicas.len() > MAX_REPLICAS {
        let help = format!("keep {MAX_REPLICAS} of them");
        let message = format!("a database has at most {MAX_REPLICAS} read replicas, this has {}", replicas.len());
        cx.report.say(E0206, obj.get("readReplicas")?.span, &path.key("readReplicas"), message, help);
    }
    let name = obj.filled("name")?;
    let spec = DatabaseSpec {
        pointer: path.pointer(),
        span: obj.span(),
        environment,
        name,
        plan: obj.word("plan", &POSTGRES_PLAN),
        region: obj.word("region", &REGION),
        database_name: obj.filled("databaseName"),
        user: obj.filled("user"),
        postgres_major_version: obj.word("postgresMajorVersion", &POSTGRES_VERSION),
        disk_size_gb: obj.int("diskSizeGB", 1, 16_384),
        ip_allow_list: small::allow_list(obj),
        read_replicas: replicas,
        high_availability: obj
            .below("highAvailability", &HIGH_AVAILABILITY)
            .and_then(|below| below.boolean("enabled"))
            .is_some_and(|enabled| enabled.value),
        connection_pool: obj.word("connectionPool", &CONNECTION_POOL).is_some_and(|word| word.value == "pgbouncer"),
        storage_autoscaling: obj.boolean("storageAutoscalingEnabled").is_some_and(|enabled| enabled.value),
        preview_plan: obj.word("previewPlan", &POSTGRES_PLAN),
        preview_disk_size_gb: obj.int("previewDiskSizeGB", 1, 16_384),
        options: obj
            .list("databaseOptions", &DATABASE_OPTION)
            .filter_map(|(_, option)| Some((option.filled("key")?, option.text("value")?)))
            .collect(),
    };
    unhonoured(&spec, obj, path, cx);
    Some(spec)
}

/// Says what one server on one machine does not do, at each field that asks for it.
fn unhonoured(spec: &DatabaseSpec, obj: Obj<'_, '_>, path: &Path<'_>, cx: &mut Context<'_>) {
    if spec.region.is_some() {
        rules::region(obj, path, cx);
    }
    if spec.ip_allow_list.as_ref().is_some_and(|list| !list.is_empty())
        && let Some((span, place)) = obj.place("ipAllowList", path)
    {
        let message = "`ipAllowList` holds once this machine lets clients come from outside: `moat ingress postgres=ADDRESS:PORT`";
        cx.report.say(E0210, span, &place, message.to_owned(), None);
    }
    let rows = [
        (!spec.read_replicas.is_empty(), "readReplicas", "a reference to a replica leads to the database itself", None),
        (spec.high_availability, "highAvailability", "one machine has no standby", None),
        (spec.connection_pool, "connectionPool", "no pooler runs: `connectionPoolString` leads to the database itself", None),
        (spec.storage_autoscaling, "storageAutoscalingEnabled", "a database may fill the disk that the state folder is on", None),
    ];
    for (written, field, why, help) in rows {
        if written && let Some((span, place)) = obj.place(field, path) {
            cx.report.say(E0210, span, &place, format!("`{field}` has no effect here: {why}"), help.map(str::to_owned));
        }
    }
}
