//! Enumerations.

/// Words that a field takes.
#[derive(Debug)]
pub(crate) struct Words {
    /// The words, in the order they are told.
    pub(crate) all: &'static [&'static str],
    /// Deprecated words and what they mean.
    pub(crate) aliases: &'static [(&'static str, &'static str)],
    /// Further words by pattern.
    pub(crate) pattern: Option<Pattern>,
}

/// Words by pattern: a test, and the same as a regular expression.
pub(crate) type Pattern = (fn(&str) -> bool, &'static str);

const fn words(all: &'static [&'static str]) -> Words {
    Words { all, aliases: &[], pattern: None }
}

/// What a written word is taken for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meant {
    /// It is the word.
    Exactly,
    /// A deprecated word for this one.
    Deprecated(&'static str),
    /// Another spelling of this one: other capitals, `_` for `-` or a blank.
    Spelling(&'static str),
    /// None of them.
    Nothing,
}

impl Words {
    /// What a written word is taken for.
    pub(crate) fn meant(&self, text: &str) -> Meant {
        if self.all.contains(&text) || self.pattern.is_some_and(|(test, _)| test(text)) {
            return Meant::Exactly;
        }
        if let Some((_, word)) = self.aliases.iter().find(|(alias, _)| *alias == text) {
            return Meant::Deprecated(word);
        }
        let squeezed = squeeze(text);
        self.all.iter().find(|word| !squeezed.is_empty() && squeeze(word) == squeezed).map_or(Meant::Nothing, |word| Meant::Spelling(word))
    }

    /// The word as the format spells it.
    pub(crate) fn canonical(&self, text: &str) -> Option<String> {
        match self.meant(text) {
            Meant::Exactly => Some(text.to_owned()),
            Meant::Deprecated(word) | Meant::Spelling(word) => Some(word.to_owned()),
            Meant::Nothing => None,
        }
    }
}

/// Letters and digits in lower case, and the dot of `0.5c`.
pub(crate) fn squeeze(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '.').map(|c| c.to_ascii_lowercase()).collect()
}

pub(crate) static SERVICE_TYPE: Words =
    Words { all: &["web", "pserv", "worker", "cron", "keyvalue", "workflow"], aliases: &[("redis", "keyvalue")], pattern: None };
pub(crate) static TYPE_WEB: Words = words(&["web"]);
pub(crate) static TYPE_PSERV: Words = words(&["pserv"]);
pub(crate) static TYPE_WORKER: Words = words(&["worker"]);
pub(crate) static TYPE_CRON: Words = words(&["cron"]);
pub(crate) static TYPE_WORKFLOW: Words = words(&["workflow"]);
pub(crate) static TYPE_KEYVALUE: Words = Words { all: &["keyvalue"], aliases: &[("redis", "keyvalue")], pattern: None };
/// `fromService.type`: also what no blueprint can define.
pub(crate) static REFERENCE_TYPE: Words = Words {
    all: &["web", "pserv", "worker", "cron", "keyvalue", "workflow", "static", "dpg", "job"],
    aliases: &[("redis", "keyvalue")],
    pattern: None,
};
pub(crate) static RUNTIME: Words = words(&["python", "node", "ruby", "go", "rust", "elixir", "docker", "image", "static"]);
pub(crate) static RUNTIME_STATIC: Words = words(&["static"]);
pub(crate) static RUNTIME_WORKFLOW: Words = words(&["python", "node"]);
pub(crate) static RUNTIME_BUILD: Words = words(&["python", "node", "ruby", "go", "rust", "elixir", "docker"]);
pub(crate) static REGION: Words = words(&["oregon", "ohio", "virginia", "frankfurt", "singapore"]);
pub(crate) static TRIGGER: Words = words(&["commit", "checksPass", "off"]);
pub(crate) static GENERATION: Words = words(&["off", "manual", "automatic"]);
pub(crate) static SWITCH: Words = words(&["enabled", "disabled"]);
pub(crate) static ROUTE_TYPE: Words = words(&["redirect", "rewrite"]);
pub(crate) static MAXMEMORY: Words = words(&[
    "allkeys-lru",
    "volatile-lru",
    "allkeys-lfu",
    "volatile-lfu",
    "allkeys-random",
    "volatile-random",
    "volatile-ttl",
    "noeviction",
]);
pub(crate) static PERSISTENCE: Words = words(&["journal-snapshot", "snapshot", "off"]);
pub(crate) static CONNECTION_POOL: Words = words(&["pgbouncer", "none"]);
pub(crate) static VERSION: Words = words(&["1"]);
pub(crate) static POSTGRES_VERSION: Words = words(&["10", "11", "12", "13", "14", "15", "16", "17", "18"]);
pub(crate) static EGRESS: Words = words(&["none", "internet"]);
pub(crate) static PROXY_HEADER: Words = words(&["v1", "v2"]);
pub(crate) static START_ORDER: Words = words(&["together", "one-by-one"]);
pub(crate) static DATABASE_PROPERTY: Words =
    words(&["connectionString", "connectionPoolString", "host", "port", "user", "password", "database"]);
