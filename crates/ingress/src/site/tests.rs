//! Requests against a real folder: one row each.

use super::*;
use http::Request;
use http_body_util::BodyExt as _;
use moat_model::Slug;
use moat_model::state::{SiteAction, SiteHeader, SiteRoute, Source, StaticWorkload};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

/// A site of these files (`a -> b` is a link) and rules (`redirect /a /b`, `rewrite /a /b`, `pass /a api /b`).
fn site(files: &[(&str, &str)], rules: &[&str], headers: &[(&str, &str, &str)]) -> (tempfile::TempDir, Site) {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let folder = outside.path().join("site");
    for (name, content) in files {
        let (name, target) = name.split_once(" -> ").map_or((*name, None), |(name, target)| (name, Some(target)));
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match target {
            Some(target) => symlink(target, path).unwrap(),
            None => fs::write(path, content).unwrap(),
        }
    }
    let routes = rules.iter().map(|rule| {
        let words: Vec<&str> = rule.split(' ').collect();
        let action = match words.as_slice() {
            ["redirect", _, to] => SiteAction::Redirect((*to).to_owned()),
            ["rewrite", _, to] => SiteAction::Rewrite((*to).to_owned()),
            ["pass", _, to, path] => SiteAction::Pass { service: Slug::new(*to).unwrap(), path: (*path).to_owned() },
            other => panic!("{other:?}"),
        };
        SiteRoute { source: words[1].to_owned(), action }
    });
    let headers = headers.iter().map(|(path, name, value)| {
        let [path, name, value] = [path, name, value].map(|text| (*text).to_owned());
        SiteHeader { path, name, value }
    });
    let workload = StaticWorkload {
        source: Source::Folder(PathBuf::from("/")),
        root_dir: PathBuf::new(),
        build_command: None,
        pre_deploy_command: None,
        publish_path: PathBuf::from("."),
        versions: BTreeMap::new(),
        headers: headers.collect(),
        routes: routes.collect(),
    };
    let rules = Rules::new(&workload.headers, &workload.routes, |slug| format!("{slug}.localhost")).unwrap();
    let site = Site::open(&folder, rules).unwrap();
    (outside, site)
}

fn asked(target: &str, headers: &[(&str, &str)]) -> Parts {
    let (method, uri) = target.split_once(' ').unwrap_or(("GET", target));
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// `STATUS` and what there is to say: the body, `-> LOCATION`, `=> HOST PATH`, or nothing for a page of the ingress.
fn said(site: &Site, target: &str, headers: &[(&str, &str)]) -> String {
    match site.answer(&asked(target, headers)).unwrap() {
        Answer::Response(response) => {
            let location = response.headers().get(header::LOCATION).map(|to| format!(" -> {}", to.to_str().unwrap()));
            let (head, body) = response.into_parts();
            let text = String::from_utf8(bytes(body)).unwrap();
            let text = if text.is_empty() { String::new() } else { format!(" {text}") };
            format!("{}{text}{}", head.status.as_u16(), location.unwrap_or_default())
        }
        Answer::Pass { host, target } => format!("=> {host} {target}"),
        Answer::Page(lack) => lack.status().as_u16().to_string(),
    }
}

fn bytes(body: Content) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { body.collect().await.unwrap().to_bytes().to_vec() })
}

fn head(site: &Site, target: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap) {
    match site.answer(&asked(target, headers)).unwrap() {
        Answer::Response(response) => (response.status(), response.headers().clone()),
        other @ (Answer::Pass { .. } | Answer::Page(_)) => panic!("{target}: {other:?}"),
    }
}

