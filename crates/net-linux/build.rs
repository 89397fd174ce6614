//! Compiles the shortcut (`bpf/shortcut.c`) for the kernel's virtual machine, and hands its limits to both sides.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

/// Seconds without a packet after which one direction of a flow is forgotten; how many directions are remembered.
const LIMITS: [(&str, u32); 6] = [
    ("DIRECTIONS", 131_072),
    ("UDP_LIMIT", 120),
    ("TCP_OPENING_LIMIT", 120),
    ("TCP_OPEN_LIMIT", 432_000),
    ("TCP_CLOSING_LIMIT", 120),
    ("TELL", 20),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
    let mut text = String::new();
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let mut command = Command::new(&clang);
    command.args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror"]);
    // Where Debian keeps the headers that are different from machine to machine.
    let machine = env::var("CARGO_CFG_TARGET_ARCH")?;
    command.arg(format!("-I/usr/include/{machine}-linux-gnu"));
    for (name, value) in LIMITS {
        command.arg(format!("-D{name}={value}"));
        writeln!(text, "pub const {name}: u32 = {value};")?;
    }
    fs::write(out.join("limits.rs"), text)?;
    command.args(["-c", "bpf/shortcut.c", "-o"]).arg(out.join("shortcut.o"));
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            Err(format!("`{clang}` could not compile bpf/shortcut.c ({status}): it needs the kernel's headers (package linux-libc-dev)")
                .into())
        }
        Err(error) => {
            Err(format!("`{clang}` is needed to compile bpf/shortcut.c: {error} (package clang; the variable CLANG names another one)")
                .into())
        }
    }
}
