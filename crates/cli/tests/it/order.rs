//! Services that need one another at their start come up in any order; one that never starts is told at the end.

use crate::host::{host, service};

/// A service that ends unless `needs` answers, and listens after `after` seconds.
fn needing(name: &str, needs: &str, after: u32) -> String {
    let ask = if needs.is_empty() {
        String::new()
    } else {
        format!("python3 -c 'import socket; socket.create_connection((\\\"{needs}\\\", 9000), timeout=5)' && ")
    };
    format!(
        "  - type: pserv\n    name: {name}\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: \"{ask}sleep {after} && python3 -m http.server 9000\"\n"
    )
}

#[test]
fn services_that_need_one_another_come_up() {
    let Some(host) = host() else { return };
    // In the order of their names each one would be too early.
    let services = [needing("first", "second", 0), needing("second", "third", 1), needing("third", "", 2)];
    let file = host.write("app/render.yaml", &format!("services:\n{}", services.concat()));
    let said = host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    assert!(said.err.contains("exited with status 1 before it was ready; it is started again when `"), "{}", said.err);
    for name in ["first", "second", "third"] {
        assert_eq!(service(&host.ps(), name)["state"]["phase"], "live", "{name}: {}", said.err);
    }
    host.moat(&["verify"]).ok();
}

#[test]
fn services_that_only_wait_for_one_another_fail() {
    let Some(host) = host() else { return };
    let services = [needing("egg", "hen", 0), needing("hen", "egg", 0), needing("other", "", 1)];
    let file = host.write("app/render.yaml", &format!("services:\n{}", services.concat()));
    let said = host.moat(&["up", "-d", file.to_str().unwrap()]);
    assert_ne!(said.code, 0);
    assert!(said.err.contains("`egg`") && said.err.contains("`hen`") && said.err.contains("ConnectionRefusedError"), "{}", said.err);
    let ps = host.ps();
    let phase = |name: &str| service(&ps, name)["state"]["phase"].as_str().unwrap().to_owned();
    assert_eq!((phase("egg"), phase("hen"), phase("other")), ("failed".into(), "failed".into(), "live".into()));
    // What each missed is there by then for neither of them: asked again, they fail again, and nothing goes on for ever.
    assert_ne!(host.moat(&["up", "-d", file.to_str().unwrap()]).code, 0);
}
