//! What instances and builds are made of, as short texts to compare.

use moat_model::state::{Disk, ImageOrigin, Persistence, SiteAction, StaticWorkload, Workload};
use moat_model::{ProxyHeader, Secret, Service};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// Of everything an instance is made of. Not of its zone, its address, who may reach it, how many there are, or how it is
/// looked after: those change around a running instance. Its network is part of it, since its address lies in that
/// network's range.
pub(crate) fn of_instance(service: &Service) -> String {
    let mut print = Fingerprint::new("instance");
    print.text(service.kind.word());
    print.number(service.network.index().into());
    match &service.workload {
        Workload::Native(w) => {
            print.text(w.runtime.word());
            print.maybe(w.version.as_deref());
            print.text(&w.root_dir.to_string_lossy());
            print.text(&w.start_command);
            print.maybe(w.schedule.as_deref());
            print.disk(w.disk.as_ref());
        }
        Workload::Image(w) => {
            print.origin(&w.origin);
            print.maybe(w.command.as_deref());
            print.maybe(w.schedule.as_deref());
            print.disk(w.disk.as_ref());
        }
        Workload::KeyValue(w) => {
            print.text(&w.maxmemory_policy);
            print.number(match w.persistence {
                Persistence::JournalSnapshot => 0,
                Persistence::Snapshot => 1,
                Persistence::Off => 2,
            });
        }
        Workload::Postgres(w) => {
            print.number(w.major.map_or(0, u64::from));
            print.text(&w.database);
            print.text(&w.user);
            print.text(w.password.expose());
        }
        Workload::Static(w) => print.site(w),
    }
    print.secrets(&service.env);
    print.secrets(&service.secret_files);
    print.number(service.limits.memory_bytes);
    print.number(service.limits.cpu_millis.into());
    print.number(service.limits.pids.into());
    // Its server expects it, or does not.
    match service.public.proxy_header {
        None => {}
        Some(ProxyHeader::V1) => print.text("proxy v1"),
        Some(ProxyHeader::V2) => print.text("proxy v2"),
    }
    print.finish()
}

/// Of everything a build is made of but the source's text.
pub(crate) fn of_build(service: &Service) -> String {
    let mut print = Fingerprint::new("build");
    match &service.workload {
        Workload::Native(w) => {
            print.text(w.runtime.word());
            print.maybe(w.version.as_deref());
            print.text(&w.root_dir.to_string_lossy());
            print.maybe(w.build_command.as_deref());
        }
        Workload::Image(w) => print.origin(&w.origin),
        Workload::Static(w) => {
            print.text(&w.root_dir.to_string_lossy());
            print.text(&w.publish_path.to_string_lossy());
            print.maybe(w.build_command.as_deref());
            // What the build made is kept beside what is published for that command only.
            print.number(w.pre_deploy_command.is_some().into());
            for (runtime, version) in &w.versions {
                print.text(runtime.word());
                print.text(version);
            }
        }
        Workload::KeyValue(_) | Workload::Postgres(_) => {}
    }
    print.secrets(&service.build_env);
    print.secrets(&service.secret_files);
    print.finish()
}

fn print_list<T>(print: &mut Fingerprint, list: &[T], each: impl Fn(&mut Fingerprint, &T)) {
    print.number(u64::try_from(list.len()).unwrap_or(u64::MAX));
    for item in list {
        each(print, item);
    }
}

/// SHA-256 over parts, each with its length before it, so that no two lists of parts read the same.
struct Fingerprint(Sha256);

impl Fingerprint {
    fn new(what: &str) -> Self {
        let mut print = Self(Sha256::new());
        print.text(what);
        print
    }

    fn number(&mut self, number: u64) {
        self.0.update(number.to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(u64::try_from(text.len()).unwrap_or(u64::MAX));
        self.0.update(text);
    }

    fn maybe(&mut self, text: Option<&str>) {
        self.number(text.is_some().into());
        self.text(text.unwrap_or_default());
    }

    /// A published image's name, or the paths of a build below its source.
    fn origin(&mut self, origin: &ImageOrigin) {
        match origin {
            ImageOrigin::Published(image) => self.text(image),
            ImageOrigin::Dockerfile(dockerfile) => {
                for path in [&dockerfile.root_dir, &dockerfile.file, &dockerfile.context] {
                    self.text(&path.to_string_lossy());
                }
            }
        }
    }

    /// What is published, and by which rules.
    fn site(&mut self, site: &StaticWorkload) {
        print_list(self, &site.headers, |print, header| {
            for text in [&header.path, &header.name, &header.value] {
                print.text(text);
            }
        });
        print_list(self, &site.routes, |print, route| {
            print.text(&route.source);
            let (word, target, path) = match &route.action {
                SiteAction::Redirect(to) => ("redirect", "", to),
                SiteAction::Rewrite(to) => ("rewrite", "", to),
                SiteAction::Pass { service, path } => ("pass", service.as_str(), path),
            };
            for text in [word, target, path] {
                print.text(text);
            }
        });
    }

    fn disk(&mut self, disk: Option<&Disk>) {
        self.number(disk.is_some().into());
        if let Some(disk) = disk {
            self.text(&disk.name);
            self.text(&disk.mount_path.to_string_lossy());
            self.number(disk.size_bytes);
        }
    }

    fn secrets(&mut self, secrets: &BTreeMap<String, Secret>) {
        self.number(u64::try_from(secrets.len()).unwrap_or(u64::MAX));
        for (key, value) in secrets {
            self.text(key);
            self.text(value.expose());
        }
    }

    /// The first 32 hexadecimal digits.
    fn finish(self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let bytes = self.0.finalize();
        let digits = bytes.iter().take(16).flat_map(|byte| [byte >> 4, byte & 15]);
        digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
    }
}
