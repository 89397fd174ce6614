//! One row per thing that is said: a text, and `CODE line:column pointer` of each diagnostic.

use moat_blueprint::{Read, read, read_beside};

fn said(read: &Read) -> Vec<String> {
    read.diagnostics.iter().map(|d| format!("{} {}:{} {}", d.code, d.span.line, d.span.column, d.pointer)).collect()
}

/// A web service with more lines, from line 6 on.
fn web(more: &str) -> String {
    format!("services:\n  - name: a\n    type: web\n    runtime: python\n    startCommand: run\n{more}")
}

/// A variable of a web service: line 7.
fn variable(entry: &str) -> String {
    web(&format!("    envVars:\n      - {entry}\n"))
}

/// Looks at every row before it fails.
fn check<'a>(rows: impl IntoIterator<Item = (String, &'a [&'a str])>) {
    let mut wrong = Vec::new();
    for (text, expect) in rows {
        let said = said(&read(&text));
        if said != expect {
            wrong.push(format!("{text}\n   said {said:?}\n wanted {expect:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Exactly one diagnostic, with words in its message or help.
fn check_words(text: &str, code: &str, words: &[&str]) {
    let read = read(text);
    let found: Vec<_> = read.diagnostics.iter().filter(|d| d.code == code).collect();
    let [d] = found.as_slice() else { panic!("{text}\n{:#?}", read.diagnostics) };
    let help = d.help.clone().unwrap_or_default();
    for word in words {
        assert!(d.message.contains(word) || help.contains(word), "{text}\n{word} is not in {d:#?}");
    }
}

#[test]
fn fields_and_shapes() {
    let rows: &[(&str, &[&str])] = &[
        ("", &[]),
        ("    port: 3000\n", &["E0201 6:5 services/0/port"]),
        ("    x-other: 3000\n", &["E0223 6:5 services/0/x-other"]),
        ("    routes: []\n", &["E0202 6:5 services/0/routes"]),
        ("    schedule: '* * * * *'\n", &["E0202 6:5 services/0/schedule"]),
        ("    numInstances: 0\n", &["E0206 6:19 services/0/numInstances"]),
        ("    numInstances: 101\n", &["E0206 6:19 services/0/numInstances"]),
        ("    numInstances: 99999999999999999999\n", &["E0206 6:19 services/0/numInstances"]),
        ("    numInstances: -1\n", &["E0206 6:19 services/0/numInstances"]),
        ("    numInstances: 1.5\n", &["E0204 6:19 services/0/numInstances"]),
        ("    numInstances: '2'\n", &["E0208 6:19 services/0/numInstances"]),
        ("    numInstances: two\n", &["E0204 6:19 services/0/numInstances"]),
        ("    plan: huge\n", &["E0205 6:11 services/0/plan"]),
        ("    plan: Standard\n", &["E0208 6:11 services/0/plan"]),
        ("    plan:\n", &["E0222 6:5 services/0/plan"]),
        ("    plan: [pro]\n", &["E0204 6:11 services/0/plan"]),
        ("    plan: 2c-4g\n", &[]),
        ("    region: mars\n", &["E0205 6:13 services/0/region"]),
        ("    region: ohio\n", &["E0210 6:5 services/0/region"]),
        ("    startCmd: x\n", &["E0201 6:5 services/0/startCmd"]),
        ("    domains: example.com\n", &["E0204 6:14 services/0/domains"]),
        ("    domain: www.example.com\n", &[]),
        ("    domains: [https://example.com]\n", &["E0216 6:15 services/0/domains/0"]),
        ("    disk: /data\n", &["E0204 6:11 services/0/disk"]),
        ("    disk: {name: d, mountPath: data}\n", &["E0216 6:32 services/0/disk/mountPath"]),
        ("    disk: {name: d, mountPath: /data}\n    numInstances: 2\n", &["E0220 7:5 services/0/numInstances"]),
        ("    healthCheckPath: health\n", &["E0216 6:22 services/0/healthCheckPath"]),
        ("    healthCheckPath: ''\n", &[]),
        ("    preDeployCommand: ''\n", &[]),
        ("    preDeployCommand:\n", &[]),
        ("    rootDir: .\n", &[]),
        ("    rootDir: /backend\n", &[]),
        ("    rootDir: ../backend\n", &["E0216 6:14 services/0/rootDir"]),
        ("    branch: main\n", &["E0210 6:5 services/0/branch"]),
        ("    repo: https://github.com/a/b\n", &[]),
        ("    autoDeploy: false\n", &["E0207 6:5 services/0/autoDeploy"]),
        ("    autoDeployTrigger: off\n", &[]),
        ("    autoDeployTrigger: commit\n", &[]),
        ("    autoDeployTrigger: checksPass\n", &["E0210 6:5 services/0/autoDeployTrigger"]),
        ("    buildFilter: {paths: [a]}\n", &[]),
        ("    buildFilter: {path: [a]}\n", &["E0201 6:19 services/0/buildFilter/path"]),
        ("    env: node\n", &["E0212 6:5 services/0/env", "E0207 6:5 services/0/env"]),
        ("    maintenanceMode: {enabled: true}\n", &[]),
        ("    maintenanceMode: {enabled: true, uri: https://status.example.com}\n", &[]),
        ("    maintenanceMode: {enabled: true, uri: status.html}\n", &["E0216 6:43 services/0/maintenanceMode/uri"]),
        (
            "    domain: example.com\n    maintenanceMode: {enabled: false, uri: https://me@Example.com:443/soon}\n",
            &["E0220 7:5 services/0/maintenanceMode"],
        ),
        ("    maintenanceMode: {enabled: no}\n", &["E0208 6:32 services/0/maintenanceMode/enabled"]),
        ("    ipAllowList: []\n", &[]),
        ("    domains: [exämple.com]\n", &["E0209 6:5 services/0/domains"]),
        ("    ipAllowList: [{source: 0.0.0.0/0}]\n", &[]),
        ("    ipAllowList: [{source: nobody}]\n", &["E0216 6:28 services/0/ipAllowList/0/source"]),
        ("    scaling: {minInstances: 1, maxInstances: 2, targetCPUPercent: 70}\n", &[]),
        ("    scaling: {minInstances: 1, maxInstances: 2}\n", &["E0220 6:5 services/0/scaling"]),
        ("    scaling: {minInstances: 3, maxInstances: 2, targetMemoryPercent: 70}\n", &["E0220 6:5 services/0/scaling"]),
        ("    renderSubdomainPolicy: disabled\n", &["E0220 6:5 services/0/renderSubdomainPolicy"]),
        ("    renderSubdomainPolicy: enabled\n", &[]),
        ("    previews: {generation: off}\n", &[]),
        ("    previews: {generation: automatic}\n", &["E0210 6:5 services/0/previews"]),
        ("    previewPlan: starter\n", &["E0207 6:5 services/0/previewPlan"]),
        ("    pullRequestPreviewsEnabled: true\n", &["E0207 6:5 services/0/pullRequestPreviewsEnabled"]),
        ("    afterFirstDeployCommand: x\n", &["E0207 6:5 services/0/afterFirstDeployCommand"]),
        ("    dockerCommand: x\n", &["E0211 6:5 services/0/dockerCommand"]),
        ("    buildSource: x\n", &["E0209 6:5 services/0/buildSource"]),
        ("    envVars:\n      # none\n", &["E0222 6:5 services/0/envVars"]),
        ("    envVars: {A: b}\n", &["E0204 6:14 services/0/envVars"]),
        ("    envVars:\n      - A=b\n", &["E0204 7:9 services/0/envVars/0"]),
        ("    x-moat: {allowFrom: b}\n", &["E0204 6:25 services/0/x-moat/allowFrom"]),
        ("    x-moat: {proxyProtocol: v3}\n", &["E0205 6:29 services/0/x-moat/proxyProtocol"]),
        ("    x-moat: {egress: some}\n", &["E0205 6:22 services/0/x-moat/egress"]),
        ("    x-moat: {egress: [some]}\n", &["E0216 6:23 services/0/x-moat/egress/0"]),
        ("    x-moat: {secretFiles: {a/b: c}}\n", &["E0216 6:28 services/0/x-moat/secretFiles/a~1b"]),
        ("    x-moat: {secretFiles: {a: ../c}}\n", &["E0216 6:31 services/0/x-moat/secretFiles/a"]),
        ("    x-moat: {secretFiles: {a: [c]}}\n", &["E0204 6:31 services/0/x-moat/secretFiles/a"]),
        ("    x-moat: {allow: [b]}\n", &["E0201 6:14 services/0/x-moat/allow"]),
    ];
    check(rows.iter().map(|(more, expect)| (web(more), *expect)));
}

#[test]
fn variables() {
    let rows: &[(&str, &[&str])] = &[
        ("{key: A, value: b}", &[]),
        ("{key: A, value: 3}", &[]),
        ("{key: A, value: 3.10}", &["E0208 7:25 services/0/envVars/0/value"]),
        ("{key: A, value: 100_000}", &[]),
        ("{key: A, value: True}", &["E0208 7:25 services/0/envVars/0/value"]),
        ("{key: A, value: off}", &[]),
        ("{key: A, value: [b]}", &["E0204 7:25 services/0/envVars/0/value"]),
        ("{key: A}", &[]),
        ("{key: A, value: }", &["E0222 7:18 services/0/envVars/0/value"]),
        ("{key: A, sync: false}", &[]),
        ("{key: A, sync: no}", &["E0208 7:24 services/0/envVars/0/sync"]),
        ("{key: A, generateValue: true, sync: false}", &["E0228 7:39 services/0/envVars/0"]),
        ("{key: A, value: b, sync: true}", &[]),
        ("{key: A, value: b, previewValue: c}", &["E0210 7:28 services/0/envVars/0/previewValue"]),
        ("{value: b}", &["E0203 7:10 services/0/envVars/0"]),
        ("{key: '', value: b}", &["E0203 7:15 services/0/envVars/0/key"]),
        ("{key: A B, value: b}", &["E0214 7:15 services/0/envVars/0/key"]),
        ("{key: 1, value: b}", &["E0214 7:15 services/0/envVars/0/key", "E0208 7:15 services/0/envVars/0/key"]),
        ("{name: A, value: b}", &["E0201 7:10 services/0/envVars/0/name", "E0203 7:16 services/0/envVars/0"]),
        ("{key: A, fromSecret: b}", &["E0201 7:18 services/0/envVars/0/fromSecret"]),
        ("{fromGroup: g}", &[]),
        ("{fromGroup: g, key: A}", &["E0213 7:24 services/0/envVars/0/key"]),
        ("{value: b, fromGroup: g}", &["E0213 7:20 services/0/envVars/0"]),
        ("{key: A, value: b, fromGroup: g}", &["E0213 7:28 services/0/envVars/0"]),
        ("{key: A, fromService: b}", &["E0204 7:31 services/0/envVars/0/fromService"]),
        ("{key: A, fromService: {name: b, type: web, property: host}}", &[]),
        ("{key: A, fromService: {name: b, property: host}}", &["E0208 7:38 services/0/envVars/0/fromService"]),
        ("{key: A, fromService: {name: b, type: web}}", &["E0203 7:38 services/0/envVars/0/fromService"]),
        ("{key: A, fromService: {name: b, type: keyvalue}}", &["E0208 7:38 services/0/envVars/0/fromService"]),
        ("{key: A, fromService: {name: b, type: redis, property: port}}", &["E0207 7:47 services/0/envVars/0/fromService/type"]),
        ("{key: A, fromService: {name: b, type: web, property: url}}", &["E0215 7:62 services/0/envVars/0/fromService/property"]),
        ("{key: A, fromService: {name: b, type: web, property: host, envVarKey: B}}", &["E0213 7:68 services/0/envVars/0/fromService"]),
        ("{key: A, fromService: {type: web, property: host}}", &["E0203 7:32 services/0/envVars/0/fromService"]),
        ("{key: A, fromDatabase: {name: b, property: connectionString}}", &[]),
        ("{key: A, fromDatabase: {name: b, property: connection_string}}", &["E0208 7:52 services/0/envVars/0/fromDatabase/property"]),
        ("{key: A, fromDatabase: {name: b, property: uri}}", &["E0215 7:52 services/0/envVars/0/fromDatabase/property"]),
        ("{key: A, fromDatabase: {name: b}}", &["E0203 7:39 services/0/envVars/0/fromDatabase"]),
        ("", &["E0222 7:7 services/0/envVars/0"]),
    ];
    check(rows.iter().map(|(entry, expect)| (variable(entry), *expect)));
}

#[test]
fn types_and_runtimes() {
    let one = |lines: &str| format!("services:\n  - name: a\n{lines}");
    let rows: &[(&str, &[&str])] = &[
        ("    type: pserv\n    runtime: go\n    startCommand: x\n", &[]),
        ("    type: redis\n    ipAllowList: []\n", &["E0207 3:11 services/0/type"]),
        ("    type: keyvalue\n", &["E0208 2:11 services/0"]),
        ("    type: Web\n    runtime: go\n    startCommand: x\n", &["E0208 3:11 services/0/type"]),
        (
            "    type: private-service\n    runtime: go\n    startCommand: x\n    port: 1\n",
            &["E0221 3:11 services/0/type", "E0201 6:5 services/0/port"],
        ),
        ("    type: postgresql\n    plan: free\n", &["E0221 3:11 services/0/type"]),
        ("    type: docker\n    dockerfilePath: x\n", &["E0221 3:11 services/0/type"]),
        ("    type: gizmo\n    port: 1\n", &["E0221 3:11 services/0/type"]),
        ("    type: [web]\n", &["E0221 3:11 services/0/type"]),
        ("    runtime: go\n", &["E0203 2:11 services/0"]),
        ("    type:\n    runtime: go\n", &["E0203 2:11 services/0"]),
        ("    type: web\n    startCommand: x\n", &["E0203 2:11 services/0"]),
        ("    type: web\n    runtime: go\n", &["E0203 2:11 services/0"]),
        ("    type: web\n    runtime: php\n    startCommand: x\n", &["E0205 4:14 services/0/runtime"]),
        ("    type: web\n    runtime: docker\n    dockerfilePath: x\n    domains: [a.com]\n", &[]),
        ("    type: worker\n    runtime: docker\n    rootDir: x\n    dockerCommand: y\n    dockerContext: ..\n", &[]),
        ("    type: web\n    runtime: docker\n    registryCredential: {fromRegistryCreds: {name: x}}\n", &[]),
        (
            "    type: web\n    runtime: docker\n    buildCommand: x\n    startCommand: y\n    image: {url: z}\n",
            &["E0211 5:5 services/0/buildCommand", "E0211 6:5 services/0/startCommand", "E0211 7:5 services/0/image"],
        ),
        ("    type: pserv\n    runtime: image\n    image: {url: x}\n", &[]),
        ("    type: pserv\n    runtime: image\n", &["E0227 2:11 services/0"]),
        (
            "    type: pserv\n    runtime: image\n    image: {url: x}\n    startCommand: y\n    rootDir: z\n",
            &["E0211 6:5 services/0/startCommand", "E0211 7:5 services/0/rootDir"],
        ),
        ("    type: web\n    runtime: static\n    staticPublishPath: x\n", &[]),
        ("    type: web\n    runtime: static\n", &["E0227 2:11 services/0"]),
        ("    type: web\n    runtime: static\n    staticPublishPath: x\n    plan: free\n", &["E0202 6:5 services/0/plan"]),
        (
            "    type: web\n    runtime: static\n    staticPublishPath: x\n    headers:\n      - {path: 'a', name: 'a b', value: x}\n      - {path: /*, name: Content-Length, value: 1}\n      - {path: /*, name: X-A, value: \"a\\nb\"}\n",
            &[
                "E0216 7:16 services/0/headers/0/path",
                "E0216 7:27 services/0/headers/0/name",
                "E0216 8:26 services/0/headers/1/name",
                "E0216 9:38 services/0/headers/2/value",
            ],
        ),
        (
            "    type: web\n    runtime: static\n    staticPublishPath: x\n    routes:\n      - {type: redirect, source: old, destination: /a}\n      - {type: redirect, source: /b, destination: c}\n      - {type: rewrite, source: /*, destination: //a.b}\n",
            &[
                "E0216 7:34 services/0/routes/0/source",
                "E0216 8:51 services/0/routes/1/destination",
                "E0216 9:50 services/0/routes/2/destination",
            ],
        ),
        (
            "    type: web\n    runtime: static\n    staticPublishPath: x\n    domains: [a.com]\n    ipAllowList: [{source: 203.0.113.7}]\n",
            &[],
        ),
        ("    type: worker\n    runtime: static\n", &["E0205 4:5 services/0/runtime"]),
        ("    type: static\n    staticPublishPath: x\n", &["E0203 2:11 services/0", "E0221 3:11 services/0/type"]),
        (
            "    type: worker\n    runtime: go\n    startCommand: x\n    healthCheckPath: /\n    domains: [a.com]\n",
            &["E0211 6:5 services/0/healthCheckPath", "E0211 7:5 services/0/domains"],
        ),
        ("    type: pserv\n    runtime: go\n    startCommand: x\n    ipAllowList: []\n", &["E0211 6:5 services/0/ipAllowList"]),
        ("    type: cron\n    runtime: go\n    startCommand: x\n", &["E0203 2:11 services/0"]),
        ("    type: cron\n    runtime: go\n    startCommand: x\n    schedule: never\n", &["E0216 6:15 services/0/schedule"]),
        (
            "    type: cron\n    runtime: go\n    startCommand: x\n    schedule: '0 0 * * *'\n    plan: free\n",
            &["E0225 7:11 services/0/plan"],
        ),
        (
            "    type: cron\n    runtime: go\n    startCommand: x\n    schedule: '0 0 * * *'\n    preDeployCommand: y\n",
            &["E0211 7:5 services/0/preDeployCommand"],
        ),
        (
            "    type: cron\n    runtime: go\n    startCommand: x\n    schedule: '0 0 * * *'\n    healthCheckPath: /\n",
            &["E0202 7:5 services/0/healthCheckPath"],
        ),
        (
            "    type: worker\n    runtime: go\n    startCommand: x\n    x-moat: {proxyProtocol: v1}\n",
            &["E0211 6:14 services/0/x-moat/proxyProtocol"],
        ),
        (
            "    type: worker\n    runtime: go\n    startCommand: x\n    x-moat: {allowFrom: [b]}\n",
            &["E0211 6:14 services/0/x-moat/allowFrom"],
        ),
        (
            "    type: keyvalue\n    ipAllowList: []\n    x-moat: {egress: none, secretFiles: {a: b}}\n",
            &["E0211 5:14 services/0/x-moat/egress", "E0211 5:28 services/0/x-moat/secretFiles"],
        ),
        ("    type: keyvalue\n    ipAllowList: [{source: 0.0.0.0/0}]\n", &["E0210 4:5 services/0/ipAllowList"]),
        ("    type: keyvalue\n    ipAllowList: []\n    maxmemoryPolicy: lru\n", &["E0205 5:22 services/0/maxmemoryPolicy"]),
        (
            "    type: workflow\n    runtime: node\n    region: ohio\n    startCommand: x\n",
            &["E0209 3:5 services/0/type", "E0210 5:5 services/0/region"],
        ),
        (
            "    type: workflow\n    runtime: go\n    region: ohio\n    startCommand: x\n",
            &["E0209 3:5 services/0/type", "E0205 4:14 services/0/runtime", "E0210 5:5 services/0/region"],
        ),
    ];
    check(rows.iter().map(|(lines, expect)| (one(lines), *expect)));
}

#[test]
fn the_root_and_other_lists() {
    let rows: &[(&str, &[&str])] = &[
        ("region: ohio\n", &["E0201 1:1 region"]),
        ("atabases: []\n", &["E0201 1:1 atabases"]),
        ("redis: []\n", &["E0201 1:1 redis"]),
        ("services:\n", &["E0222 1:1 services"]),
        ("services: {}\n", &["E0204 1:11 services"]),
        ("services: [web]\n", &["E0204 1:12 services/0"]),
        ("version: '1'\n", &[]),
        ("version: 1\n", &["E0208 1:10 version"]),
        ("version: '2'\n", &["E0205 1:10 version"]),
        ("previews: {generation: off}\n", &[]),
        ("previews: {generation: manual}\n", &["E0210 1:1 previews"]),
        ("previewsEnabled: true\n", &["E0207 1:1 previewsEnabled"]),
        ("databases: [{name: d}]\n", &[]),
        ("databases: [{name: d, plan: pro-8gb, databaseName: shop, user: owner, postgresMajorVersion: '15', ipAllowList: []}]\n", &[]),
        ("databases: [{name: d, ipAllowList: [{source: 0.0.0.0/0}]}]\n", &["E0210 1:23 databases/0/ipAllowList"]),
        ("databases: [{name: d, diskSizeGB: 10}]\n", &["E0210 1:23 databases/0/diskSizeGB"]),
        ("databases: [{name: d, region: ohio}]\n", &["E0210 1:23 databases/0/region"]),
        (
            "databases: [{name: d, previewPlan: free, previewDiskSizeGB: 1}]\n",
            &["E0210 1:23 databases/0/previewPlan", "E0210 1:42 databases/0/previewDiskSizeGB"],
        ),
        ("databases: [{name: d, connectionPool: none, storageAutoscalingEnabled: false, highAvailability: {enabled: false}}]\n", &[]),
        ("databases: [{name: d, connectionPool: pgbouncer}]\n", &["E0210 1:23 databases/0/connectionPool"]),
        ("databases: [{name: d, storageAutoscalingEnabled: true}]\n", &["E0210 1:23 databases/0/storageAutoscalingEnabled"]),
        ("databases: [{name: d, highAvailability: {enabled: true}}]\n", &["E0210 1:23 databases/0/highAvailability"]),
        ("databases: [{name: d, databaseOptions: [{key: a, value: b}]}]\n", &["E0210 1:23 databases/0/databaseOptions"]),
        ("databases: [{name: d, postgresMajorVersion: 15}]\n", &["E0208 1:45 databases/0/postgresMajorVersion"]),
        ("databases: [{name: d, type: redis}]\n", &["E0201 1:23 databases/0/type"]),
        (
            "databases: [{name: d, readReplicas: [{name: a}, {name: b}, {name: c}, {name: d}, {name: e}, {name: f}]}]\n",
            &["E0210 1:23 databases/0/readReplicas", "E0206 1:37 databases/0/readReplicas"],
        ),
        ("envVarGroups: [{name: g, envVars: [{key: A, value: b}]}]\n", &[]),
        ("envVarGroups: [{name: g, envVars: [{key: A, sync: false}]}]\n", &["E0226 1:42 envVarGroups/0/envVars"]),
        ("envVarGroups: [{name: g, envVars: [{key: A, fromGroup: b}]}]\n", &["E0219 1:45 envVarGroups/0/envVars/0/fromGroup"]),
        ("envVarGroups: [{name: g}]\n", &["E0203 1:23 envVarGroups/0"]),
        ("envVarGroups: [{name: g, envVars: []}, {name: g, envVars: []}]\n", &["E0218 1:47 envVarGroups/1/name"]),
        ("projects: [{name: p, environments: [{name: e}, {name: e}]}]\n", &["E0218 1:55 "]),
        (
            "projects: [{name: p, environments: [{name: e, networking: {isolation: true}}]}]\n",
            &["E0205 1:71 projects/0/environments/0/networking/isolation"],
        ),
        (
            "projects: [{name: p, environments: [{name: e, permissions: {protection: enabled}}]}]\n",
            &["E0210 1:73 projects/0/environments/0/permissions/protection"],
        ),
        ("buildSources: [{name: b}]\n", &["E0203 1:23 buildSources/0", "E0209 1:23 buildSources/0"]),
        ("environments: []\n", &["E0201 1:1 environments"]),
        ("", &["E0111 1:1 "]),
        ("# nothing\n", &["E0111 1:1 "]),
        ("web\n", &["E0111 1:1 "]),
        ("a: \"\u{7}\"\n", &["E0112 1:5 "]),
        ("services: []\n---\nservices: []\n", &["E0106 2:1 "]),
        ("--- # a comment\nservices: []\n...\n", &[]),
    ];
    check(rows.iter().map(|(text, expect)| ((*text).to_owned(), *expect)));
}

#[test]
fn hints_name_what_to_write() {
    let root = |key: &str| format!("{key}: x\n");
    for (text, code, words) in [
        (web("    healthCheckPth: /\n"), "E0201", &["did you mean `healthCheckPath`?"][..]),
        (web("    health_check_path: /\n"), "E0201", &["`healthCheckPath`"]),
        (web("    healthCheckTimeout: 3\n"), "E0201", &["remove"]),
        (web("    instanceType: x\n"), "E0201", &["`plan`"]),
        (web("    pythonVersion: 3\n"), "E0201", &["`PYTHON_VERSION`"]),
        (web("    nodeVersion: 3\n"), "E0201", &["`NODE_VERSION`"]),
        (web("    workingDirectory: x\n"), "E0201", &["`rootDir`"]),
        (web("    port: 3\n"), "E0201", &["`PORT`", "`envVars`"]),
        (web("    sizeGB: 3\n"), "E0202", &["`disk`"]),
        (web("    envVarGroups: [{ref: x}]\n"), "E0201", &["`- fromGroup: NAME`"]),
        (web("    envVars: [{key: A, value: b}, {key: A, value: c}]\n"), "E0224", &["line 6", "last"]),
        (root("environments"), "E0201", &["project"]),
        (root("staticSites"), "E0201", &["`runtime: static`"]),
        (root("atabases"), "E0201", &["did you mean `databases`?"]),
        (root("redis"), "E0201", &["`type: keyvalue`"]),
        (root("networks"), "E0201", &["Compose"]),
        ("services: [{name: a, type: postgresql}]".to_owned(), "E0221", &["`databases`"]),
        ("services: [{name: a, type: mysql}]".to_owned(), "E0221", &["`type: pserv`"]),
        ("services: [{name: a, type: kv}]".to_owned(), "E0221", &["`keyvalue`"]),
        (
            "services: [{name: a, type: web, runtime: python-3.11.0, startCommand: x}]".to_owned(),
            "E0205",
            &["`runtime: python`", "`PYTHON_VERSION`", "`3.11.0`"],
        ),
        ("services: [{name: a, type: web, runtime: nodejs, startCommand: x}]".to_owned(), "E0205", &["`runtime: node`"]),
        ("services: [{name: a, type: web, runtime: java, startCommand: x}]".to_owned(), "E0205", &["`runtime: docker`"]),
        (variable("{key: A, fromService: {name: b, type: web, property: url}}"), "E0215", &["`hostport`", "RENDER_EXTERNAL_URL"]),
        (variable("{key: A, fromService: {name: b, type: web, property: password}}"), "E0215", &["`host`, `port`, `hostport`"]),
        (variable("{key: A, fromDatabase: {name: b, property: databaseUrl}}"), "E0215", &["`connectionString`"]),
        (variable("{key: A, fromSecret: b}"), "E0201", &["`sync: false`"]),
        ("services: []\nservices: []\n".to_owned(), "E0105", &["line 1"]),
        ("// x\nservices: []\n".to_owned(), "E0101", &["`#`"]),
        ("services:\n  - name: a\n      type: web\n".to_owned(), "E0101", &["align"]),
    ] {
        check_words(&text, code, words);
    }
}

#[test]
fn a_repository_of_ones_own_runs() {
    let text = web("    repo: https://github.com/Me/shop\n");
    let remotes = ["git@github.com:me/shop.git".to_owned()];
    assert!(read_beside(&text, &remotes).diagnostics.is_empty());
    let read = read_beside(&text, &["git@github.com:me/other.git".to_owned()]);
    assert_eq!(said(&read), [""; 0]);
    let elsewhere = |read: &moat_blueprint::Read| read.blueprint.services[0].elsewhere;
    assert!(elsewhere(&read) && !elsewhere(&read_beside(&text, &remotes)));
    // A branch of one's own folder is whatever lies there.
    let branch = format!("{text}    branch: main\n");
    assert_eq!(said(&read_beside(&branch, &remotes)), ["E0210 7:5 services/0/branch"]);
    assert_eq!(said(&read_beside(&branch, &[])), [""; 0]);
}
