//! TLS: a registry that is not on loopback is spoken to over it, and only with a certificate that this machine trusts.
//!
//! The registry has an address of its own, in a network namespace that the test makes.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::fixture::{Layer, Made, Packed, chain, file, is_root, options, store};
use crate::registry::{Registry, text};

const INSIDE: &str = "MOAT_IMAGE_TEST_TLS";
const ADDRESS: &str = "192.0.2.1";

fn openssl(folder: &Path) -> bool {
    let script = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca 2>/dev/null &&
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out csr.pem -subj /CN=registry 2>/dev/null &&
         printf 'subjectAltName=IP:{ADDRESS}\\nbasicConstraints=CA:FALSE\\n' > ext &&
         openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out cert.pem 2>/dev/null"
    );
    Command::new("sh").args(["-c", &script]).current_dir(folder).status().is_ok_and(|status| status.success())
}

#[test]
fn only_a_trusted_certificate_is_spoken_to() {
    if !is_root("this test") {
        return;
    }
    let Ok(trust) = std::env::var(INSIDE) else {
        let folder = tempfile::tempdir().unwrap();
        if !openssl(folder.path()) {
            eprintln!("skipped: `openssl` can't make certificates here");
            return;
        }
        for (trust, ca) in [("trusted", "ca.pem"), ("unknown", "cert.pem"), ("plain", "ca.pem")] {
            let status = Command::new("unshare")
                .args(["-n", "sh", "-c", &format!("ip link set lo up && ip address add {ADDRESS}/32 dev lo && exec \"$0\" \"$@\"")])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", "tls::only_a_trusted_certificate_is_spoken_to", "--nocapture"])
                .env(INSIDE, trust)
                .env("SSL_CERT_FILE", folder.path().join(ca))
                .env_remove("SSL_CERT_DIR")
                .env("MOAT_IMAGE_TEST_CERTIFICATES", folder.path())
                .status()
                .unwrap();
            assert!(status.success(), "{trust}");
        }
        return;
    };
    let certificates = std::env::var("MOAT_IMAGE_TEST_CERTIFICATES").unwrap();
    let certificates = Path::new(&certificates);
    let Some(plain) = Registry::start() else { return };
    plain.push("app", "1", &Made::new(vec![Layer::new(&[file("a", "a")], Packed::Gzip)], &json!({})));
    let registry = Registry::with_tls(ADDRESS, &certificates.join("cert.pem"), &certificates.join("key.pem"), &plain).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let mut options = options();
    if trust == "plain" {
        // Told to do without TLS, it does, and the registry refuses that.
        options.plain_http.insert(registry.address.to_string());
    }
    match store.pull(&registry.reference("app:1"), &options, &mut |_| {}) {
        Ok(id) => {
            assert_eq!(trust, "trusted");
            assert_eq!(text(&store, &id, "a").as_deref(), Some("a"));
        }
        Err(error) => {
            let says = if trust == "plain" { "it says 400" } else { "certificate" };
            assert!(trust != "trusted" && chain(&error).contains(says), "{trust}: {}", chain(&error));
        }
    }
}
