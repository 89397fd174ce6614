//! The monitor on its own, for this crate's tests: what `moat __monitor` is in the product.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(2).collect();
    moat_engine_linux::monitor::main(&args)
}
