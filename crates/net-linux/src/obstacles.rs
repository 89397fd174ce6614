//! What in the host's own firewall keeps services from reaching the internet, and what to tell that firewall.
//!
//! An accept of Moat's own table can't override a drop of another one, so the firewall's own words are needed. Nothing that is closed
//! depends on any of it. Main type: [`Obstacle`].

use crate::host::Names;
use crate::{NetError, nft};
use serde_json::Value;
use std::fmt;
use std::path::Path;

/// Where every firewall hooks in whose word is final.
const HOOK: &str = "forward";

/// What firewalld has for the moment of a reload.
const PASSING: &str = "firewalld_policy_drop";

/// Something that drops what services send to the internet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// What does.
    pub what: String,
    /// What to run.
    pub hint: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. hint: {}", self.what, self.hint)
    }
}

/// The obstacles for the Moat of a runtime folder, whether it runs or not, in the calling thread's namespace. Needs root.
pub fn egress_obstacles(run_dir: &Path) -> Result<Vec<Obstacle>, NetError> {
    let real = std::fs::canonicalize(run_dir).or_else(|_| std::path::absolute(run_dir));
    let run_dir = real.map_err(NetError::io(format!("find `{}`", run_dir.display())))?;
    list(&Names::of(&run_dir).link)
}

/// The obstacles for an uplink.
pub fn list(link: &str) -> Result<Vec<Obstacle>, NetError> {
    Ok(found(&nft::list(&["list", "ruleset"])?.unwrap_or_default(), link))
}

/// The obstacles in a listing of `nft -j list ruleset`.
fn found(listing: &[Value], link: &str) -> Vec<Obstacle> {
    let all = |kind: &'static str| listing.iter().filter_map(move |item| item.get(kind));
    let mut found: Vec<Obstacle> = Vec::new();
    for chain in all("chain") {
        let word = |key: &str| chain[key].as_str().unwrap_or_default();
        let (family, table, name) = (word("family"), word("table"), word("name"));
        if word("hook") != HOOK || !matches!(family, "ip" | "ip6" | "inet") || table.starts_with("moat_") || table == PASSING {
            continue;
        }
        let of_table = |rule: &&Value| rule["table"] == table && rule["family"] == family;
        let closes = word("policy") == "drop" || all("rule").filter(of_table).any(|rule| rule["chain"] == name && closes_all(rule));
        // A rule that names the link was put there for it.
        if !closes || all("rule").filter(of_table).any(|rule| rule.to_string().contains(&format!("\"{link}\""))) {
            continue;
        }
        let has = |other: &str| all("chain").any(|chain| chain["table"] == table && chain["family"] == family && chain["name"] == other);
        let (who, hint) = if table == "firewalld" {
            (
                "firewalld".to_owned(),
                format!("`firewall-cmd --permanent --zone=trusted --change-interface={link}` and `firewall-cmd --reload`"),
            )
        } else if has("ufw-user-forward") || has("ufw6-user-forward") {
            ("ufw".to_owned(), format!("`ufw route allow in on {link}`"))
        } else {
            let into = if has("DOCKER-USER") { "DOCKER-USER" } else { name };
            let rule = format!("nft insert rule {family} {table} {into}");
            (
                format!("the chain `{name}` of the table `{family} {table}`"),
                format!("`{rule} iifname {link} accept` and `{rule} oifname {link} ct state established,related accept`"),
            )
        };
        let what = format!("{who} drops what is forwarded: services can't reach the internet");
        // One firewall has a table for each family.
        if !found.iter().any(|other| other.what == what) {
            found.push(Obstacle { what, hint });
        }
    }
    found
}

