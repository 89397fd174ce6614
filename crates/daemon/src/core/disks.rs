//! How full disks are. A disk is a folder: nothing stops a service from writing more than its blueprint says, so it is told.

use super::{Core, Msg};
use crate::protocol::DiskUse;
use moat_model::Slug;
use std::time::Duration;
use tokio::time::Instant;

/// Between two measurements: each walks through every file.
const EVERY: Duration = Duration::from_mins(5);

impl Core {
    /// Measures every disk in the background, when it is time.
    pub(super) fn measure_disks(&mut self) {
        if self.disks_due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        let disks: Vec<_> = self
            .durable
            .deployed
            .iter()
            .filter_map(|(slug, deployed)| Some((slug.clone(), deployed.service.id.clone(), deployed.service.workload.disk()?.clone())))
            .collect();
        if disks.is_empty() {
            // Looked at again once something is deployed.
            return;
        }
        self.disks_due = None;
        let (engine, tx) = (self.engine.clone(), self.tx.clone());
        tokio::spawn(async move {
            let mut found = Vec::new();
            for (slug, service, disk) in disks {
                match engine.disk_use(&service, &disk.name).await {
                    Ok(used) => found.push((slug, DiskUse { used, size: disk.size_bytes })),
                    Err(error) => tracing::warn!(%error, "a disk can't be measured"),
                }
            }
            let _ = tx.send(Msg::Disks(found));
        });
    }

    /// Says what has become too full since the last time.
    pub(super) fn disks_measured(&mut self, found: Vec<(Slug, DiskUse)>) {
        self.disks_due = Some(Instant::now() + EVERY);
        self.disks.retain(|slug, _| self.durable.deployed.contains_key(slug));
        for (slug, now) in found {
            let before = self.disks.insert(slug.clone(), now).map_or(Fullness::Fine, Fullness::of);
            let fullness = Fullness::of(now);
            if fullness > before {
                let words = match fullness {
                    Fullness::Over => "is over its size, which nothing stops but the machine's own disk",
                    Fullness::Nearly | Fullness::Fine => "is nearly full",
                };
                self.notice(Some(&slug), format!("its disk {words}: {now}; raise `sizeGB` or remove data"));
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fullness {
    Fine,
    /// From nine tenths on.
    Nearly,
    Over,
}

impl Fullness {
    const fn of(disk: DiskUse) -> Self {
        if disk.used > disk.size {
            Self::Over
        } else if disk.used >= disk.size / 10 * 9 {
            Self::Nearly
        } else {
            Self::Fine
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fullness_has_three_degrees() {
        for (used, fullness) in
            [(0, Fullness::Fine), (899, Fullness::Fine), (900, Fullness::Nearly), (1000, Fullness::Nearly), (1001, Fullness::Over)]
        {
            assert_eq!(Fullness::of(DiskUse { used, size: 1000 }), fullness, "{used}");
        }
    }
}