pub(crate) static SERVICE_PROPERTY: Words = words(&["host", "port", "hostport", "connectionString", "slug"]);

/// The compute ids: CPUs, `c-`, memory, such as `0.5c-512mb` and `4c-16g`.
const COMPUTE: Option<Pattern> = Some((is_compute, "^[0-9]+(\\.[0-9]+)?c-[1-9][0-9]*(mb|g)$"));

pub(crate) static SERVER_PLAN: Words =
    Words { all: &["free", "starter", "standard", "pro", "pro plus", "pro max", "pro ultra"], aliases: &[], pattern: COMPUTE };
pub(crate) static CRON_PLAN: Words = Words { all: &["starter", "standard", "pro", "pro plus"], aliases: &[], pattern: COMPUTE };
pub(crate) static KEYVALUE_PLAN: Words = words(&[
    "free",
    "starter",
    "standard",
    "pro",
    "pro plus",
    "pro max",
    "pro ultra",
    "256mb",
    "1g",
    "3g",
    "5g",
    "10g",
    "20g",
    "40g",
    "50g",
]);
pub(crate) static POSTGRES_PLAN: Words = Words {
    all: &[
        "free",
        "basic-256mb",
        "basic-1gb",
        "basic-4gb",
        "pro-4gb",
        "pro-8gb",
        "pro-16gb",
        "pro-32gb",
        "pro-64gb",
        "pro-128gb",
        "pro-192gb",
        "pro-256gb",
        "pro-384gb",
        "pro-512gb",
        "accelerated-16gb",
        "accelerated-32gb",
        "accelerated-64gb",
        "accelerated-128gb",
        "accelerated-256gb",
        "accelerated-384gb",
        "accelerated-512gb",
        "accelerated-768gb",
        "accelerated-1024gb",
        "starter",
        "standard",
        "pro",
        "pro plus",
    ],
    aliases: &[],
    pattern: COMPUTE,
};

fn is_compute(text: &str) -> bool {
    let Some((cpus, memory)) = text.split_once("c-") else { return false };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let cpus = match cpus.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => digits(cpus),
    };
    let memory = memory.strip_suffix("mb").or_else(|| memory.strip_suffix('g'));
    cpus && memory.is_some_and(|amount| digits(amount) && !amount.starts_with('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_lead_to_the_word() {
        for (words, text, meant) in [
            (&SERVER_PLAN, "starter", Meant::Exactly),
            (&SERVER_PLAN, "Starter", Meant::Spelling("starter")),
            (&SERVER_PLAN, "pro_plus", Meant::Spelling("pro plus")),
            (&SERVER_PLAN, "0.5c-512mb", Meant::Exactly),
            (&SERVER_PLAN, "c-512mb", Meant::Nothing),
            (&POSTGRES_PLAN, "basic_256mb", Meant::Spelling("basic-256mb")),
            (&POSTGRES_PLAN, "Basic-1gb", Meant::Spelling("basic-1gb")),
            (&SERVICE_TYPE, "redis", Meant::Deprecated("keyvalue")),
            (&MAXMEMORY, "allkeys_lru", Meant::Spelling("allkeys-lru")),
            (&RUNTIME, "", Meant::Nothing),
            (&RUNTIME, "---", Meant::Nothing),
        ] {
            assert_eq!(words.meant(text), meant, "{text}");
        }
    }
}
