//! The heap of a command that is about to read much and then ends.

use crate::sys;

/// Bytes of heap that a byte of a blueprint takes while it is read and planned, measured with large ones.
const PER_BYTE: usize = 64;
/// Blueprints up to this are read sooner than their heap is made ready.
const SMALL: usize = 64 * 1024;
/// Larger ones are refused without being read.
const LARGE: usize = 4 << 20;

/// Makes room for all that a text of so many bytes leads to, in huge pages where the kernel has them: otherwise the kernel is asked
/// for each 4 KiB of it, which takes a fifth of the time. What is freed is kept, so that this is for a process that ends soon. Does
/// nothing for small texts and those that are too large, and where the C library is another than glibc.
pub fn expect_text(bytes: usize) {
    if bytes > SMALL && bytes <= LARGE {
        sys::grow_heap(bytes * PER_BYTE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heap_that_was_made_ready_is_used_like_any_other() {
        for bytes in [0, SMALL, SMALL + 1, 1 << 20, LARGE, LARGE + 1, usize::MAX] {
            expect_text(bytes);
            let lists: Vec<Vec<usize>> = (0..100).map(|length| (0..length * 100).collect()).collect();
            assert!(lists.iter().enumerate().all(|(length, list)| list.len() == length * 100));
        }
    }
}
