//! What is written arrives in the typed blueprint.

use moat_blueprint::spec::{DatabaseProperty, EnvSource, RuntimeSpec, ServiceProperty, ServiceSpec, TypeSpec};
use moat_blueprint::{Severity, read};
use moat_model::{Egress, NativeRuntime, ServiceKind};

const WEB: &str = "services:\n  - name: a\n    type: web\n    runtime: python\n    startCommand: run\n";

#[test]
fn what_is_written_is_what_is_read() {
    let read = read(include_str!("../cases/everything/render.yaml"));
    let blueprint = read.blueprint;
    let names: Vec<&str> = blueprint.services.iter().map(|s| s.name.value.as_str()).collect();
    assert_eq!(names, ["shop", "catalog", "mailer", "report", "cache", "ledger"]);
    let find = |name: &str| -> &ServiceSpec { blueprint.services.iter().find(|s| s.name.value == name).unwrap() };
    let text = |text: &Option<moat_blueprint::spec::Text>| text.as_ref().map(|t| t.value.clone()).unwrap();

    let shop = find("shop");
    assert_eq!(shop.pointer, "services/0");
    assert_eq!(shop.kind.value, TypeSpec::Kind(ServiceKind::Web));
    assert_eq!(shop.runtime.as_ref().unwrap().value, RuntimeSpec::Native(NativeRuntime::Python));
    assert_eq!((text(&shop.plan), text(&shop.region), text(&shop.root_dir)), ("pro plus".into(), "frankfurt".into(), "./web".into()));
    assert_eq!(text(&shop.build_command), "pip install -r requirements.txt\npython manage.py collectstatic\n");
    assert_eq!(text(&shop.pre_deploy_command), "python manage.py migrate");
    assert_eq!(text(&shop.initial_deploy_hook), "python manage.py seed");
    assert_eq!(text(&shop.health_check_path), "/health");
    assert_eq!(text(&shop.auto_deploy_trigger), "off");
    assert_eq!((shop.num_instances.as_ref().unwrap().value, shop.max_shutdown_delay_seconds.as_ref().unwrap().value), (2, 60));
    let (allowed, domains) = (&shop.ip_allow_list.as_ref().unwrap().value, &shop.domains);
    assert_eq!((allowed[0].source.value.as_str(), allowed[1].source.value.as_str()), ("203.0.113.7", "2001:db8::/32"));
    assert_eq!((domains[0].value.as_str(), domains[1].value.as_str()), ("shop.example.com", "*.shop.example.com"));
    assert!(shop.subdomain_disabled.as_ref().unwrap().value);
    let moat = shop.moat.as_ref().unwrap();
    let Egress::Ranges(ranges) = &moat.egress.as_ref().unwrap().value else { panic!("{moat:?}") };
    assert_eq!(ranges.len(), 2);
    assert_eq!((moat.secret_files[0].0.value.as_str(), moat.secret_files[0].1.value.as_str()), ("google.json", "secrets/google.json"));
    assert_eq!(moat.allow_from, None);

    let sources: Vec<&EnvSource> = shop.env_vars.iter().map(|v| &v.source).collect();
    let [
        EnvSource::Value { value, .. },
        EnvSource::Generate { .. },
        EnvSource::Ask { key },
        host,
        variable,
        cache,
        EnvSource::Group { name },
    ] = sources.as_slice()
    else {
        panic!("{sources:?}")
    };
    assert_eq!((value.value.as_str(), key.value.as_str(), name.value.as_str()), ("3.11", "STRIPE_KEY", "shared"));
    let what = |source: &EnvSource| {
        let EnvSource::Service { what, name, .. } = source else { panic!("{source:?}") };
        (name.value.clone(), what.value.clone())
    };
    assert_eq!(what(host), ("catalog".into(), ServiceProperty::HostPort));
    assert_eq!(what(variable), ("catalog".into(), ServiceProperty::EnvVar("TOKEN".into())));
    assert_eq!(what(cache), ("cache".into(), ServiceProperty::ConnectionString));
    let asked = &shop.env_vars[2];
    assert_eq!((text(&asked.display_name), asked.sensitive), ("Stripe key".into(), true));

    let catalog = find("catalog");
    let disk = &catalog.disk.as_ref().unwrap().value;
    assert_eq!((disk.name.value.as_str(), disk.mount_path.value.as_str(), disk.size_gb), ("data", "/var/data", 5));
    let moat = catalog.moat.as_ref().unwrap();
    assert_eq!(moat.allow_from.as_ref().unwrap()[0].value, "shop");
    assert_eq!(moat.egress.as_ref().unwrap().value, Egress::None);
    assert_eq!(text(&find("report").schedule), "0 6 * * MON-FRI");
    assert_eq!(text(&find("cache").persistence_mode), "off");

    let ledger = find("ledger");
    assert_eq!(ledger.pointer, "projects/0/environments/0/services/0");
    let environment = &blueprint.environments[ledger.environment.unwrap()];
    assert_eq!((environment.project.value.as_str(), environment.name.value.as_str()), ("back office", "production"));
    assert!(environment.isolated && !environment.protected);
    assert_eq!(blueprint.env_groups[0].env_vars.len(), 2);
}

