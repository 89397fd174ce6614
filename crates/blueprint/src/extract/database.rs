//! Databases.

use super::object::Obj;
use super::{Context, small};
use crate::codes::{E0206, E0209};
use crate::judge::head;
use crate::report::{Path, quoted};
use crate::spec::{DatabaseSpec, EnvironmentIndex};
use crate::tables::{CONNECTION_POOL, DATABASE_OPTION, HIGH_AVAILABILITY, POSTGRES_PLAN, POSTGRES_VERSION, REGION, REPLICA};

const MAX_REPLICAS: usize = 5;

/// Reads a database; it is refused as a whole, so that its fields need no diagnostics of their own.
pub(super) fn database(obj: Obj<'_, '_>, path: &Path<'_>, environment: EnvironmentIndex, cx: &mut Context<'_>) -> Option<DatabaseSpec> {
    let replicas: Vec<_> = obj.list("readReplicas", &REPLICA).filter_map(|(_, replica)| replica.filled("name")).collect();
    if replicas.len() > MAX_REPLICAS {
        let help = format!("keep {MAX_REPLICAS} of them");
        let message = format!("a database has at most {MAX_REPLICAS} read replicas, this has {}", replicas.len());
        cx.report.say(E0206, obj.get("readReplicas")?.span, &path.key("readReplicas"), message, help);
    }
    let name = obj.filled("name")?;
    cx.report.say(
        E0209,
        head(obj.node),
        path,
        format!("the database {} is not run yet: Moat runs no PostgreSQL", quoted(&name)),
        "until then, name a server of your own by `sync: false` variables".to_owned(),
    );
    Some(DatabaseSpec {
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
    })
}
