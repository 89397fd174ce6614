//! Whether a version that was found is the one asked for (`PYTHON_VERSION=3.11`, `NODE_VERSION=>=18 <21`).

use moat_model::NativeRuntime;

/// A version's numbers; missing ones are unknown, not zero.
fn numbers(text: &str) -> Option<Vec<u64>> {
    let text = text.trim().trim_start_matches(['v', 'V', '=']);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let mut out = Vec::new();
    for part in text[..end].split('.') {
        if matches!(part, "x" | "X" | "*") {
            break;
        }
        out.push(part.parse().ok()?);
    }
    Some(out)
}

/// Compares as far as `wanted` says.
fn compare(found: &[u64], wanted: &[u64]) -> std::cmp::Ordering {
    let padded: Vec<u64> = found.iter().copied().chain(std::iter::repeat(0)).take(wanted.len()).collect();
    padded.as_slice().cmp(wanted)
}

fn one(found: &[u64], condition: &str) -> Option<bool> {
    let split = condition.find(|c: char| !matches!(c, '<' | '>' | '=' | '^' | '~')).unwrap_or(condition.len());
    let (operator, text) = condition.split_at(split);
    let wanted = numbers(text)?;
    let order = compare(found, &wanted);
    Some(match operator {
        "" | "=" | "==" => order.is_eq(),
        ">=" => order.is_ge(),
        ">" => order.is_gt(),
        "<=" => order.is_le(),
        "<" => order.is_lt(),
        "^" => order.is_ge() && found.first() == wanted.first(),
        "~" | "~>" | "~=" => order.is_ge() && found.iter().take(2).eq(wanted.iter().take(2)),
        _ => return None,
    })
}

/// Whether `found` is what `wanted` asks for; `None` when `wanted` can't be read. `wanted` is a version or a part of one
/// (`3.11` takes any 3.11), or a range: conditions joined by spaces or commas all hold, alternatives joined by `||`.
pub fn matches(wanted: &str, found: &str) -> Option<bool> {
    let found = numbers(found)?;
    let mut any = false;
    for alternative in wanted.split("||") {
        let mut all = true;
        // `>= 18` is `>=18`.
        let mut conditions = Vec::new();
        let mut operator = String::new();
        for word in alternative.split([' ', ',']).filter(|word| !word.is_empty()) {
            if word.chars().all(|c| matches!(c, '<' | '>' | '=' | '^' | '~')) {
                operator.push_str(word);
            } else {
                conditions.push(std::mem::take(&mut operator) + word);
            }
        }
        if conditions.is_empty() || !operator.is_empty() {
            return None;
        }
        for condition in conditions {
            all &= one(&found, &condition)?;
        }
        any |= all;
    }
    Some(any)
}

/// The versions that what was installed for `exact` fits, as one that can be asked for. None where programs are compiled, and need no
/// toolchain when they run.
pub fn line(runtime: NativeRuntime, exact: &str) -> Option<String> {
    let parts = match runtime {
        // Compiled modules are for a major version.
        NativeRuntime::Node => 1,
        NativeRuntime::Python | NativeRuntime::Ruby | NativeRuntime::Elixir => 2,
        NativeRuntime::Go | NativeRuntime::Rust => return None,
    };
    let numbers = numbers(exact)?;
    let kept: Vec<String> = numbers.get(..parts)?.iter().map(ToString::to_string).collect();
    Some(kept.join("."))
}

/// A key that sorts versions.
pub fn key(version: &str) -> Vec<u64> {
    numbers(version).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_fits_one_line_of_its_language() {
        for (runtime, exact, line) in [
            (NativeRuntime::Python, "3.11.2", Some("3.11")),
            (NativeRuntime::Node, "20.11.0", Some("20")),
            (NativeRuntime::Ruby, "3.1.2", Some("3.1")),
            (NativeRuntime::Elixir, "1.14.0", Some("1.14")),
            (NativeRuntime::Go, "1.22.1", None),
            (NativeRuntime::Rust, "1.80.0", None),
            (NativeRuntime::Python, "odd", None),
        ] {
            assert_eq!(self::line(runtime, exact).as_deref(), line, "{runtime:?} {exact}");
        }
    }

    #[test]
    fn versions_match_as_people_mean_them() {
        for (wanted, found, expect) in [
            ("3.11", "3.11.7", Some(true)),
            ("3.11.7", "3.11.7", Some(true)),
            ("3.11.8", "3.11.7", Some(false)),
            ("3.1", "3.11.7", Some(false)),
            ("v20", "v20.20.2", Some(true)),
            ("20.x", "20.20.2", Some(true)),
            ("*", "20.20.2", Some(true)),
            (">=18", "20.20.2", Some(true)),
            (">= 18 < 20", "20.20.2", Some(false)),
            (">=18 <21", "20.20.2", Some(true)),
            ("^18 || ^20", "20.20.2", Some(true)),
            ("^20.30", "20.20.2", Some(false)),
            ("~20.20.1", "20.20.2", Some(true)),
            ("~20.19.1", "20.20.2", Some(false)),
            ("1.90", "1.95.0-nightly", Some(false)),
            ("lts/*", "20.20.2", None),
            ("", "20.20.2", None),
            (">=", "20.20.2", None),
        ] {
            assert_eq!(matches(wanted, found), expect, "{wanted} {found}");
        }
    }
}