const FILES: &[(&str, &str)] = &[
    ("index.html", "home"),
    ("404.html", "none"),
    ("a.txt", "text"),
    ("about.html", "about"),
    ("both.html", "both page"),
    ("both/index.html", "both folder"),
    ("docs/index.html", "docs"),
    ("docs/a b.html", "blank"),
    ("docs/é.html", "accent"),
    ("empty/file.txt", "x"),
    (".env", "secret"),
    (".git/config", "secret"),
    (".well-known/security.txt", "contact"),
    ("docs/.hidden", "secret"),
    ("inside -> docs", ""),
    ("file -> a.txt", ""),
    ("out -> ../secret", ""),
    ("root -> /", ""),
    ("self -> self", ""),
    ("proc -> /proc/self/root", ""),
];

#[test]
fn paths_to_files() {
    let (_outside, site) = site(FILES, &[], &[]);
    for (target, want) in [
        ("/", "200 home"),
        ("/index.html", "200 home"),
        ("/index", "200 home"),
        ("/a.txt", "200 text"),
        ("/a.txt?b=c", "200 text"),
        ("/%61.txt", "200 text"),
        ("/a.txt/", "404 none"),
        ("/about", "200 about"),
        ("/about/", "200 about"),
        ("/about.html", "200 about"),
        ("/both", "200 both page"),
        ("/both/", "200 both folder"),
        ("/docs", "301 -> /docs/"),
        ("/docs?a=b", "301 -> /docs/?a=b"),
        ("/docs/", "200 docs"),
        ("/docs/a%20b", "200 blank"),
        ("/docs/a%20b.html", "200 blank"),
        ("/docs/%C3%A9", "200 accent"),
        ("/docs/%c3%a9", "200 accent"),
        ("/inside", "301 -> /inside/"),
        ("/inside/", "200 docs"),
        ("/file", "200 text"),
        ("/empty", "404 none"),
        ("/empty/", "404 none"),
        ("/A.txt", "404 none"),
        ("/nowhere", "404 none"),
        ("/404", "200 none"),
        ("/.well-known/security.txt", "200 contact"),
        ("HEAD /a.txt", "200"),
        ("HEAD /nowhere", "404"),
        ("POST /a.txt", "405"),
        ("DELETE /nowhere", "405"),
        ("OPTIONS *", "405"),
    ] {
        assert_eq!(said(&site, target, &[]), want, "{target}");
    }
}

#[test]
fn hostile_paths() {
    let (_outside, site) = site(FILES, &[], &[]);
    let long = format!("/{}", "a".repeat(9_000));
    let deep = "/a".repeat(4_000);
    for (target, want) in [
        ("/../secret", "400"),
        ("/docs/../../secret", "400"),
        ("/docs/..", "400"),
        ("/%2e%2e/secret", "400"),
        ("/.%2e/secret", "400"),
        ("/..%2fsecret", "400"),
        ("/docs%2f..%2f..%2fsecret", "400"),
        ("/./a.txt", "400"),
        ("/a.txt%00", "400"),
        ("/a.txt%00.html", "400"),
        ("/%", "400"),
        ("/%zz", "400"),
        ("/..\\secret", "404 none"),
        ("/..%5csecret", "404 none"),
        ("/%c0%ae%c0%ae/secret", "404 none"),
        ("/%252e%252e/secret", "404 none"),
        ("/out", "404 none"),
        ("/root", "404 none"),
        ("/root/etc/passwd", "404 none"),
        ("/proc/etc/passwd", "404 none"),
        ("/self", "404 none"),
        ("/.env", "404 none"),
        ("/%2eenv", "404 none"),
        ("/.git/config", "404 none"),
        ("/docs/.hidden", "404 none"),
        ("/inside/.hidden", "404 none"),
        ("/.well-known/", "404 none"),
        ("//a.txt", "404 none"),
        ("//docs", "404 none"),
        ("/docs//", "404 none"),
        ("//example.com/%2e%2e", "400"),
        (long.as_str(), "414"),
        (deep.as_str(), "404 none"),
    ] {
        let got = said(&site, target, &[]);
        assert_eq!(got, want, "{target}");
    }
}

