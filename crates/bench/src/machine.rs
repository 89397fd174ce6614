//! What the figures were taken on.

use std::fs;
use std::thread::available_parallelism;

/// One line: processor, processors to run on, kernel, and how busy the machine was.
pub fn facts() -> String {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = text("/proc/cpuinfo");
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("unknown processor", |(_, model)| model);
    let processors = available_parallelism().map_or(1, usize::from);
    format!("{model}, {processors} processors, Linux {}, load {}", text("/proc/sys/kernel/osrelease").trim(), load())
}

/// How many tasks wanted to run, on average over the last minute.
pub fn load() -> String {
    fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split(' ').next().map(str::to_owned))
        .unwrap_or_else(|| "unknown".to_owned())
}
