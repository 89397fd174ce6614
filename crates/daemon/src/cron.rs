//! When a schedule is due. Times are UTC.

use croner::Cron;
use jiff::Timestamp;
use std::str::FromStr as _;

/// Why a schedule can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum CronError {
    /// Not a cron expression.
    #[error("`{schedule}` is not a cron expression: {why}")]
    Syntax {
        /// As written.
        schedule: String,
        /// What is wrong.
        why: String,
    },
    /// It names no time that ever comes.
    #[error("`{schedule}` never comes")]
    Never {
        /// As written.
        schedule: String,
    },
}

/// The first time after `after` that the schedule names.
pub fn next(schedule: &str, after: Timestamp) -> Result<Timestamp, CronError> {
    let cron = Cron::from_str(schedule).map_err(|error| CronError::Syntax { schedule: schedule.to_owned(), why: error.to_string() })?;
    let never = || CronError::Never { schedule: schedule.to_owned() };
    cron.find_next_occurrence(&after.to_zoned(jiff::tz::TimeZone::UTC), false).map(|at| at.timestamp()).map_err(|_| never())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_time_is_after_the_given_one() {
        for (schedule, after, expect) in [
            ("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            ("*/15 3 * * *", "2026-01-01T03:45:00Z", "2026-01-02T03:00:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
        ] {
            assert_eq!(next(schedule, after.parse().unwrap()).unwrap().to_string(), expect, "{schedule}");
        }
    }

    #[test]
    fn nonsense_is_said() {
        assert!(matches!(next("every day", Timestamp::UNIX_EPOCH), Err(CronError::Syntax { .. })));
        assert!(matches!(next("0 0 30 2 *", Timestamp::UNIX_EPOCH), Err(CronError::Never { .. } | CronError::Syntax { .. })));
    }
}
