//! Rows: what `explain` says, and how peers are written.

use super::support::{peer, state};
use moat_model::{Endpoint, Peer, Proto};
use moat_planner::explain::{explain, parse_peer};

const TEXT: &str = "
services:
  - {type: web, name: shop, runtime: python, buildCommand: b, startCommand: s}
  - {type: pserv, name: catalog, runtime: python, buildCommand: b, startCommand: s, envVars: [{key: PORT, value: 8080}]}
  - {type: worker, name: mailer, runtime: python, buildCommand: b, startCommand: s}
  - {type: pserv, name: vault, runtime: python, buildCommand: b, startCommand: s, x-moat: {allowFrom: [shop], egress: [203.0.113.0/24]}}
  - {type: pserv, name: far, region: ohio, runtime: python, buildCommand: b, startCommand: s, x-moat: {egress: none}}
  - {type: keyvalue, name: queue, ipAllowList: []}
projects:
  - name: p
    environments:
      - name: prod
        networking: {isolation: enabled}
        services:
          - {type: pserv, name: a, runtime: python, buildCommand: b, startCommand: s}
          - {type: pserv, name: b, runtime: python, buildCommand: b, startCommand: s}
";

#[test]
fn one_line_says_it() {
    let state = state(TEXT);
    for (from, to, sentence) in [
        (
            "mailer",
            "catalog:8080",
            "allow: mailer → catalog:8080/tcp by same-network: both are in network oregon and neither environment is closed",
        ),
        ("shop", "shop", "allow: shop → shop by same-network: instances of one service are in one network, oregon"),
        ("a", "b:53/udp", "allow: a → b:53/udp by same-environment: both are in environment p/prod, which is closed to everything else"),
        ("shop", "vault", "allow: shop → vault by allow-from: `x-moat.allowFrom` of vault names it"),
        ("vault", "internet", "allow: vault → internet by egress-range: `x-moat.egress` lists 203.0.113.0/24, and nothing else is open"),
        (
            "build:shop",
            "queue",
            "allow: build of shop → queue by build-to-datastore: builds and pre-deploy commands reach the datastores of their own network, oregon",
        ),
        ("shop", "mailer:25", "deny: shop → mailer:25/tcp by receives-nothing: mailer is a background worker, which receives nothing"),
        ("queue", "shop", "deny: queue → shop by sends-nothing: queue is a Key Value, which opens no connections"),
        ("shop", "far", "deny: shop → far by other-network: shop is in network oregon, far in ohio, and nothing crosses networks"),
        ("shop", "a", "deny: shop → a by isolated-environment: environment p/prod is closed against everything outside it"),
        ("a", "shop", "deny: a → shop by isolated-environment: environment p/prod is closed against everything outside it"),
        ("mailer", "vault", "deny: mailer → vault by not-in-allow-from: `x-moat.allowFrom` of vault names only shop"),
        ("shop", "catalog:18012", "deny: shop → catalog:18012/tcp by reserved-port: port 18012 is reserved on every private network"),
        ("internet", "catalog", "deny: internet → catalog by not-public: catalog is a private service, which has no public address"),
        ("ingress", "shop:1", "deny: ingress → shop:1/tcp by not-http-port: from outside only the HTTP port of shop, 10000/tcp, is open"),
        ("host", "shop", "deny: host → shop by host-is-outside: processes of this machine are outside every private network"),
        ("shop", "host", "deny: shop → host by never-the-host: nothing on a private network reaches the machine it runs on"),
        ("far", "internet", "deny: far → internet by egress-closed: `x-moat.egress` of far is `none`"),
        (
            "build:shop",
            "catalog",
            "deny: build of shop → catalog by build-reaches-datastores-only: builds and pre-deploy commands reach datastores only, and catalog is a private service",
        ),
        ("shop", "catlog", "deny: shop → catlog by unknown-peer: there is no catlog here"),
        ("catlog", "shop", "deny: catlog → shop by unknown-peer: there is no catlog here"),
    ] {
        let (to, port) = parse_peer(to).unwrap();
        let explanation = explain(&state, &peer(from), &to, port);
        assert_eq!(explanation.sentence, sentence);
        assert!(explanation.sentence.ends_with(&explanation.why) && !explanation.why.is_empty());
    }
}

#[test]
fn hints_say_what_to_do() {
    let state = state(TEXT);
    for (from, to, hint) in [
        ("shop", "catlog", "did you mean `catalog`?"),
        ("mailer", "vault", "add `mailer` to `x-moat.allowFrom` of `vault`"),
        ("shop", "mailer", "make it a private service (`type: pserv`) if it should receive traffic"),
        ("internet", "catalog", "make it a web service (`type: web`) if it should be public"),
        ("shop", "catalog:81", "the policy is open on every port; `catalog` is expected to listen on 8080"),
        ("host", "catalog", "`moat exec catalog -- …` runs a command inside"),
    ] {
        let (to, port) = parse_peer(to).unwrap();
        let hints = explain(&state, &peer(from), &to, port).hints;
        assert!(hints.iter().any(|h| h == hint), "{from}: {hints:?}");
    }
}

#[test]
fn peers_are_read_as_people_write_them() {
    let service = |name: &str| Peer::Service(moat_model::Slug::new(name).unwrap());
    let build = |name: &str| Peer::Build(moat_model::Slug::new(name).unwrap());
    let port = |proto, port| Some(Endpoint { proto, port });
    for (text, expected) in [
        ("catalog", (service("catalog"), None)),
        ("Catalog:8080", (service("catalog"), port(Proto::Tcp, 8080))),
        ("catalog:8080/tcp", (service("catalog"), port(Proto::Tcp, 8080))),
        ("catalog:53/udp", (service("catalog"), port(Proto::Udp, 53))),
        ("internet", (Peer::Internet, None)),
        ("ingress", (Peer::Ingress, None)),
        ("host", (Peer::Host, None)),
        ("host:22", (Peer::Host, port(Proto::Tcp, 22))),
        ("build:catalog", (build("catalog"), None)),
        ("build of catalog", (build("catalog"), None)),
        ("build:8080", (service("build"), port(Proto::Tcp, 8080))),
        ("build:4u:80", (build("4u"), port(Proto::Tcp, 80))),
    ] {
        assert_eq!(parse_peer(text).unwrap(), expected, "{text}");
    }
    for wrong in ["", "a.b", "catalog:", "catalog:0", "catalog:65536", "catalog:80/icmp", "catalog:x", "a b", "build:", ":80"] {
        let error = parse_peer(wrong).unwrap_err().to_string();
        assert!(error.starts_with(&format!("`{wrong}` names no peer: ")), "{error}");
    }
    // What is printed can be typed.
    for peer in [Peer::Internet, service("a"), build("a")] {
        assert_eq!(parse_peer(&peer.to_string()).unwrap(), (peer, None));
    }
}
