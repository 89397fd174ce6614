//! From a registry on loopback to files on disk, and how much disk two images take that share a layer.
//!
//! Invariant: every pull starts with nothing of the image here, and with nothing waiting to be written to the disk.

use super::Stage;
use crate::docker::Docker;
use crate::failure::{Doing, Outcome};
use crate::figures::{Samples, Table};
use crate::podman::Podman;
use crate::process::{found, timed};
use moat_image::{PullOptions, Reference, Store};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A way of bringing an image here.
enum Way<'a> {
    Moat(PathBuf),
    Podman(&'a Podman),
    Umoci(PathBuf),
    Docker(&'a Docker),
}

/// Measures and prints. Images that podman and docker have pulled stay for the starts.
pub fn run(stage: &Stage, rounds: usize) -> Outcome {
    let mut ways = vec![Way::Moat(stage.folder.path().join("store"))];
    ways.extend(stage.podman.as_ref().map(Way::Podman));
    if found("skopeo") && found("umoci") {
        ways.push(Way::Umoci(stage.folder.path().join("umoci")));
    } else {
        println!("skipped: skopeo and umoci (apt-get install skopeo umoci)\n");
    }
    ways.extend(stage.docker.as_ref().map(Way::Docker));
    let mut took = vec![Samples::default(); ways.len()];
    // Once before it counts.
    for round in 0..=rounds {
        for (way, took) in ways.iter().zip(&mut took) {
            way.clear()?;
            nix::unistd::sync();
            let duration = way.pull(&stage.large.reference)?;
            if round > 0 {
                took.push(duration.as_secs_f64());
            }
        }
    }
    let megabytes = |bytes: u64| bytes / 1_000_000;
    let mut table = Table::new(
        format!(
            "Pull and unpack of an image of {} MB (compressed; two layers), seconds, {rounds} rounds; × is Moat against it, round by round",
            megabytes(stage.large.bytes)
        ),
        ["how", "median (least–most)", "Moat ×"],
    );
    for (way, samples) in ways.iter().zip(&took) {
        let ratio = took.first().map_or(f64::NAN, |own| own.over(samples).median());
        table.row([&way.name(), &samples.show(2), &format!("{ratio:.2}")]);
    }
    println!("{table}");
    disk(stage, &ways)
}

fn disk(stage: &Stage, ways: &[Way<'_>]) -> Outcome {
    let mut table =
        Table::new("Disk of two images that share a layer, MB", ["how", "PostgreSQL's alone", "Redis' alone", "both", "saved by sharing"]);
    for way in ways {
        let alone = |image: &str| {
            way.clear()?;
            let before = way.disk()?;
            way.pull(image)?;
            Ok((before, way.disk()?.saturating_sub(before)))
        };
        let (_, first) = alone(&stage.large.reference)?;
        let (before, second) = alone(&stage.redis.reference)?;
        way.pull(&stage.large.reference)?;
        let both = way.disk()?.saturating_sub(before);
        let saved = (first + second).saturating_sub(both);
        let [first, second, both, saved] = [first, second, both, saved].map(|bytes| bytes / 1_000_000);
        table.row([&way.name(), &first, &second, &both, &saved]);
    }
    println!("{table}");
    Ok(())
}

impl Way<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Moat(_) => "Moat: `Store::pull`",
            Self::Podman(_) => "`podman pull`",
            Self::Umoci(_) => "`skopeo copy`, then `umoci unpack`",
            Self::Docker(_) => "`docker pull`",
        }
    }

    fn data(&self) -> &Path {
        match self {
            Self::Moat(folder) | Self::Umoci(folder) => folder,
            Self::Podman(podman) => &podman.data,
            Self::Docker(docker) => &docker.data,
        }
    }

    /// Removes every image.
    fn clear(&self) -> Outcome {
        match self {
            Self::Moat(folder) | Self::Umoci(folder) if folder.exists() => fs::remove_dir_all(folder).doing("remove pulled images"),
            Self::Moat(_) | Self::Umoci(_) => Ok(()),
            Self::Podman(podman) => timed(podman.command().args(["rmi", "--all", "--force"])).map(drop),
            Self::Docker(docker) => timed(docker.command().args(["image", "prune", "--all", "--force"])).map(drop),
        }
    }

    fn pull(&self, image: &str) -> Outcome<Duration> {
        match self {
            Self::Moat(folder) => {
                let reference: Reference = image.parse().doing("read a reference")?;
                let start = Instant::now();
                let store = Store::open(folder).doing("open a store")?;
                store.pull(&reference, &PullOptions::default(), &mut |_| ()).doing(format_args!("pull `{image}`"))?;
                Ok(start.elapsed())
            }
            Self::Podman(podman) => timed(podman.command().args(["pull", "--quiet", "--tls-verify=false", image])),
            Self::Umoci(folder) => {
                fs::create_dir_all(folder).doing("make a folder")?;
                let name = image.rsplit('/').next().unwrap_or(image).replace(':', "-");
                let layout = format!("{}:{name}", folder.join("layout").display());
                let copied = timed(
                    Command::new("skopeo")
                        .args(["copy", "--insecure-policy", "--quiet", "--src-tls-verify=false"])
                        .arg(format!("docker://{image}"))
                        .arg(format!("oci:{layout}")),
                )?;
                Ok(copied + timed(Command::new("umoci").args(["unpack", "--image", &layout]).arg(folder.join(name)))?)
            }
            Self::Docker(docker) => timed(docker.command().args(["pull", "--quiet", image])),
        }
    }

    /// Bytes of disk that its folder takes.
    fn disk(&self) -> Outcome<u64> {
        if !self.data().exists() {
            return Ok(0);
        }
        let output =
            Command::new("du").args(["--summarize", "--one-file-system", "--block-size=1"]).arg(self.data()).output().doing("run `du`")?;
        let said = String::from_utf8_lossy(&output.stdout);
        said.split_whitespace().next().unwrap_or_default().parse().doing("read what `du` says")
    }
}