/// Whether a rule drops or rejects every packet that comes to it.
fn closes_all(rule: &Value) -> bool {
    let words: Vec<&str> = rule["expr"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
        .flat_map(|word| word.keys().map(String::as_str))
        .collect();
    words.iter().any(|word| matches!(*word, "drop" | "reject"))
        && words.iter().all(|word| matches!(*word, "drop" | "reject" | "counter" | "log"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chain(family: &str, table: &str, name: &str, policy: Option<&str>) -> Value {
        let mut chain = json!({ "family": family, "table": table, "name": name });
        if let Some(policy) = policy {
            chain["hook"] = HOOK.into();
            chain["policy"] = policy.into();
        }
        json!({ "chain": chain })
    }

    fn rule(family: &str, table: &str, chain: &str, expr: &Value) -> Value {
        json!({ "rule": { "family": family, "table": table, "chain": chain, "expr": expr } })
    }

    #[test]
    fn each_firewall_is_told_in_its_own_words() {
        let from = |link: &str| json!({ "match": { "op": "==", "left": { "meta": { "key": "iifname" } }, "right": link } });
        let reject = json!({ "reject": { "type": "icmpx", "expr": "admin-prohibited" } });
        let firewalld = || {
            vec![
                chain("inet", "firewalld", "filter_FORWARD", Some("accept")),
                rule("inet", "firewalld", "filter_FORWARD", &json!([reject])),
            ]
        };
        let ufw = || vec![chain("ip", "filter", "FORWARD", Some("drop")), chain("ip", "filter", "ufw-user-forward", None)];
        let docker = || vec![chain("ip", "filter", "FORWARD", Some("drop")), chain("ip", "filter", "DOCKER-USER", None)];
        let with = |mut rules: Vec<Value>, more: Value| {
            rules.push(more);
            rules
        };
        for (name, listing, hint) in [
            ("nothing", vec![], None),
            ("an open one", vec![chain("ip", "filter", "FORWARD", Some("accept"))], None),
            ("Moat's own", vec![chain("inet", "moat_ab12cd", "forward", Some("drop"))], None),
            ("firewalld's of a moment", vec![chain("inet", PASSING, "filter_forward", Some("drop"))], None),
            ("a bridge's", vec![chain("bridge", "filter", "FORWARD", Some("drop"))], None),
            (
                "a plain one",
                vec![chain("ip", "filter", "FORWARD", Some("drop"))],
                Some("nft insert rule ip filter FORWARD iifname mu-1 accept"),
            ),
            ("Docker's", docker(), Some("nft insert rule ip filter DOCKER-USER iifname mu-1 accept")),
            ("ufw", ufw(), Some("`ufw route allow in on mu-1`")),
            ("ufw that was told", with(ufw(), rule("ip", "filter", "ufw-user-forward", &json!([from("mu-1"), { "accept": null }]))), None),
            (
                "ufw that was told of another",
                with(ufw(), rule("ip", "filter", "ufw-user-forward", &json!([from("mu-12"), { "accept": null }]))),
                Some("ufw route"),
            ),
            ("firewalld", firewalld(), Some("--zone=trusted --change-interface=mu-1")),
            ("firewalld that was told", with(firewalld(), rule("inet", "firewalld", "filter_FORWARD", &json!([from("mu-1")]))), None),
            (
                "one that rejects some",
                vec![chain("inet", "own", "forward", Some("accept")), rule("inet", "own", "forward", &json!([from("eth0"), reject]))],
                None,
            ),
        ] {
            let obstacles = found(&listing, "mu-1");
            assert_eq!(obstacles.len(), usize::from(hint.is_some()), "{name}: {obstacles:?}");
            assert!(
                obstacles.iter().all(|o| o.hint.contains(hint.unwrap_or_default()) && o.to_string().contains("hint:")),
                "{name}: {obstacles:?}"
            );
        }
        // Both families of one firewall are one obstacle.
        assert_eq!(
            found(
                &[ufw(), vec![chain("ip6", "filter", "FORWARD", Some("drop")), chain("ip6", "filter", "ufw6-user-forward", None)]].concat(),
                "mu-1"
            )
            .len(),
            1
        );
    }
}
