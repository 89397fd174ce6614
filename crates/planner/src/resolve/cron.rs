//! The shape of a cron expression: five fields, UTC.

/// A field: its name, its least and greatest number, and words for its numbers.
const FIELDS: [(&str, u32, u32, &[&str]); 5] = [
    ("minute", 0, 59, &[]),
    ("hour", 0, 23, &[]),
    ("day of the month", 1, 31, &[]),
    ("month", 1, 12, &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]),
    ("day of the week", 0, 7, &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]),
];

/// Checks an expression: numbers, names, `*`, ranges, lists and steps. The error says which field is wrong and why.
pub(crate) fn check(expression: &str) -> Result<(), String> {
    let fields: Vec<&str> = expression.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("it has {} fields, not five", fields.len()));
    }
    for (text, (name, least, most, words)) in fields.iter().zip(FIELDS) {
        for part in text.split(',') {
            field(part, least, most, words).map_err(|why| format!("{name} `{text}`: {why}"))?;
        }
    }
    Ok(())
}

fn field(text: &str, least: u32, most: u32, words: &[&str]) -> Result<(), String> {
    let (range, step) = text.split_once('/').map_or((text, None), |(range, step)| (range, Some(step)));
    if let Some(step) = step
        && !step.parse::<u32>().is_ok_and(|step| step > 0)
    {
        return Err(format!("a step is a number from 1, not `{step}`"));
    }
    if matches!(range, "*" | "?") {
        return Ok(());
    }
    let number = |text: &str| {
        let word = words.iter().position(|word| word.eq_ignore_ascii_case(text)).and_then(|i| u32::try_from(i).ok());
        let number = word.map(|i| i + least.min(1)).or_else(|| text.parse().ok());
        number.filter(|n| (least..=most).contains(n)).ok_or_else(|| format!("`{text}` is not {least} to {most}"))
    };
    match range.split_once('-') {
        Some((from, to)) if number(from)? > number(to)? && words.is_empty() => Err(format!("`{range}` ends before it begins")),
        Some(_) => Ok(()),
        None => number(range).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn what_the_platform_takes_is_taken() {
        for good in
            ["* * * * *", "*/60 * * * *", "0 9 * * MON-FRI", "0,30 8-18/2 1 jan,JUL ?", "  5  4 * * sun ", "0 0 * * 7", "59 23 31 12 6"]
        {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("* * * *", "it has 4 fields, not five"),
            ("", "it has 0 fields, not five"),
            ("* * * * * *", "it has 6 fields, not five"),
            ("@daily", "it has 1 fields, not five"),
            ("60 * * * *", "minute `60`: `60` is not 0 to 59"),
            ("* 24 * * *", "hour `24`: `24` is not 0 to 23"),
            ("* * 0 * *", "day of the month `0`: `0` is not 1 to 31"),
            ("* * * FOO *", "month `FOO`: `FOO` is not 1 to 12"),
            ("* * * * 8", "day of the week `8`: `8` is not 0 to 7"),
            ("*/0 * * * *", "minute `*/0`: a step is a number from 1, not `0`"),
            ("9-3 * * * *", "minute `9-3`: `9-3` ends before it begins"),
            ("-1 * * * *", "minute `-1`: `` is not 0 to 59"),
        ] {
            assert_eq!(check(bad), Err(why.to_owned()), "{bad}");
        }
    }
}
