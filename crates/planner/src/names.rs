//! Names that are nearly right, and how names are quoted.

/// The candidate that was probably meant, if one is near enough.
pub(crate) fn closest<'a>(wanted: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = wanted.to_lowercase();
    let most = (wanted.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .filter(|candidate| *candidate != wanted && candidate.len().abs_diff(wanted.len()) <= 3)
        .map(|candidate| (strsim::osa_distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Whether two names differ as by a slip of the fingers: one letter or separator, and no digit (`api-2` is not `api-1`).
pub(crate) fn is_typo(wanted: &str, candidate: &str) -> bool {
    let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
    let (a, b) = (wanted.to_lowercase(), candidate.to_lowercase());
    wanted.chars().count() >= 4 && digits(wanted) == digits(candidate) && strsim::osa_distance(&a, &b) <= 1
}

/// Back-ticks round a name, cut when it is long, on one line.
pub(crate) fn quoted(text: &str) -> String {
    const MOST: usize = 48;
    let mut out = String::with_capacity(text.len().min(MOST) + 2);
    out.push('`');
    out.extend(text.chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }));
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out.push('`');
    out
}

/// `a`, `b` or `c`, each in back-ticks, at most eight of them.
pub(crate) fn one_of<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const MOST: usize = 8;
    let all: Vec<&str> = names.into_iter().collect();
    let mut out = String::new();
    for (i, name) in all.iter().take(MOST).enumerate() {
        if i > 0 {
            out.push_str(if i + 1 == all.len() { " or " } else { ", " });
        }
        out.push_str(&quoted(name));
    }
    if all.len() > MOST {
        out.push_str(", …");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_found() {
        for (wanted, found) in [
            ("catalogg", Some("catalog")),
            ("Catalog", Some("catalog")),
            ("ctaalog", Some("catalog")),
            ("payments", None),
            ("we", Some("web")),
        ] {
            assert_eq!(closest(wanted, ["catalog", "web"]), found, "{wanted}");
        }
    }

    #[test]
    fn numbered_names_are_no_slips() {
        assert!(is_typo("catalgo", "catalog"));
        assert!(is_typo("my-redis", "my_redis"));
        assert!(!is_typo("api-2", "api-1"));
        assert!(!is_typo("api2", "api"));
        assert!(!is_typo("db", "db-x"));
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(one_of(["a"]), "`a`");
        assert_eq!(one_of(["a", "b", "c"]), "`a`, `b` or `c`");
        assert!(one_of((0..20).map(|_| "x")).ends_with(", …"));
    }
}
