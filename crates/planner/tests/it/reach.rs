//! Rows: who may open a flow to whom, and by which rule or for what reason.

use super::support::{peer, state};
use moat_model::{DesiredState, Egress, Peer, Verdict};
use moat_planner::explain::{parse_peer, reason_word, rule_word};
use moat_planner::reach::{reach, verdict, visible};

/// `allow RULE` or `deny REASON`.
fn word(verdict: Verdict) -> String {
    match verdict {
        Verdict::Allow { by } => format!("allow {}", rule_word(by)),
        Verdict::Deny { because } => format!("deny {}", reason_word(because)),
    }
}

/// Rows of `FROM -> TO: VERDICT`; TO may have a port.
fn rows(state: &DesiredState, table: &str) {
    let mut wrong = Vec::new();
    for row in table.lines().map(str::trim).filter(|row| !row.is_empty() && !row.starts_with('#')) {
        let (pair, expected) = row.rsplit_once(": ").unwrap();
        let (from, to) = pair.split_once(" -> ").unwrap();
        let (to, port) = parse_peer(to.trim()).unwrap();
        let found = word(verdict(state, &peer(from.trim()), &to, port));
        if found != expected.trim() {
            wrong.push(format!("{pair}: {found}, not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const KINDS: &str = "
services:
  - {type: web, name: shop, runtime: python, buildCommand: b, startCommand: s}
  - {type: web, name: admin, runtime: python, buildCommand: b, startCommand: s, envVars: [{key: PORT, value: 8000}]}
  - {type: pserv, name: catalog, runtime: python, buildCommand: b, startCommand: s}
  - {type: worker, name: mailer, runtime: python, buildCommand: b, startCommand: s}
  - {type: cron, name: digest, runtime: python, buildCommand: b, startCommand: s, schedule: '* * * * *'}
  - {type: keyvalue, name: queue, ipAllowList: []}
  - {type: web, name: pages, runtime: static, buildCommand: b, staticPublishPath: p}
databases:
  - {name: orders}
";

#[test]
fn each_kind_to_each_kind() {
    rows(
        &state(KINDS),
        "
        shop -> admin: allow same-network
        shop -> shop: allow same-network
        shop -> catalog: allow same-network
        shop -> mailer: deny receives-nothing
        shop -> digest: deny receives-nothing
        shop -> queue: allow same-network
        catalog -> shop: allow same-network
        catalog -> mailer: deny receives-nothing
        catalog -> queue: allow same-network
        mailer -> shop: allow same-network
        mailer -> catalog: allow same-network
        mailer -> mailer: deny receives-nothing
        mailer -> digest: deny receives-nothing
        mailer -> queue: allow same-network
        digest -> shop: allow same-network
        digest -> catalog: allow same-network
        digest -> digest: deny receives-nothing
        digest -> queue: allow same-network
        queue -> shop: deny sends-nothing
        queue -> mailer: deny sends-nothing
        queue -> queue: deny sends-nothing
        queue -> internet: deny sends-nothing
        queue -> host: deny sends-nothing
        shop -> orders: allow same-network
        shop -> orders:5432: allow same-network
        catalog -> orders: allow same-network
        mailer -> orders: allow same-network
        digest -> orders: allow same-network
        build:shop -> orders: allow build-to-datastore
        build:shop -> orders:5432: allow build-to-datastore
        queue -> orders: deny sends-nothing
        orders -> shop: deny sends-nothing
        orders -> orders: deny sends-nothing
        orders -> internet: deny sends-nothing
        orders -> host: deny sends-nothing
        internet -> orders: deny not-public
        ingress -> orders: deny not-public
        host -> orders: deny host-is-outside
        ",
    );
}

#[test]
fn a_static_site_is_on_no_network() {
    rows(
        &state(KINDS),
        "
        internet -> pages: allow public-site
        internet -> pages:80: deny not-on-the-network
        ingress -> pages: deny not-on-the-network
        ingress -> pages:10000: deny not-on-the-network
        host -> pages: deny host-is-outside
        shop -> pages: deny not-on-the-network
        mailer -> pages: deny not-on-the-network
        queue -> pages: deny sends-nothing
        build:shop -> pages: deny not-on-the-network
        pages -> shop: deny sends-nothing
        pages -> orders: deny sends-nothing
        pages -> pages: deny sends-nothing
        pages -> internet: deny sends-nothing
        pages -> host: deny sends-nothing
        build:pages -> orders: deny not-on-the-network
        build:pages -> queue: deny not-on-the-network
        build:pages -> shop: deny not-on-the-network
        build:pages -> pages: deny not-on-the-network
        build:pages -> internet: allow default-egress
        build:pages -> host: deny never-the-host
        shop -> build:pages: deny receives-nothing
        ",
    );
    let state = state(KINDS);
    let pages = &state.services["pages"];
    assert_eq!((pages.vip, pages.port, pages.instances), (None, None, 0));
}

#[test]
fn the_world_outside() {
    rows(
        &state(KINDS),
        "
        internet -> shop: allow public-web
        internet -> shop:10000: allow public-web
        internet -> shop:8000: deny not-http-port
        internet -> shop:10000/udp: deny not-http-port
        internet -> admin:8000: allow public-web
        internet -> admin:10000: deny not-http-port
        internet -> catalog: deny not-public
        internet -> catalog:10000: deny not-public
        internet -> mailer: deny receives-nothing
        internet -> digest: deny receives-nothing
        internet -> queue: deny not-public
        internet -> ingress: allow public-listener
        internet -> host: deny not-public
        internet -> build:shop: deny receives-nothing
        ingress -> shop: allow web-ingress
        ingress -> shop:10000: allow web-ingress
        ingress -> shop:22: deny not-http-port
        ingress -> admin:8000: allow web-ingress
        ingress -> admin:8000/udp: deny not-http-port
        ingress -> shop:18012: deny reserved-port
        ingress -> catalog: deny not-public
        ingress -> mailer: deny receives-nothing
        ingress -> digest: deny receives-nothing
        ingress -> queue: deny not-public
        ingress -> internet: deny not-public
        ingress -> host: deny not-public
        ingress -> build:shop: deny receives-nothing
        host -> shop: deny host-is-outside
        host -> catalog: deny host-is-outside
        host -> queue: deny host-is-outside
        host -> mailer: deny host-is-outside
        host -> build:shop: deny host-is-outside
        host -> ingress: allow public-listener
        host -> internet: deny host-is-outside
        shop -> internet: allow default-egress
        catalog -> internet: allow default-egress
        mailer -> internet: allow default-egress
        digest -> internet: allow default-egress
        shop -> host: deny never-the-host
        mailer -> ingress: deny never-the-host
        build:shop -> host: deny never-the-host
        ",
    );
}

#[test]
fn builds_reach_datastores() {
    rows(
        &state(KINDS),
        "
        build:shop -> queue: allow build-to-datastore
        build:digest -> queue:6379: allow build-to-datastore
        build:shop -> catalog: deny build-reaches-datastores-only
        build:shop -> shop: deny build-reaches-datastores-only
        build:shop -> mailer: deny receives-nothing
        build:shop -> internet: allow default-egress
        build:shop -> build:admin: deny receives-nothing
        shop -> build:shop: deny receives-nothing
        # A Key Value is not built.
        build:queue -> queue: deny unknown-peer
        ",
    );
}

#[test]
fn ports() {
    rows(
        &state(KINDS),
        "
        shop -> catalog:1: allow same-network
        shop -> catalog:65535/udp: allow same-network
        shop -> catalog:10000: allow same-network
        shop -> catalog:18011: allow same-network
        shop -> catalog:18012: deny reserved-port
        shop -> catalog:18013/udp: deny reserved-port
        shop -> queue:19099: deny reserved-port
        build:shop -> queue:19099: deny reserved-port
        # The first reason is the one that no other port would change.
        shop -> mailer:18012: deny receives-nothing
        queue -> catalog:18012: deny sends-nothing
        ",
    );
}

#[test]
fn unknown_peers() {
    rows(
        &state(KINDS),
        "
        nobody -> catalog: deny unknown-peer
        shop -> nobody:80: deny unknown-peer
        internet -> nobody: deny unknown-peer
        nobody -> internet: deny unknown-peer
        build:nobody -> queue: deny unknown-peer
        nobody -> nobody: deny unknown-peer
        ",
    );
}

#[test]
fn regions_are_networks() {
    let state = state(
        "
services:
  - {type: web, name: shop, runtime: python, buildCommand: b, startCommand: s}
  - {type: pserv, name: here, runtime: python, region: oregon, buildCommand: b, startCommand: s}
  - {type: pserv, name: there, runtime: python, region: frankfurt, buildCommand: b, startCommand: s}
  - {type: keyvalue, name: cache, region: frankfurt, ipAllowList: []}
",
    );
    rows(
        &state,
        "
        shop -> here: allow same-network
        shop -> there: deny other-network
        there -> shop: deny other-network
        there -> cache: allow same-network
        shop -> cache: deny other-network
        build:shop -> cache: deny other-network
        build:there -> cache: allow build-to-datastore
        there -> internet: allow default-egress
        ",
    );
}

#[test]
fn isolated_environments_are_closed_both_ways() {
    let state = state(
        "
projects:
  - name: shop
    environments:
      - name: production
        networking: {isolation: enabled}
        services:
          - {type: web, name: p-web, runtime: python, buildCommand: b, startCommand: s}
          - {type: worker, name: p-worker, runtime: python, buildCommand: b, startCommand: s}
          - {type: keyvalue, name: p-store, ipAllowList: []}
          - {type: pserv, name: p-far, runtime: python, region: ohio, buildCommand: b, startCommand: s}
      - name: staging
        services:
          - {type: web, name: s-web, runtime: python, buildCommand: b, startCommand: s}
          - {type: keyvalue, name: s-store, ipAllowList: []}
      - name: vault
        networking: {isolation: enabled}
        services:
          - {type: pserv, name: v-api, runtime: python, buildCommand: b, startCommand: s}
services:
  - {type: pserv, name: root, runtime: python, buildCommand: b, startCommand: s}
",
    );
    rows(
        &state,
        "
        p-worker -> p-web: allow same-environment
        p-web -> p-store: allow same-environment
        build:p-web -> p-store: allow build-to-datastore
        p-web -> p-far: deny other-network
        p-web -> s-web: deny isolated-environment
        s-web -> p-web: deny isolated-environment
        s-web -> p-store: deny isolated-environment
        build:s-web -> p-store: deny isolated-environment
        build:p-web -> s-store: deny isolated-environment
        build:s-web -> s-store: allow build-to-datastore
        root -> p-web: deny isolated-environment
        p-web -> root: deny isolated-environment
        p-web -> v-api: deny isolated-environment
        v-api -> p-web: deny isolated-environment
        s-web -> root: allow same-network
        root -> s-web: allow same-network
        # Only private traffic is cut.
        internet -> p-web: allow public-web
        ingress -> p-web: allow web-ingress
        p-web -> internet: allow default-egress
        ",
    );
}

#[test]
fn allow_from_narrows_and_never_widens() {
    let state = state(
        "
services:
  - {type: web, name: shop, runtime: python, buildCommand: b, startCommand: s}
  - {type: worker, name: mailer, runtime: python, buildCommand: b, startCommand: s}
  - {type: pserv, name: far, runtime: python, region: ohio, buildCommand: b, startCommand: s}
  - {type: pserv, name: catalog, runtime: python, buildCommand: b, startCommand: s, x-moat: {allowFrom: [shop, far]}}
  - {type: keyvalue, name: queue, ipAllowList: [], x-moat: {allowFrom: [mailer]}}
  - {type: web, name: nobody, runtime: python, buildCommand: b, startCommand: s, x-moat: {allowFrom: []}}
",
    );
    rows(
        &state,
        "
        shop -> catalog: allow allow-from
        shop -> catalog:19099: deny reserved-port
        mailer -> catalog: deny not-in-allow-from
        catalog -> catalog: deny not-in-allow-from
        far -> catalog: deny other-network
        mailer -> queue: allow allow-from
        build:mailer -> queue: allow allow-from
        shop -> queue: deny not-in-allow-from
        build:shop -> queue: deny not-in-allow-from
        build:shop -> catalog: deny build-reaches-datastores-only
        shop -> nobody: deny not-in-allow-from
        # Who comes from outside is not asked for a name.
        internet -> nobody: allow public-web
        ingress -> nobody: allow web-ingress
        ",
    );
}

#[test]
fn egress_is_narrowed_for_instances_and_not_for_builds() {
    let state = state(
        "
services:
  - {type: web, name: open, runtime: python, buildCommand: b, startCommand: s, x-moat: {egress: internet}}
  - {type: web, name: shut, runtime: python, buildCommand: b, startCommand: s, x-moat: {egress: none}}
  - {type: web, name: some, runtime: python, buildCommand: b, startCommand: s, x-moat: {egress: [203.0.113.0/24]}}
",
    );
    rows(
        &state,
        "
        open -> internet: allow default-egress
        shut -> internet: deny egress-closed
        some -> internet: allow egress-range
        build:shut -> internet: allow default-egress
        shut -> open: allow same-network
        ",
    );
    assert!(matches!(&state.services["some"].egress, Egress::Ranges(ranges) if ranges.len() == 1));
}

#[test]
fn names_are_seen_by_those_who_may_reach() {
    let state = state(KINDS);
    let names = |asker: &str| visible(&state, &peer(asker)).map(|s| s.slug.as_str()).collect::<Vec<_>>();
    assert_eq!(names("mailer"), ["admin", "catalog", "orders", "queue", "shop"]);
    assert_eq!(names("build:shop"), ["orders", "queue"]);
    assert_eq!(names("orders"), [""; 0]);
    assert_eq!(names("queue"), [""; 0]);
    assert_eq!(names("nobody"), [""; 0]);
    assert_eq!(names("host"), [""; 0]);
}

#[test]
fn the_matrix_has_every_cell() {
    let state = state(KINDS);
    let matrix = reach(&state);
    // The internet, the host, the ingress, seven services, a database, six builds.
    assert_eq!(matrix.peers().len(), 3 + 8 + 6);
    assert_eq!(matrix.rows().count(), 17 * 17);
    for (a, from) in matrix.peers().iter().enumerate() {
        for (b, to) in matrix.peers().iter().enumerate() {
            assert_eq!(matrix.cell(from, to), verdict(&state, from, to, None));
            assert_eq!(matrix.at(a, b), matrix.cell(from, to));
        }
    }
    assert_eq!(word(matrix.cell(&Peer::Internet, &peer("nobody"))), "deny unknown-peer");
    assert_eq!(word(matrix.at(17, 0)), "deny unknown-peer");
    let json = matrix.to_json();
    assert_eq!(json["cells"].as_array().unwrap().len(), 17 * 17);
    let cell = json["cells"].as_array().unwrap().iter().find(|c| c["from"] == "mailer" && c["to"] == "digest").unwrap();
    assert_eq!(cell["deny"], "receives-nothing");
}
