//! What is made ready for the build of a Dockerfile, and what is taken of its result.

use crate::bed::{Bed, test};
use moat_engine_linux::ImageBuildRequest;
use moat_model::state::Dockerfile;
use moat_model::{ServiceId, Slug};
use std::collections::BTreeMap;
use std::path::Path;

fn request(bed: &Bed, file: &str, context: &str) -> ImageBuildRequest {
    let dockerfile = Dockerfile { source: bed.source.clone().into(), root_dir: "web".into(), file: file.into(), context: context.into() };
    ImageBuildRequest {
        service: ServiceId::new("srv-app").unwrap(),
        slug: Slug::new("app").unwrap(),
        dockerfile,
        credential: None,
        build_fingerprint: String::new(),
        env: BTreeMap::new(),
    }
}

/// The same where Buildah is there; else the error is looked at, and it is all that there is to see.
fn with_buildah(body: impl AsyncFnOnce(&Bed) + Send) {
    let present = std::process::Command::new("buildah").arg("--version").output().is_ok();
    test(async move |bed: &Bed| {
        bed.write("web/Dockerfile", "FROM scratch\n");
        if present {
            body(bed).await;
            return;
        }
        println!("skipped: `buildah` is not installed; `cargo xtask test` installs it");
        let error = bed.engine.prepare_image(request(bed, "Dockerfile", "."), |_| {}).await.unwrap_err();
        assert!(error.hint.is_some_and(|hint| hint.contains("apt-get install buildah")));
    });
}

#[test]
fn files_and_folders_that_are_not_there_are_named() {
    with_buildah(async |bed: &Bed| {
        std::os::unix::fs::symlink("/etc/passwd", bed.source.join("web/Outside")).unwrap();
        for (file, context, says) in [
            ("Dockerfile.prod", ".", "there is no Dockerfile `web/Dockerfile.prod`"),
            ("../../Dockerfile", ".", "there is no Dockerfile `web/../../Dockerfile`"),
            // A link that leads out of the source leads to nothing in it.
            ("Outside", ".", "there is no Dockerfile `web/Outside`"),
            ("Dockerfile", "nowhere", "there is no folder `web/nowhere`"),
            ("Dockerfile", "Dockerfile", "there is no folder `web/Dockerfile`"),
        ] {
            let error = bed.engine.prepare_image(request(bed, file, context), |_| {}).await.unwrap_err();
            assert!(error.to_string().contains(says), "{file} {context}: {error}");
            assert!(error.hint.is_some(), "{file} {context}");
        }
    });
}

#[test]
fn what_a_build_left_is_not_believed() {
    with_buildah(async |bed: &Bed| {
        let release = bed.engine.prepare_image(request(bed, "Dockerfile", ".."), |_| {}).await.unwrap();
        assert!(!release.cached);
        let image = bed.state.join("releases").join(&release.name).join("project/image");
        let error = bed.engine.seal_image(&release.name).await.unwrap_err();
        assert!(error.to_string().contains("the build has left no image"), "{error}");
        // A layout of somebody else's.
        let outside = bed.state.join("outside");
        layout(&outside);
        std::os::unix::fs::symlink(&outside, &image).unwrap();
        let error = bed.engine.seal_image(&release.name).await.unwrap_err();
        assert!(error.to_string().contains("the build has left no image"), "{error}");
        std::fs::remove_file(&image).unwrap();
        std::fs::rename(&outside, &image).unwrap();
        std::fs::write(image.join("index.json"), "{}").unwrap();
        let error = bed.engine.seal_image(&release.name).await.unwrap_err();
        assert!(error.to_string().contains("take the image of"), "{error}");

        // The control: a whole one is taken, is the release from then on, and is not built again until it is gone.
        layout(&image);
        let id = bed.engine.seal_image(&release.name).await.unwrap();
        assert!(id.starts_with("sha256:"), "{id}");
        let again = bed.engine.prepare_image(request(bed, "Dockerfile", ".."), |_| {}).await.unwrap();
        assert_eq!((again.name.as_str(), again.cached), (id.as_str(), true));
        bed.engine.collect_garbage(&[id.clone()].into()).await.unwrap();
        assert!(bed.engine.prepare_image(request(bed, "Dockerfile", ".."), |_| {}).await.unwrap().cached);
        bed.engine.prune_images(&std::collections::BTreeSet::new(), moat_engine_linux::Prune::All { under_way: false }).await.unwrap();
        assert!(!bed.engine.prepare_image(request(bed, "Dockerfile", ".."), |_| {}).await.unwrap().cached);
    });
}

/// An OCI layout of an image without layers.
fn layout(folder: &Path) {
    use sha2::{Digest as _, Sha256};
    use std::fmt::Write as _;
    std::fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    let put = |text: &str| {
        let digest = Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
        std::fs::write(folder.join("blobs/sha256").join(&digest), text).unwrap();
        format!("\"digest\":\"sha256:{digest}\",\"size\":{}", text.len())
    };
    let arch = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let config = put(&format!(r#"{{"architecture":"{arch}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#));
    let manifest = put(&format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{config}}},"layers":[]}}"#
    ));
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",{manifest}}}]}}"#);
    std::fs::write(folder.join("index.json"), index).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
