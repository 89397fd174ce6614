//! A writer that is killed at any moment.

use crate::{Texts, read, write};
use moat_store::Store;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const FOLDER: &str = "MOAT_STORE_TEST_WRITES_IN";

/// What the writer's state is after `generation` changes: some keys come, change and go.
fn state(generation: u64) -> Texts {
    let first = generation.saturating_sub(20);
    (first..=generation).map(|n| (format!("key-{n}"), format!("{generation} ").repeat(usize::try_from(n % 7).unwrap() * 40 + 1))).collect()
}

/// Not a test by itself: what the killed process does, until it is killed. Says each generation once it is written.
#[test]
fn writer() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let opened = Store::open(Path::new(&folder)).unwrap();
    let mut store = opened.store;
    let mut before = read(opened.documents);
    let mut out = std::io::stdout();
    for generation in store.generation().0 + 1.. {
        let now = state(generation);
        write(&mut store, generation, &before, &now).unwrap();
        writeln!(out, "written {generation}").unwrap();
        out.flush().unwrap();
        if generation % 8 == 0 {
            store.keep_copy().unwrap();
        }
        before = now;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn what_was_written_is_there_after_a_kill_and_nothing_is_half_there(kills in prop::collection::vec(0_u64..60_000, 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        let mut written = 0;
        for micros in kills {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["kill::writer", "--exact", "--nocapture", "--test-threads=1"])
                .env(FOLDER, folder.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut tell = |line: &str| if let Some((_, n)) = line.split_once("written ") { written = n.parse().unwrap() };
            // From its first write on, so that the kill finds it at work.
            for line in lines.by_ref() {
                let line = line.unwrap();
                tell(&line);
                if line.contains("written ") {
                    break;
                }
            }
            std::thread::sleep(Duration::from_micros(micros));
            child.kill().unwrap();
            for line in lines {
                tell(&line.unwrap());
            }
            child.wait().unwrap();

            let opened = Store::open(folder.path()).unwrap();
            prop_assert_eq!(opened.restored, None);
            let generation = opened.store.generation().0;
            // What was said to be written is; one more may be, since it was not said yet.
            prop_assert!(generation == written || generation == written + 1, "{generation}, said {written}");
            let expect = if generation == 0 { BTreeMap::new() } else { state(generation) };
            prop_assert_eq!(read(opened.documents), expect);
            written = generation;
        }
    }
}
