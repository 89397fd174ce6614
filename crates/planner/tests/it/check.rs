//! Rows: what the linter says, where, and what it says to do.

use super::support::read;
use moat_model::Severity;
use moat_planner::check::check;

/// `CODE pointer: message | help` of everything said.
fn said(text: &str) -> Vec<String> {
    let diagnostics = check(&read(text));
    for d in &diagnostics {
        let expected = match &d.code[..1] {
            "E" => Severity::Error,
            "U" => Severity::Unsupported,
            "W" => Severity::Warning,
            _ => Severity::Notice,
        };
        assert_eq!(d.severity, expected, "{d:?}");
        assert!(d.span.line > 0, "no place: {d:?}");
        assert!(moat_planner::explain_code(d.code).is_some());
    }
    diagnostics.iter().map(|d| format!("{} {}: {} | {}", d.code, d.pointer, d.message, d.help.as_deref().unwrap_or("-"))).collect()
}

/// The target services that rows below refer to.
const TARGETS: &str = "
  - {type: web, name: shop, runtime: python, buildCommand: b, startCommand: s, envVars: [{key: TOKEN, value: t}]}
  - {type: pserv, name: catalog, runtime: python, buildCommand: b, startCommand: s}
  - {type: worker, name: mailer, runtime: python, buildCommand: b, startCommand: s}
  - {type: cron, name: digest, runtime: python, buildCommand: b, startCommand: s, schedule: '* * * * *'}
  - {type: keyvalue, name: queue, ipAllowList: []}
  - {type: web, name: pages, runtime: static, buildCommand: b, staticPublishPath: d}
databases:
  - {name: orders, readReplicas: [{name: orders-copy}]}
";

/// What is said of one variable of a web service beside the targets.
fn of_variable(variable: &str) -> Vec<String> {
    let text =
        format!("services:\n  - {{type: web, name: me, runtime: node, buildCommand: b, startCommand: s, envVars: [{variable}]}}{TARGETS}");
    said(&text)
}