#[test]
fn redirects_and_rewrites() {
    let rules = [
        "redirect /old /docs/",
        "redirect /blog/:year/:slug /posts/:year-:slug",
        "redirect /go/* https://example.com/*",
        "redirect /fixed https://example.com/?a=b",
        "redirect /frag /docs/#part",
        "redirect /strip/* /*",
        "rewrite /first /about",
        "redirect /first /never",
        "rewrite /a.txt /about",
        "rewrite /docs /about",
        "rewrite /chain /first",
        "rewrite /up/* /*",
        "rewrite /lost /nowhere",
        "rewrite /ring /ring",
        "pass /api/* api /v1/*",
        "pass /query api /v1?a=b",
        "redirect /posts/* /archive",
    ];
    let (_outside, site) = site(FILES, &rules, &[]);
    for (target, want) in [
        ("/old", "301 -> /docs/"),
        ("/old?a=b", "301 -> /docs/?a=b"),
        ("/old/", "404 none"),
        ("/blog/2024/a%20b", "301 -> /posts/2024-a%20b"),
        ("/go/a/b?c", "301 -> https://example.com/a/b?c"),
        ("/fixed?c", "301 -> https://example.com/?a=b"),
        ("/frag?c", "301 -> /docs/?c#part"),
        ("/strip//example.com/", "301 -> /example.com/"),
        ("/strip/%5cexample.com", "301 -> /%5Cexample.com"),
        ("/go/%0d%0aSet-Cookie:%20a", "301 -> https://example.com/%0D%0ASet-Cookie:%20a"),
        // The first that matches.
        ("/first", "200 about"),
        // Not where there is something.
        ("/a.txt", "200 text"),
        ("/docs", "301 -> /docs/"),
        // Again, for what a rewrite made of it.
        ("/chain", "200 about"),
        ("/up/old", "301 -> /docs/"),
        ("/up/a.txt", "200 text"),
        ("/up/docs", "301 -> /docs/"),
        ("/up/..%2fsecret", "400"),
        ("/lost", "404 none"),
        ("/ring", "404 none"),
        ("/api/items/7?x=y", "=> api.localhost /v1/items/7?x=y"),
        ("POST /api/items", "=> api.localhost /v1/items"),
        ("/query?x", "=> api.localhost /v1?a=b"),
        ("POST /first", "405"),
        ("POST /old", "301 -> /docs/"),
    ] {
        assert_eq!(said(&site, target, &[]), want, "{target}");
    }
}

#[test]
fn an_application_of_one_page() {
    let files = &[("index.html", "app"), ("assets/app.js", "js")];
    let (_outside, site) = site(files, &["rewrite /* /index.html"], &[]);
    for (target, want) in [
        ("/", "200 app"),
        ("/any/where?a=b", "200 app"),
        ("/any/where/", "200 app"),
        ("/items/a%2Fb", "200 app"),
        ("/assets/app.js", "200 js"),
        ("/assets/", "200 app"),
        ("/.env", "200 app"),
        ("/../x", "400"),
        ("POST /any", "405"),
    ] {
        assert_eq!(said(&site, target, &[]), want, "{target}");
    }
}

#[test]
fn a_site_without_a_page_for_what_is_not_there() {
    let (_outside, site) = site(&[("a.txt", "x")], &[], &[]);
    assert_eq!(said(&site, "/", &[]), "404");
    assert_eq!(said(&site, "/nowhere", &[]), "404");
}

