//! Large and hostile files: a clear answer in bounded time and memory.

use moat_blueprint::{Read, Severity, read, read_bytes};
use std::fmt::Write as _;
use std::time::Instant;

fn codes(read: &Read) -> Vec<&str> {
    read.diagnostics.iter().map(|d| d.code).collect()
}

#[test]
fn hostile_files_get_a_clear_answer() {
    let bomb = {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..40 {
            let below = vec![format!("*a{}", level - 1); 10].join(", ");
            writeln!(text, "a{level}: &a{level} [{below}]").unwrap();
        }
        text
    };
    let merges = {
        let mut text = String::from("a0: &a0 {k0: v}\n");
        for level in 1..1_100 {
            writeln!(text, "a{level}: &a{level} {{k{level}: v, <<: *a{}}}", level - 1).unwrap();
        }
        text
    };
    let megabyte = 1 << 20;
    let table: Vec<(&str, String, &str)> = vec![
        ("alias bomb", bomb, "E0103"),
        ("merge bomb", merges, "E0103"),
        ("too many bytes", "#".repeat(5 * megabyte), "E0103"),
        ("too many values", "- a\n".repeat(510_000), "E0103"),
        ("flow depth", "[".repeat(4 * megabyte), "E0104"),
        ("flow mapping depth", "{a: ".repeat(megabyte), "E0104"),
        ("block depth", "- ".repeat(2 * megabyte), "E0104"),
        ("question marks", "? ".repeat(megabyte), "E0104"),
        ("one long line", format!("services: {}", "é".repeat(megabyte)), "E0204"),
        ("one long key", format!("{}: 1", "k".repeat(900)), "E0201"),
        ("an open quote", format!("a: \"{}", "x ".repeat(megabyte)), "E0101"),
        ("an open block", format!("a: |\n{}b", "  x\n".repeat(megabyte / 2)), "E0101"),
        ("comments only", "# x\n".repeat(megabyte - 1), "E0111"),
        ("blank lines", "\n".repeat(4 * megabyte), "E0111"),
        ("carriage returns", "\r".repeat(4 * megabyte), "E0111"),
        ("anchors", "- &a x\n".repeat(260_000), "E0103"),
        ("tags", "- !a x\n".repeat(20_000), "E0110"),
        ("keys", (0..30_000).fold(String::new(), |text, n| text + &format!("k{n}: 1\n")), "E0113"),
        ("the same key", "k: 1\n".repeat(30_000), "E0113"),
        ("empty keys", "? \n".repeat(30_000), "E0113"),
        ("documents", "--- a\n".repeat(100_000), "E0106"),
        ("a NUL", "a: \"\0\"".to_owned(), "E0112"),
        ("a long flow line", format!("a: [{}]", "é, ".repeat(100_000)), "E0201"),
        ("directives", "%FOO bar\n".repeat(100_000), "E0101"),
    ];
    for (name, text, code) in table {
        let start = Instant::now();
        let read = read(&text);
        println!("{name}: {} bytes, {:?}", text.len(), start.elapsed());
        assert!(codes(&read).contains(&code), "{name}: {:?}", read.diagnostics.iter().take(3).collect::<Vec<_>>());
        assert!(read.diagnostics.len() <= 1_001, "{name}");
        let length = read.diagnostics.iter().map(|d| d.message.len() + d.pointer.len()).max().unwrap();
        assert!(length < 4_000, "{name}: a message of {length} bytes");
    }
}

#[test]
fn bytes_that_are_no_text_have_a_place() {
    for (bytes, line, column) in
        [(&b"a: 1\nb: \xff\n"[..], 2, 4), (b"\xff\xfea\0", 1, 1), ("é\u{e9}".as_bytes().split_last().unwrap().1, 1, 2)]
    {
        let read = read_bytes(bytes);
        let [d] = read.diagnostics.as_slice() else { panic!("{:?}", read.diagnostics) };
        assert_eq!((d.code, d.span.line, d.span.column), ("E0102", line, column));
    }
}

/// A blueprint of many services of every kind, as people write them.
fn many(services: usize) -> String {
    let mut text = String::from("services:\n");
    for n in 0..services {
        let (kind, more) = match n % 4 {
            0 => ("web", "    healthCheckPath: /health\n    numInstances: 2\n"),
            1 => ("pserv", "    disk: {name: data, mountPath: /var/data, sizeGB: 5}\n"),
            2 => ("worker", "    maxShutdownDelaySeconds: 60\n"),
            _ => ("cron", "    schedule: \"*/15 * * * *\"\n"),
        };
        write!(
            text,
            "  - type: {kind}\n    name: service-{n}\n    runtime: python\n    plan: starter\n    rootDir: ./services/{n}\n    buildCommand: |\n      pip install -r requirements.txt\n      python setup.py\n    startCommand: gunicorn app:app --bind 0.0.0.0:$PORT\n{more}    envVars:\n      - key: PYTHON_VERSION\n        value: 3.11.4\n      - key: SECRET_KEY\n        generateValue: true\n      - key: API_TOKEN\n        sync: false\n      - key: NEXT\n        fromService:\n          name: service-{}\n          type: pserv\n          property: hostport\n      - fromGroup: shared\n",
            n / 4 * 4 + 1
        )
        .unwrap();
    }
    text.push_str("envVarGroups:\n  - name: shared\n    envVars:\n      - key: LOG_LEVEL\n        value: info\n");
    text
}

/// A blueprint of many services, each with the least that runs and two variables.
fn plain(services: usize) -> String {
    let mut text = String::from("services:\n");
    for n in 0..services {
        write!(
            text,
            "  - type: pserv\n    name: service-{n}\n    runtime: node\n    plan: starter\n    startCommand: node server.js\n    envVars:\n      - key: LOG_LEVEL\n        value: info\n      - key: TOKEN\n        generateValue: true\n"
        )
        .unwrap();
    }
    text
}

#[test]
fn a_thousand_services_are_read() {
    for (name, text) in [("plain", plain(1_000)), ("rich", many(1_000))] {
        let mut best = std::time::Duration::MAX;
        for _ in 0..if cfg!(debug_assertions) { 1 } else { 3 } {
            let start = Instant::now();
            let read = read(&text);
            best = best.min(start.elapsed());
            assert_eq!(read.blueprint.services.len(), 1_000);
            let errors: Vec<_> = read.diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
            assert!(errors.is_empty(), "{errors:?}");
        }
        println!("1,000 {name} services, {} bytes: read in {best:?} (debug assertions: {})", text.len(), cfg!(debug_assertions));
    }
}