#[test]
fn scalars_keep_their_source_text() {
    let read = read(include_str!("../cases/leniently/render.yaml"));
    let blueprint = &read.blueprint;
    let hub = &blueprint.services[0];
    let values: Vec<String> = hub
        .env_vars
        .iter()
        .map(|variable| {
            if let EnvSource::Value { value, .. } = &variable.source {
                return value.value.clone();
            }
            let EnvSource::Ask { key } = &variable.source else { panic!("{variable:?}") };
            format!("ask {}", key.value)
        })
        .collect();
    assert_eq!(values, ["3.10", "100_000", "True", "1234567890123456", "ask ONLY_A_KEY", "ask NOTHING"]);
    assert_eq!(hub.branch.as_ref().unwrap().value, "1.0");
    assert_eq!(hub.plan.as_ref().unwrap().value, "starter");
    assert_eq!(hub.num_instances.as_ref().unwrap().value, 2);
    assert_eq!(hub.auto_deploy_trigger.as_ref().unwrap().value, "commit");
    assert_eq!(hub.pre_deploy_command, None);
    assert_eq!(hub.runtime.as_ref().unwrap().value, RuntimeSpec::Native(NativeRuntime::Node));
    let cache = &blueprint.services[1];
    assert_eq!(cache.kind.value, TypeSpec::Kind(ServiceKind::KeyValue));
    assert_eq!(cache.maxmemory_policy.as_ref().unwrap().value, "allkeys-lru");
    assert_eq!(cache.ip_allow_list, None);
    assert_eq!(blueprint.services[2].kind.value, TypeSpec::Kind(ServiceKind::Worker));
    let database = &blueprint.databases[0];
    assert_eq!(database.plan.as_ref().unwrap().value, "basic-1gb");
    assert_eq!(database.postgres_major_version.as_ref().unwrap().value, "15");
    assert!(read.diagnostics.iter().all(|d| d.severity != Severity::Error), "{:#?}", read.diagnostics);
}

#[test]
fn database_properties_are_read() {
    for (word, property) in [
        ("connectionString", DatabaseProperty::ConnectionString),
        ("connectionPoolString", DatabaseProperty::ConnectionPoolString),
        ("host", DatabaseProperty::Host),
        ("port", DatabaseProperty::Port),
        ("user", DatabaseProperty::User),
        ("password", DatabaseProperty::Password),
        ("database", DatabaseProperty::Database),
    ] {
        let read = read(&format!("{WEB}    envVars: [{{key: A, fromDatabase: {{name: d, property: {word}}}}}]\n"));
        let EnvSource::Database { property: found, .. } = &read.blueprint.services[0].env_vars[0].source else { panic!("{word}") };
        assert_eq!(found.value, property);
    }
}

#[test]
fn nothing_is_to_be_said_about_the_examples() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path().join("render.yaml");
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let read = read(&text);
        assert!(read.diagnostics.is_empty(), "{}: {:#?}", file.display(), read.diagnostics);
        assert!(!read.blueprint.services.is_empty());
        seen += 1;
    }
    assert!(seen > 0);
}
