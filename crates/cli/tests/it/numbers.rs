//! What is counted of services, and told: metrics, the access log, `moat top`.

use crate::host::{Host, host, service, wait_for};

const SERVICES: &str = r"
services:
  - type: web
    name: shop
    runtime: python
    numInstances: 2
    buildCommand: mkdir www && head -c 3000 /dev/zero | tr '\0' a > www/index.html
    startCommand: cd www && python3 -m http.server $PORT
    maxShutdownDelaySeconds: 1
  - type: web
    name: pages
    runtime: static
    buildCommand: mkdir dist && seq 2000 > dist/index.html
    staticPublishPath: dist
";

/// The sum of a metric's lines that have all these words.
fn sum(text: &str, name: &str, words: &[&str]) -> f64 {
    let lines = text.lines().filter(|line| line.starts_with(name) && words.iter().all(|word| line.contains(word)));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// The same of what is counted, as it is printed.
fn count(text: &str, name: &str, words: &[&str]) -> String {
    sum(text, name, words).to_string()
}

fn metrics(host: &Host) -> String {
    host.moat(&["metrics"]).ok().out
}

#[test]
fn requests_are_counted_logged_and_shown() {
    let Some(host) = host() else { return };
    let file = host.write("shop/render.yaml", SERVICES);
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    for (name, path, times, status) in [
        ("shop.localhost", "/", 8, 200),
        ("shop.localhost", "/nothing", 3, 404),
        ("pages.localhost", "/", 2, 200),
        ("nobody.localhost", "/", 5, 404),
    ] {
        for _ in 0..times {
            assert_eq!(host.http(8080, name, path).0, status);
        }
    }
    // As Prometheus would ask, over the socket.
    let get = |path: &str| {
        host.sh(&format!(
            "curl -s -w '%{{http_code}} %{{content_type}}' --unix-socket '{}' http://moat{path}",
            host.path("run/metrics.sock").display()
        ))
        .out
    };
    let text = get("/metrics");
    assert!(text.ends_with("# EOF\n200 application/openmetrics-text; version=1.0.0; charset=utf-8"), "{text}");
    let shop = [r#"service="shop""#];
    assert_eq!(count(&text, "moat_http_requests_total", &[shop[0], r#"status="200""#]), "8", "{text}");
    assert_eq!(count(&text, "moat_http_requests_total", &[shop[0], r#"status="404""#]), "3", "{text}");
    assert_eq!(count(&text, "moat_http_requests_total", &[r#"service="pages",instance="""#]), "2", "{text}");
    assert_eq!(count(&text, "moat_http_requests_total", &[r#"service="",instance="""#]), "5", "{text}");
    assert_eq!(count(&text, "moat_http_response_seconds_count", &shop), "11");
    assert!(sum(&text, "moat_http_sent_bytes_total", &shop) > 24_000.0, "{text}");
    assert!(sum(&text, "moat_instance_memory_bytes", &shop) > 1e6 && sum(&text, "moat_instance_cpu_seconds_total", &shop) > 0.0, "{text}");
    assert_eq!(count(&text, "moat_instance_ready", &shop), "2");
    let ps = host.ps();
    for instance in service(&ps, "shop")["instances"].as_array().unwrap() {
        assert!(text.contains(&format!(r#"instance="{}",status="200""#, instance["id"].as_str().unwrap())), "both get some: {text}");
    }
    assert!(get("/").ends_with("404 text/plain; charset=utf-8"));
    assert_eq!(
        host.sh(&format!(
            "setpriv --reuid 65534 --regid 65534 --clear-groups curl -s --unix-socket '{}' http://moat/metrics",
            host.path("run/metrics.sock").display()
        ))
        .code,
        7
    );

    // The access log, in both forms; another process goes on with it.
    assert!(host.moat(&["logs", "--access"]).err.contains("access-log=json"));
    host.moat(&["ingress", "access-log=json"]).ok();
    host.http(8080, "shop.localhost", "/first?secret=1");
    let lines = |args: &[&str]| host.moat(&[&["logs", "--access"], args].concat()).ok().out;
    wait_for("a line", || lines(&[]).contains("/first"));
    let line: serde_json::Value = serde_json::from_str(lines(&["-n", "1", "shop"]).trim()).unwrap();
    assert_eq!(
        (&line["path"], &line["status"], &line["service"], &line["client"]),
        (&"/first".into(), &404.into(), &"shop".into(), &"127.0.0.1".into())
    );
    assert!(line["bytes"].as_u64().unwrap() > 0 && line["instance"].is_string() && line["total_ms"].is_number(), "{line}");
    let process = || host.ps()["dataplane_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let before = process().unwrap();
    host.kill(before, "KILL");
    wait_for("another data plane", || process().is_some_and(|pid| pid != before));
    host.moat(&["ingress", "access-log=common"]).ok();
    host.http(8080, "pages.localhost", "/second");
    wait_for("a line", || lines(&["--grep", r#"^127\.0\.0\.1 - - \[.*\] "GET /second HTTP/1\.1" 404 "#]).lines().count() == 1);
    assert_eq!(count(&metrics(&host), "moat_access_log_lines_total", &["written"]), "1", "of this process");
    host.moat(&["ingress", "access-log=off"]).ok();
    host.http(8080, "shop.localhost", "/third");
    wait_for("it to be counted", || sum(&metrics(&host), "moat_http_requests_total", &shop) >= 1.0);
    assert!(!lines(&[]).contains("/third"));

    // Compressed as the client likes, by curl's decoders; not what asks for a part.
    let curl = |more: &str| host.sh(&format!("curl -s --max-time 20 -H 'Host: pages.localhost' {more} http://127.0.0.1:8080/"));
    let plain = curl("").out;
    assert_eq!(plain.lines().count(), 2000);
    for coding in ["zstd", "br", "gzip"] {
        let head = curl(&format!("-D - -o /dev/null -H 'Accept-Encoding: {coding}'")).out;
        assert!(head.contains(&format!("content-encoding: {coding}\r\n")) && head.contains("etag: W/\""), "{head}");
        assert!(curl(&format!("--compressed -H 'Accept-Encoding: {coding}'")).out == plain, "{coding}");
    }
    let part = curl("-D - -H 'Accept-Encoding: gzip' -H 'Range: bytes=0-1'").out;
    assert!(part.contains("206") && !part.contains("content-encoding") && part.ends_with("1\n"), "{part}");
    host.moat(&["ingress", "compression=off"]).ok();
    assert!(!curl("-D - -o /dev/null -H 'Accept-Encoding: gzip'").out.contains("content-encoding"));

    // So many requests of one client for one service.
    assert_eq!(host.moat(&["ingress", "rate-limit=fast"]).code, 2);
    host.moat(&["ingress", "rate-limit=3/m"]).ok();
    let ask = |address: &str| curl(&format!("-D - -o /dev/null --interface {address}")).out;
    for _ in 0..3 {
        assert!(ask("127.0.0.1").contains("200 OK"));
    }
    let refused = ask("127.0.0.1");
    assert!(refused.contains("429 Too Many Requests") && refused.contains("retry-after: "), "{refused}");
    assert!(ask("192.0.2.77").contains("200 OK") && host.http(8080, "shop.localhost", "/").0 == 200, "another client, another service");
    host.moat(&["ingress", "rate-limit=off"]).ok();
    assert!(ask("127.0.0.1").contains("200 OK"));
    // A limit of its own, and none.
    assert_eq!(host.moat(&["ingress", "rate-limit.nobody=1/m"]).code, 1);
    host.moat(&["ingress", "rate-limit.shop=1/m", "rate-limit=2/m", "rate-limit.pages=off"]).ok();
    let ask_shop = || host.http(8080, "shop.localhost", "/").0;
    assert_eq!((ask_shop(), ask_shop()), (200, 429));
    assert!((0..4).all(|_| ask("127.0.0.1").contains("200 OK")));
    let settings = host.moat(&["ingress", "rate-limit.shop=default"]).ok().out;
    assert!(settings.contains("rate-limit.pages") && !settings.contains("rate-limit.shop"), "{settings}");
    assert_eq!((ask_shop(), ask_shop(), ask_shop()), (200, 200, 429));
    host.moat(&["ingress", "rate-limit=off", "rate-limit.pages=default"]).ok();
    assert_eq!(count(&metrics(&host), "moat_http_requests_total", &[r#"service="pages""#, r#"status="429""#]), "1");

    // What happens between two looks, for programs and on a terminal.
    let mut load = host
        .command("bash")
        .args(["-c", "while :; do curl -s -o /dev/null -H 'Host: shop.localhost' http://127.0.0.1:8080/; done"])
        .spawn()
        .unwrap();
    let top = host.moat(&["top", "--once", "--interval", "1", "-o", "json"]).ok().json();
    let shown = |name: &str| top["services"].as_array().unwrap().iter().find(|row| row["service"] == name).unwrap().clone();
    assert!(shown("shop")["requests_per_second"].as_f64().unwrap() > 0.0 && shown("shop")["p99_ms"].as_f64().unwrap() > 0.0, "{top}");
    assert_eq!(shown("shop")["instances"].as_array().unwrap().len(), 2);
    assert!(shown("shop")["cpu_percent"].as_f64().unwrap() > 0.0, "{top}");
    let screen = host.path("screen");
    let moat = format!("{} top --interval 1", env!("CARGO_BIN_EXE_moat"));
    let said = host.sh(&format!(
        "touch '{0}'; (for n in {{1..300}}; do grep -q OUT/S '{0}' && break; sleep 0.1; done; printf q) | timeout 60 script -qfec '{moat}' '{0}' > /dev/null && cat '{0}'",
        screen.display()
    ));
    load.kill().unwrap();
    load.wait().unwrap();
    for words in ["\x1b[?1049h", "SERVICE", "shop", "ready", "\x1b[?1049l"] {
        assert!(said.out.contains(words), "`{words}` is missing: {said:?}");
    }
    assert_eq!(host.moat(&["top", "--once", "nobody"]).code, 1);
}