#[test]
fn headers_by_path() {
    let rules: &[(&str, &str, &str)] = &[
        ("/*", "X-All", "1"),
        ("/*", "Cache-Control", "no-store"),
        ("/docs/*", "cache-control", "max-age=60"),
        ("/*", "Link", "</a>; rel=preload"),
        ("/*", "Link", "</b>; rel=preload"),
        ("/*.txt", "Content-Type", "text/x-own"),
        ("/**/*.html", "X-Deep", "1"),
    ];
    let (_outside, site) = site(FILES, &["rewrite /page /about"], rules);
    let of = |target: &str, name: &str| -> Vec<String> {
        head(&site, target, &[]).1.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(of("/", "x-all"), ["1"]);
    assert_eq!(of("/nowhere", "x-all"), ["1"]);
    assert_eq!(of("/", "cache-control"), ["no-store"]);
    assert_eq!(of("/docs/", "cache-control"), ["max-age=60"]);
    assert_eq!(of("/", "link"), ["</a>; rel=preload", "</b>; rel=preload"]);
    assert_eq!(of("/a.txt", "content-type"), ["text/x-own"]);
    assert_eq!(of("/docs/a%20b.html", "x-deep"), ["1"]);
    assert_eq!(of("/about.html", "x-deep"), [""; 0]);
    assert_eq!(of("/page", "x-all"), ["1"]);
    let etag = of("/a.txt", "etag").remove(0);
    let (status, headers) = head(&site, "/a.txt", &[("if-none-match", &etag)]);
    assert_eq!((status, headers.get("x-all").is_some()), (StatusCode::NOT_MODIFIED, true));
}

#[test]
fn validators_and_parts() {
    let (_outside, site) = site(&[("d.txt", "0123456789"), ("empty.txt", "")], &[], &[]);
    let (status, headers) = head(&site, "/d.txt", &[]);
    assert_eq!(status, StatusCode::OK);
    let text = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
    let (etag, modified) = (text("etag"), text("last-modified"));
    assert!(etag.starts_with('"') && etag.ends_with('"'), "strong: {etag}");
    assert_eq!(text("accept-ranges"), "bytes");
    assert_eq!(text("content-length"), "10");
    assert_eq!(text("cache-control"), "public, max-age=0, must-revalidate");
    let weak = format!("W/{etag}");
    for (headers, want) in [
        (&[("if-none-match", etag.as_str())][..], "304"),
        (&[("if-none-match", "\"other\"")], "200 0123456789"),
        (&[("if-modified-since", modified.as_str())], "304"),
        (&[("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")], "200 0123456789"),
        (&[("if-match", "\"other\"")], "412"),
        (&[("range", "bytes=0-2")], "206 012"),
        (&[("range", "bytes=-2")], "206 89"),
        (&[("range", "bytes=10-")], "416"),
        (&[("range", "bytes=x")], "200 0123456789"),
        (&[("range", "bytes=0-2"), ("if-range", etag.as_str())], "206 012"),
        (&[("range", "bytes=0-2"), ("if-range", weak.as_str())], "200 0123456789"),
        (&[("range", "bytes=0-2"), ("if-range", "\"other\"")], "200 0123456789"),
        (&[("range", "bytes=0-2"), ("if-none-match", etag.as_str())], "304"),
    ] {
        assert_eq!(said(&site, "/d.txt", headers), want, "{headers:?}");
    }
    assert_eq!(said(&site, "HEAD /d.txt", &[("range", "bytes=0-2")]), "200");
    assert_eq!(said(&site, "/empty.txt", &[]), "200");
    assert_eq!(said(&site, "/empty.txt", &[("range", "bytes=0-")]), "416");
    let (_, headers) = head(&site, "/d.txt", &[("range", "bytes=99-")]);
    assert_eq!(headers.get("content-range").unwrap(), "bytes */10");

    let (status, headers) = head(&site, "/d.txt", &[("range", "bytes=0-1,-2")]);
    let kind = headers.get("content-type").unwrap().to_str().unwrap().to_owned();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
    assert_eq!(status, StatusCode::PARTIAL_CONTENT);
    let Answer::Response(response) = site.answer(&asked("/d.txt", &[("range", "bytes=0-1,-2")])).unwrap() else { panic!() };
    let length: usize = response.headers().get("content-length").unwrap().to_str().unwrap().parse().unwrap();
    let body = String::from_utf8(bytes(response.into_body())).unwrap();
    assert_eq!(body.len(), length);
    assert!(body.contains("\r\ncontent-range: bytes 0-1/10\r\n\r\n01\r\n--"), "{body}");
    assert!(body.contains("\r\ncontent-range: bytes 8-9/10\r\n\r\n89\r\n--") && body.ends_with("--\r\n"), "{body}");
    assert!(!body.contains(boundary), "another response, another boundary");
}

#[test]
fn compressed_neighbours() {
    let files = &[("a.js", "plain"), ("a.js.br", "brotli"), ("a.js.gz", "gzip"), ("b.js", "plain b"), ("c.js.br", "alone")];
    let (_outside, site) = site(files, &[], &[]);
    for (accept, body, coding) in
        [("gzip, br", "brotli", Some("br")), ("gzip", "gzip", Some("gzip")), ("zstd", "plain", None), ("identity", "plain", None)]
    {
        let accept = [("accept-encoding", accept)];
        assert_eq!(said(&site, "/a.js", &accept), format!("200 {body}"));
        let (_, headers) = head(&site, "/a.js", &accept);
        assert_eq!(headers.get("content-encoding").map(|coding| coding.to_str().unwrap()), coding);
        assert_eq!(headers.get("vary").unwrap(), "accept-encoding");
        assert_eq!(headers.get("content-type").unwrap(), "text/javascript; charset=utf-8");
    }
    let tag = |accept: &str| head(&site, "/a.js", &[("accept-encoding", accept)]).1.get("etag").cloned();
    assert_ne!(tag("br"), tag("identity"), "other bytes, another tag");
    assert_eq!(head(&site, "/b.js", &[("accept-encoding", "br")]).1.get("vary"), None);
    assert_eq!(said(&site, "/c.js", &[("accept-encoding", "br")]), "404");
    assert_eq!(said(&site, "/a.js", &[("accept-encoding", "gzip"), ("range", "bytes=0-1")]), "206 gz");
}

#[test]
fn large_files_are_read_as_they_are_sent() {
    let (outside, site) = site(&[("small", "x")], &[], &[]);
    let content: Vec<u8> = (0..1_000_003_u32).map(|index| (index % 251) as u8).collect();
    fs::write(outside.path().join("site/large.bin"), &content).unwrap();
    let Answer::Response(response) = site.answer(&asked("/large.bin", &[])).unwrap() else { panic!() };
    assert_eq!(bytes(response.into_body()), content);
    let Answer::Response(response) = site.answer(&asked("/large.bin", &[("range", "bytes=100000-900000")])).unwrap() else { panic!() };
    assert_eq!(bytes(response.into_body()), content[100_000..=900_000]);
    // Cut short meanwhile: the client must see that.
    let Answer::Response(response) = site.answer(&asked("/large.bin", &[])).unwrap() else { panic!() };
    fs::write(outside.path().join("site/large.bin"), "short").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(runtime.block_on(async { response.into_body().collect().await }).is_err());
}

#[test]
fn a_removed_folder_has_no_files() {
    let (outside, site) = site(FILES, &[], &[]);
    fs::remove_dir_all(outside.path().join("site")).unwrap();
    assert_eq!(said(&site, "/", &[]), "404");
}

#[test]
fn rules_that_are_none_are_refused() {
    let workload = |header: (&str, &str)| StaticWorkload {
        source: Source::Folder(PathBuf::from("/")),
        root_dir: PathBuf::new(),
        build_command: None,
        pre_deploy_command: None,
        publish_path: PathBuf::new(),
        versions: BTreeMap::new(),
        headers: vec![SiteHeader { path: "/*".to_owned(), name: header.0.to_owned(), value: header.1.to_owned() }],
        routes: Vec::new(),
    };
    for (name, value, ok) in [("x-a", "é", true), ("x a", "b", false), ("x-a", "b\r\nc: d", false)] {
        let workload = workload((name, value));
        assert_eq!(Rules::new(&workload.headers, &workload.routes, ToString::to_string).is_ok(), ok, "{name}: {value:?}");
    }
}
