//! Image references: whether a text can be one.
//!
//! The grammar is that of the distribution project's reference package; `docker://` before it is taken as well by those who
//! fetch it. What a registry has is known only once it is asked.

/// What is wrong with an image reference, in words.
pub(crate) fn check(written: &str) -> Result<(), String> {
    let text = written.trim();
    if text.is_empty() {
        return Err("it is blank".to_owned());
    }
    if let Some(bad) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-/:@+[]".contains(*c)) {
        return Err(format!("it can't hold `{}`", bad.escape_default()));
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    if let Some(digest) = digest {
        let hex = digest.strip_prefix("sha256:").ok_or("a digest begins with `sha256:`")?;
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err("a digest has 64 hexadecimal digits".to_owned());
        }
    }
    let (path, tag) = match name.rsplit_once(':') {
        // A colon before a slash is a registry's port.
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        Some(_) | None => (name, None),
    };
    if let Some(tag) = tag {
        let first = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !first || tag.len() > 128 || !tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            return Err(format!("`{tag}` is not a tag"));
        }
    }
    let repository = match path.split_once('/') {
        Some((registry, rest)) if registry.contains(['.', ':']) || registry == "localhost" => rest,
        Some(_) | None => path,
    };
    for part in repository.split('/') {
        if part.is_empty() {
            return Err("a part of its name is blank".to_owned());
        }
        if part.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(format!("names are in lower case: did you mean `{}`?", part.to_ascii_lowercase()));
        }
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        if !edge(part.bytes().next()) || !edge(part.bytes().last()) || part.contains([':', '@', '[', '+']) {
            return Err(format!("`{part}` is not a part of a name"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn references() {
        let digest = "a".repeat(64);
        for good in [
            "redis",
            "redis:7.2-alpine",
            " docker.io/library/redis ",
            "localhost:5000/a/b__c:x",
            "ghcr.io/owner/name@sha256:DIGEST",
            "127.0.0.1:5000/x:1@sha256:DIGEST",
            "[::1]:5000/x",
            "a/b/c-d.e",
        ] {
            assert_eq!(check(&good.replace("DIGEST", &digest)), Ok(()), "{good}");
        }
        for (bad, says) in [
            ("", "blank"),
            ("a b", "can't hold ` `"),
            ("Redis", "did you mean `redis`?"),
            ("redis:", "not a tag"),
            ("redis:-x", "not a tag"),
            ("a//b", "blank"),
            ("x@sha512:1", "sha256"),
            ("x@sha256:12", "64"),
            ("-x", "not a part"),
            ("https://ghcr.io/x", "part of its name is blank"),
        ] {
            let said = check(bad).unwrap_err();
            assert!(said.contains(says), "{bad}: {said}");
        }
    }
}
