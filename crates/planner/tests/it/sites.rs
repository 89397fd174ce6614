//! Static sites: what their definitions come to, and what is said of rules that can't be followed.

use super::support::{Given, read, resolve_files};
use moat_model::state::{SiteAction, StaticWorkload, Workload};
use moat_model::{NativeRuntime, Slug};
use moat_planner::check::check;
use moat_planner::memory::Memory;
use std::path::PathBuf;

const SITE: &str = "
services:
  - type: web
    name: pages
    runtime: static
    rootDir: ./web/
    buildCommand: npm run build
    preDeployCommand: npm test
    staticPublishPath: ' ./dist '
    envVars:
      - {key: NODE_VERSION, value: ' 20 '}
    headers:
      - {path: /*, name: X-A, value: 1}
    routes:
      - {type: redirect, source: /a, destination: 'https://elsewhere.example/b'}
      - {type: rewrite, source: /api/*, destination: 'https://API.onrender.com/:splat'}
      - {type: rewrite, source: /local, destination: 'http://api.localhost:8080'}
      - {type: rewrite, source: /*, destination: /index.html}
  - {type: web, name: api, runtime: python, buildCommand: b, startCommand: s}
  - {type: pserv, name: vault, runtime: python, buildCommand: b, startCommand: s}
  - {type: web, name: other, env: static, staticPublishPath: .}
";

fn site(text: &str, slug: &str) -> StaticWorkload {
    let resolved = resolve_files(&[("/b/render.yaml", text)], &Given::default(), &mut Memory::default());
    match &resolved.state.services[slug].workload {
        Workload::Static(site) => site.clone(),
        other @ (Workload::Native(_) | Workload::Image(_) | Workload::KeyValue(_) | Workload::Postgres(_)) => panic!("{other:?}"),
    }
}

#[test]
fn a_definition() {
    let pages = site(SITE, "pages");
    assert_eq!((pages.root_dir, pages.publish_path), (PathBuf::from("web"), PathBuf::from("./dist")));
    assert_eq!((pages.build_command.as_deref(), pages.pre_deploy_command.as_deref()), (Some("npm run build"), Some("npm test")));
    assert_eq!(pages.versions.into_iter().collect::<Vec<_>>(), [(NativeRuntime::Node, "20".to_owned())]);
    assert_eq!((pages.headers[0].name.as_str(), pages.headers[0].value.as_str()), ("X-A", "1"));
    let api = || Slug::new("api").unwrap();
    let actions: Vec<SiteAction> = pages.routes.into_iter().map(|route| route.action).collect();
    assert_eq!(
        actions,
        [
            SiteAction::Redirect("https://elsewhere.example/b".to_owned()),
            SiteAction::Pass { service: api(), path: "/:splat".to_owned() },
            SiteAction::Pass { service: api(), path: "/".to_owned() },
            SiteAction::Rewrite("/index.html".to_owned()),
        ]
    );
    let other = site(SITE, "other");
    assert_eq!((other.build_command, other.publish_path), (None, PathBuf::from(".")));
}

#[test]
fn requests_are_passed_on_to_public_services_only() {
    for (destination, refused) in [
        ("https://api.onrender.com/*", false),
        ("http://api.localhost:8080/*", false),
        ("https://other.onrender.com/*", false),
        ("https://vault.onrender.com/*", true),
        ("http://vault:10000/*", true),
        ("http://api:10000/*", true),
        ("https://pages.onrender.com/*", true),
        ("https://nobody.onrender.com/*", true),
        ("https://x.api.onrender.com/*", true),
        ("https://api.onrender.com.example/*", true),
        ("https://apionrender.com/*", true),
        ("https://me@api.onrender.com/*", true),
        ("http://127.0.0.1:8080/*", true),
        ("http://169.254.169.254/*", true),
        ("https://api.example.com/*", true),
    ] {
        let text = SITE.replace("'https://API.onrender.com/:splat'", &format!("'{destination}'"));
        let said: Vec<_> = check(&read(&text)).into_iter().filter(|d| d.code == "U0303").map(|d| d.pointer).collect();
        let want: &[&str] = if refused { &["services/0/routes/1/destination"] } else { &[] };
        assert_eq!(said, want, "{destination}");
    }
}

#[test]
fn rules_change_what_is_deployed_and_not_what_is_built() {
    let prints = |text: &str| {
        let resolved = resolve_files(&[("/b/render.yaml", text)], &Given::default(), &mut Memory::default());
        let pages = &resolved.state.services["pages"];
        (pages.fingerprint.clone(), pages.build_fingerprint.clone())
    };
    let before = prints(SITE);
    assert_eq!(prints(SITE), before);
    for (from, to, built) in [
        ("name: X-A", "name: X-B", false),
        ("destination: /index.html", "destination: /app.html", false),
        ("{type: redirect, source: /a", "{type: redirect, source: /c", false),
        ("./dist", "./build", true),
        ("npm run build", "npm run build:all", true),
        ("' 20 '", "'22'", true),
    ] {
        let after = prints(&SITE.replace(from, to));
        assert_eq!((after.0 != before.0 || built, after.1 != before.1), (true, built), "{from}");
    }
}