#[test]
fn references() {
    let at = "services/0/envVars/0/fromService";
    for (variable, expected) in [
        // What is right says nothing.
        ("{key: A, fromService: {type: web, name: shop, property: host}}", None),
        ("{key: A, fromService: {type: pserv, name: catalog, property: port}}", None),
        ("{key: A, fromService: {type: pserv, name: catalog, property: hostport}}", None),
        ("{key: A, fromService: {type: keyvalue, name: queue, property: connectionString}}", None),
        ("{key: A, fromService: {type: keyvalue, name: queue, property: hostport}}", None),
        ("{key: A, fromService: {type: redis, name: queue, property: host}}", None),
        ("{key: A, fromService: {type: web, name: shop, envVarKey: TOKEN}}", None),
        ("{key: A, fromService: {type: web, name: shop, envVarKey: RENDER_EXTERNAL_URL}}", None),
        ("{key: A, fromService: {type: pserv, name: catalog, envVarKey: RENDER_DISCOVERY_SERVICE}}", None),
        ("{key: A, fromService: {type: worker, name: mailer, envVarKey: RENDER_SERVICE_NAME}}", None),
        ("{key: A, fromService: {type: web, name: pages, envVarKey: RENDER_EXTERNAL_URL}}", None),
        ("{key: A, fromService: {type: web, name: me, envVarKey: RENDER_EXTERNAL_URL}}", None),
        ("{key: PORT, fromService: {type: web, name: me, envVarKey: PORT}}", None),
        ("{key: A, fromDatabase: {name: orders, property: connectionString}}", None),
        ("{key: A, fromDatabase: {name: orders, property: connectionPoolString}}", None),
        ("{key: A, fromDatabase: {name: orders-copy, property: password}}", None),
        // Targets that are not there.
        ("{key: A, fromService: {type: pserv, name: catalgo, property: host}}", Some(format!("E0301 {at}/name: there is no service `catalgo` here | did you mean `catalog`?"))),
        (
            "{key: A, fromService: {type: pserv, name: elsewhere, property: host}}",
            Some(format!("N0301 {at}/name: there is no service `elsewhere` here | `up` needs it: add the service to this file, or bring up the file that has it first")),
        ),
        ("{key: A, fromService: {type: pserv, name: catalog2, property: host}}", Some(format!("N0301 {at}/name: there is no service `catalog2` here | did you mean `catalog`?"))),
        (
            "{key: A, fromService: {type: pserv, name: orders, property: host}}",
            Some(format!("E0302 {at}/name: `orders` is a database, not a service | write `fromDatabase: {{ name: orders, property: connectionString }}`")),
        ),
        (
            "{key: A, fromDatabase: {name: queue, property: connectionString}}",
            Some("E0302 services/0/envVars/0/fromDatabase/name: `queue` is a Key Value, not a database | write `fromService: { type: keyvalue, name: queue, property: connectionString }`".to_owned()),
        ),
        ("{key: A, fromDatabase: {name: ordres, property: host}}", Some("E0301 services/0/envVars/0/fromDatabase/name: there is no database `ordres` here | did you mean `orders`?".to_owned())),
        ("{fromGroup: elsewhere}", Some("N0302 services/0/envVars/0/fromGroup: there is no environment group `elsewhere` here | add it under `envVarGroups`, or give each of its variables with `--set 'elsewhere.KEY=VALUE'`".to_owned())),
        // Properties that the target does not have.
        (
            "{key: A, fromService: {type: worker, name: mailer, property: host}}",
            Some(format!("E0303 {at}/property: `mailer` is a background worker, which has no `host` | a background worker receives nothing: make it a private service (`type: pserv`), or hand it jobs through a Key Value")),
        ),
        ("{key: A, fromService: {type: cron, name: digest, property: hostport}}", Some(format!("E0303 {at}/property: `digest` is a cron job, which has no `hostport` | a cron job receives nothing; it has variables, by `envVarKey`"))),
        (
            "{key: A, fromService: {type: web, name: pages, property: hostport}}",
            Some(format!("E0303 {at}/property: `pages` is a static site, which has no `hostport` | it is not on the private network; its public address is `envVarKey: RENDER_EXTERNAL_URL`")),
        ),
        (
            "{key: A, fromService: {type: pserv, name: catalog, property: connectionString}}",
            Some(format!("E0303 {at}/property: `catalog` is a private service, which has no `connectionString` | it has `host`, `port`, `hostport`, or one of its variables by `envVarKey`")),
        ),
        (
            "{key: A, fromService: {type: keyvalue, name: queue, envVarKey: URL}}",
            Some(format!("E0303 {at}/envVarKey: `queue` is a Key Value, which has no variables | it has `connectionString`, `host`, `port` and `hostport`")),
        ),
        ("{key: A, fromService: {type: web, name: catalog, property: host}}", Some(format!("E0304 {at}/type: `catalog` is a private service, not `web` | write `type: pserv`"))),
        // Variables that the target does not have.
        ("{key: A, fromService: {type: web, name: shop, envVarKey: TOKNE}}", Some(format!("E0305 {at}/envVarKey: `shop` has no variable `TOKNE` | did you mean `TOKEN`?"))),
        ("{key: A, fromService: {type: web, name: shop, envVarKey: SOMETHING}}", Some(format!("E0305 {at}/envVarKey: `shop` has no variable `SOMETHING` | `shop` has `TOKEN`"))),
        ("{key: A, fromService: {type: web, name: shop, envVarKey: RENDER_INSTANCE_ID}}", Some(format!("E0305 {at}/envVarKey: `RENDER_INSTANCE_ID` differs from one instance of `shop` to the next | each instance finds its own in its environment"))),
        ("{key: A, fromService: {type: web, name: me, envVarKey: A}}", Some("E0306 services/0/envVars/0: these references go in a circle: `me.A` → `me.A` | give one of them a `value`".to_owned())),
        // Empty addresses.
        (
            "{key: A, fromService: {type: pserv, name: catalog, envVarKey: RENDER_EXTERNAL_URL}}",
            Some(format!("W0302 {at}/envVarKey: `RENDER_EXTERNAL_URL` is empty: `catalog` is a private service, which has no public address | its private address is `property: hostport`")),
        ),
        (
            "{key: A, fromService: {type: worker, name: mailer, envVarKey: RENDER_EXTERNAL_HOSTNAME}}",
            Some(format!("W0302 {at}/envVarKey: `RENDER_EXTERNAL_HOSTNAME` is empty: `mailer` is a background worker, which has no public address | only web services have a public address")),
        ),
        ("{key: RENDER_INSTANCE_ID, value: x}", Some("W0304 services/0/envVars/0: `RENDER_INSTANCE_ID` is set by Moat, whatever is written | remove it: each instance has its own".to_owned())),
        // Ports.
        ("{key: PORT, value: 18012}", Some("E0307 services/0/envVars/0: `PORT` of `me`: port 18012 is reserved on every private network | write a number from 1 to 65535; 10000 is the default".to_owned())),
        ("{key: PORT, value: 0}", Some("E0307 services/0/envVars/0: `PORT` of `me`: `0` is not a port | write a number from 1 to 65535; 10000 is the default".to_owned())),
        ("{key: PORT, value: http}", Some("E0307 services/0/envVars/0: `PORT` of `me`: `http` is not a port | write a number from 1 to 65535; 10000 is the default".to_owned())),
        ("{key: PORT, value: 8080}", None),
    ] {
        assert_eq!(of_variable(variable), expected.into_iter().collect::<Vec<_>>(), "{variable}");
    }
}

