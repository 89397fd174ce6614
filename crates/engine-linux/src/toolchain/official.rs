//! The official image of a language, for what this machine does not have.
//!
//! Invariant: pure; the same question has the same answer.

use moat_model::NativeRuntime;

/// The reference of the image that is the version asked for, or the platform's usual version where none is. `None` where no
/// tag says what is asked for (`>18`, `beta`).
pub fn reference(runtime: NativeRuntime, wanted: Option<&str>) -> Option<String> {
    let (name, usual) = match runtime {
        NativeRuntime::Python => ("library/python", "3.14"),
        NativeRuntime::Node => ("library/node", "24"),
        NativeRuntime::Ruby => ("library/ruby", "3.4"),
        NativeRuntime::Go => ("library/golang", "1"),
        NativeRuntime::Rust => ("library/rust", "1"),
        NativeRuntime::Elixir => ("library/elixir", "1.18"),
    };
    let Some(wanted) = wanted else { return Some(format!("docker.io/{name}:{usual}")) };
    let wanted = wanted.trim();
    if runtime == NativeRuntime::Rust {
        match wanted {
            "stable" => return Some(format!("docker.io/{name}:{usual}")),
            "nightly" => return Some("docker.io/rustlang/rust:nightly".to_owned()),
            _ => {}
        }
    }
    if runtime == NativeRuntime::Node {
        match wanted.strip_prefix("lts") {
            Some("" | "/*") => return Some(format!("docker.io/{name}:lts")),
            Some(line) => {
                let line = line.strip_prefix('/')?.to_ascii_lowercase();
                let plain = !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_lowercase());
                return plain.then(|| format!("docker.io/{name}:{line}"));
            }
            None if matches!(wanted, "node" | "latest" | "current") => return Some(format!("docker.io/{name}:latest")),
            None => {}
        }
    }
    tag(wanted).map(|tag| format!("docker.io/{name}:{tag}"))
}

/// The tag of a version or a range. Of a range, the newest of the line that its last alternative begins with: it is in the
/// range, since a range has its first version in it and what follows within the line is compatible by its own words.
fn tag(wanted: &str) -> Option<String> {
    let last = wanted.rsplit("||").next()?.trim();
    // `>= 18` is `>=18`.
    let condition = last.split([' ', ',']).find(|word| !word.is_empty())?;
    let split = condition.find(|c: char| !matches!(c, '<' | '>' | '=' | '^' | '~')).unwrap_or(condition.len());
    let (operator, version) = condition.split_at(split);
    let version = if version.is_empty() { last.split_once(operator)?.1.split([' ', ',']).find(|word| !word.is_empty())? } else { version };
    let version = version.trim_start_matches(['v', 'V', '=']);
    let numbers: Vec<&str> = version.split('.').take_while(|part| !matches!(*part, "x" | "X" | "*")).collect();
    if numbers.is_empty()
        || !numbers.iter().all(|part| !part.is_empty() && part.len() < 6 && part.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return None;
    }
    let alone = last.split([' ', ',']).filter(|word| !word.is_empty() && !word.chars().all(|c| "<>=^~".contains(c))).count() == 1;
    let kept = match operator {
        "" | "=" | "==" => numbers.len(),
        "^" => 1,
        ">=" if alone || numbers.len() == 1 => 1,
        ">=" => numbers.len().min(2),
        "~" | "~>" | "~=" => 2,
        _ => return None,
    };
    Some(numbers[..kept.min(numbers.len())].join("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use NativeRuntime::{Elixir, Go, Node, Python, Ruby, Rust};

    #[test]
    fn versions_are_tags() {
        for (runtime, wanted, expect) in [
            (Python, Some("3.12"), Some("library/python:3.12")),
            (Python, Some("3.12.4"), Some("library/python:3.12.4")),
            (Python, Some(">=3.11,<3.14"), Some("library/python:3.11")),
            (Python, None, Some("library/python:3.14")),
            (Node, Some("v20.11.0"), Some("library/node:20.11.0")),
            (Node, Some("18.x"), Some("library/node:18")),
            (Node, Some(">=18"), Some("library/node:18")),
            (Node, Some(">= 18.17.0"), Some("library/node:18")),
            (Node, Some("^18.17 || ^20.3"), Some("library/node:20")),
            (Node, Some("~20.19.1"), Some("library/node:20.19")),
            (Node, Some(">18"), None),
            (Node, Some("<21"), None),
            (Node, Some("*"), None),
            (Node, Some("lts/*"), Some("library/node:lts")),
            (Node, Some("lts/Iron"), Some("library/node:iron")),
            (Node, Some("lts/../x"), None),
            (Ruby, Some("3.3.1"), Some("library/ruby:3.3.1")),
            (Go, None, Some("library/golang:1")),
            (Rust, Some("stable"), Some("library/rust:1")),
            (Rust, Some("nightly"), Some("rustlang/rust:nightly")),
            (Rust, Some("nightly-2025-01-01"), None),
            (Rust, Some("1.80"), Some("library/rust:1.80")),
            (Rust, Some("beta"), None),
            (Elixir, Some("1.18.4"), Some("library/elixir:1.18.4")),
            (Python, Some("3.12; rm -rf /"), None),
        ] {
            let expect = expect.map(|name| format!("docker.io/{name}"));
            assert_eq!(reference(runtime, wanted), expect, "{runtime:?} {wanted:?}");
        }
    }
}
