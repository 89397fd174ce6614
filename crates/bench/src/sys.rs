//! System calls that have no safe wrapper.
#![expect(unsafe_code, reason = "sched_setscheduler(2) has no safe wrapper")]

use std::io;

/// Lets the calling thread run before everything else of the machine (`SCHED_FIFO`), so that other work does not count.
pub fn run_first() -> io::Result<()> {
    let wanted = libc::sched_param { sched_priority: 1 };
    // SAFETY: `wanted` lives for the whole call, which only reads it; 0 is the calling thread.
    let refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const wanted) };
    if refused == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