#[test]
fn circles_are_said_once_wherever_they_are_entered() {
    let web = |name: &str, from: &str| {
        format!(
            "  - {{type: web, name: {name}, runtime: python, buildCommand: b, startCommand: s, envVars: [{{key: X, fromService: {{type: web, name: {from}, envVarKey: X}}}}]}}\n"
        )
    };
    let text = format!("services:\n{}{}{}{}", web("entry", "a"), web("a", "b"), web("b", "c"), web("c", "a"));
    assert_eq!(
        said(&text),
        ["E0306 services/1/envVars/0: these references go in a circle: `a.X` → `b.X` → `c.X` → `a.X` | give one of them a `value`"]
    );
}

#[test]
fn services() {
    for (service, expected) in [
        (
            "{type: worker, name: w, runtime: python, buildCommand: b, startCommand: s, envVars: [{key: PORT, value: 8080}]}",
            "W0301 services/0/envVars/0: `w` sets `PORT`, but a background worker receives nothing | remove it, or make this a private service (`type: pserv`) if others should reach it",
        ),
        (
            "{type: pserv, name: p, runtime: python, plan: free, buildCommand: b, startCommand: s}",
            "N0308 services/0/plan: a private service has no plan `free`: it gets the limits of `starter` | write `starter`",
        ),
        (
            "{type: worker, name: w, runtime: python, plan: free, buildCommand: b, startCommand: s}",
            "N0308 services/0/plan: a background worker has no plan `free`: it gets the limits of `starter` | write `starter`",
        ),
        (
            "{type: web, name: w, runtime: python, startCommand: s}",
            "N0305 services/0/buildCommand: `w` has no `buildCommand`: its source runs as it is | -",
        ),
        (
            "{type: pserv, name: Internet, runtime: python, buildCommand: b, startCommand: s}",
            "N0306 services/0/name: the host name of `Internet` is `internet-fhdc` | `internet` stands for something else already; this name is kept",
        ),
        (
            "{type: web, name: w, runtime: python, buildCommand: b, startCommand: s, x-moat: {proxyProtocol: v2}}",
            "N0311 services/0/x-moat/proxyProtocol: each connection of the ingress and of health checks to `w` begins with a PROXY header, and carries one request | its server must expect it on its HTTP port; clients of the private network use another port, or begin with one too",
        ),
        (
            "{type: pserv, name: p, runtime: python, buildCommand: b, startCommand: s, x-moat: {allowFrom: [nobody-else]}}",
            "N0301 services/0/x-moat/allowFrom: there is no service `nobody-else` here | names are those of services, as they are written",
        ),
    ] {
        let said = said(&format!("services:\n  - {service}\n"));
        assert_eq!(said.len(), 1, "{said:?}");
        // The suffix of a label depends on the path; here only that there is one.
        let same = if expected.starts_with("N0306") { said[0][..60] == expected[..60] } else { said[0] == expected };
        assert!(same, "{}\n{expected}", said[0]);
    }
}

#[test]
fn allow_from_is_checked() {
    let text = "
services:
  - {type: pserv, name: catalog, runtime: python, buildCommand: b, startCommand: s, x-moat: {allowFrom: [shop, queue, far, stoerfront]}}
  - {type: web, name: shop, runtime: python, buildCommand: b, startCommand: s}
  - {type: web, name: storefront, runtime: python, buildCommand: b, startCommand: s}
  - {type: keyvalue, name: queue, ipAllowList: []}
  - {type: pserv, name: far, region: ohio, runtime: python, buildCommand: b, startCommand: s}
";
    assert_eq!(
        said(text),
        [
            "W0305 services/0/x-moat/allowFrom: `queue` can't reach `catalog` all the same: it is a Key Value, which opens no connections | -",
            "W0305 services/0/x-moat/allowFrom: `far` can't reach `catalog` all the same: far is in network ohio, catalog in oregon, and nothing crosses networks | -",
            "E0309 services/0/x-moat/allowFrom: there is no service `stoerfront` here | did you mean `storefront`?",
        ]
    );
}

#[test]
fn what_the_network_cuts_is_said() {
    let text = "
projects:
  - name: p
    environments:
      - name: prod
        networking: {isolation: enabled}
        services:
          - {type: pserv, name: inside, runtime: python, buildCommand: b, startCommand: s}
services:
  - type: web
    name: shop
    runtime: python
    buildCommand: b
    startCommand: s
    envVars:
      - {key: A, fromService: {type: pserv, name: inside, property: hostport}}
      - {key: B, fromService: {type: keyvalue, name: far, property: connectionString}}
      - {key: C, fromService: {type: pserv, name: vault, property: host}}
      - {key: D, fromService: {type: pserv, name: inside, envVarKey: RENDER_DISCOVERY_SERVICE}}
      - {key: E, fromService: {type: pserv, name: inside, envVarKey: RENDER_SERVICE_NAME}}
      - {key: F, fromDatabase: {name: ledger, property: connectionString}}
      - {key: G, fromDatabase: {name: ledger, property: password}}
  - {type: keyvalue, name: far, region: ohio, ipAllowList: []}
  - {type: pserv, name: vault, runtime: python, buildCommand: b, startCommand: s, x-moat: {allowFrom: []}}
databases:
  - {name: ledger, region: ohio}
";
    let said: Vec<String> = said(text).iter().map(|s| s.split(" | ").next().unwrap().to_owned()).collect();
    assert_eq!(
        said,
        [
            "W0303 services/0/envVars/0/fromService/name: `shop` can't reach `inside`: environment p/prod is closed against everything outside it",
            "W0303 services/0/envVars/1/fromService/name: `shop` can't reach `far`: shop is in network oregon, far in ohio, and nothing crosses networks",
            "W0303 services/0/envVars/2/fromService/name: `shop` can't reach `vault`: `x-moat.allowFrom` of vault names nobody",
            "W0303 services/0/envVars/3/fromService/name: `shop` can't reach `inside`: environment p/prod is closed against everything outside it",
            "W0303 services/0/envVars/5/fromDatabase/name: `shop` can't reach `ledger`: shop is in network oregon, ledger in ohio, and nothing crosses networks",
        ]
    );
}

#[test]
fn the_examples_have_nothing_wrong() {
    for example in ["hello", "shop", "guestbook"] {
        let path = format!("{}/../../examples/{example}/render.yaml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(said(&text), [""; 0], "{example}");
    }
}
