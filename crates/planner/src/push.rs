//! What a push deploys: `autoDeployTrigger`, `buildFilter`, `rootDir` and the skip phrases.
//!
//! Invariant: a service that is held keeps its commit, never its settings; when it is unknown what has changed, nothing is
//! held by a filter.

use crate::resolve::workspace::Entry;
use globset::{GlobBuilder, GlobMatcher};
use moat_blueprint::spec::{BuildFilterSpec, RuntimeSpec, ServiceSpec};
use std::path::{Component, Path};

/// What a push means for one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushRule {
    /// Its source is what is pushed.
    Source {
        /// What `autoDeployTrigger` says.
        trigger: Trigger,
        /// Which files concern it.
        filter: PathFilter,
    },
    /// Its source comes from elsewhere, or it has none: only its settings come by a push.
    Settings,
}

/// `autoDeployTrigger`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// Each commit.
    Commit,
    /// Commits whose checks passed. Nothing checks here, and no check is no passed check.
    ChecksPass,
    /// None.
    Off,
}

/// Which files concern a service: paths and globs from the repository's root, as written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PathFilter {
    /// Files that do; without any, those below `root_dir`.
    pub paths: Vec<String>,
    /// Files that don't, whatever `paths` says.
    pub ignored_paths: Vec<String>,
    /// `rootDir`, empty for the repository's root.
    pub root_dir: String,
}

/// Why a service that runs keeps its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// `autoDeployTrigger: off`.
    Off,
    /// `autoDeployTrigger: checksPass`.
    ChecksPass,
    /// No changed file fits `buildFilter`.
    BuildFilter,
    /// No changed file is below `rootDir`.
    RootDir,
    /// Nothing of it is pushed.
    NotPushed,
}

impl Held {
    /// The words for people.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Off => "`autoDeployTrigger` is `off`",
            Self::ChecksPass => "`autoDeployTrigger` is `checksPass`, and no checks run here",
            Self::BuildFilter => "no changed file fits its `buildFilter`",
            Self::RootDir => "no file below its `rootDir` has changed",
            Self::NotPushed => "its source is not in this repository",
        }
    }
}

impl PushRule {
    pub(crate) fn of(entry: &Entry<'_>) -> Self {
        let spec = entry.spec;
        let built = matches!(spec.runtime.as_ref().map(|runtime| runtime.value), Some(RuntimeSpec::Native(_) | RuntimeSpec::Docker));
        if !built || spec.elsewhere {
            return Self::Settings;
        }
        let trigger = match spec.auto_deploy_trigger.as_ref().map(|word| word.value.as_str()) {
            Some("off") => Trigger::Off,
            Some("checksPass") => Trigger::ChecksPass,
            _ => Trigger::Commit,
        };
        Self::Source { trigger, filter: PathFilter::of(spec) }
    }

    /// Whether a push leaves a running service at its commit, and why. `changed` are the files that differ between its commit
    /// and the pushed one; none when that is not known.
    pub fn held(&self, changed: Option<&[String]>) -> Option<Held> {
        let Self::Source { trigger, filter } = self else { return Some(Held::NotPushed) };
        match trigger {
            Trigger::Off => Some(Held::Off),
            Trigger::ChecksPass => Some(Held::ChecksPass),
            Trigger::Commit if changed.is_none_or(|changed| filter.concerns(changed)) => None,
            Trigger::Commit if filter.paths.is_empty() && filter.ignored_paths.is_empty() => Some(Held::RootDir),
            Trigger::Commit => Some(Held::BuildFilter),
        }
    }
}

impl PathFilter {
    fn of(spec: &ServiceSpec) -> Self {
        let root = Path::new(spec.root_dir.as_ref().map_or("", |text| text.value.trim()));
        let names: Vec<_> =
            root.components().filter(|part| matches!(part, Component::Normal(_))).map(|part| part.as_os_str().to_string_lossy()).collect();
        let texts = |field: fn(&BuildFilterSpec) -> &Vec<moat_blueprint::spec::Text>| {
            spec.build_filter.iter().flat_map(|filter| field(&filter.value)).map(|text| text.value.clone()).collect()
        };
        Self { paths: texts(|filter| &filter.paths), ignored_paths: texts(|filter| &filter.ignored_paths), root_dir: names.join("/") }
    }

    /// Whether one of these files concerns the service. Without anything said, every commit does, also one that changes no file.
    pub fn concerns(&self, changed: &[String]) -> bool {
        if self.paths.is_empty() && self.ignored_paths.is_empty() && self.root_dir.is_empty() {
            return true;
        }
        let read = |globs: &[String]| globs.iter().filter_map(|text| glob(text).ok()).flatten().collect::<Vec<GlobMatcher>>();
        let (paths, ignored) = (read(&self.paths), read(&self.ignored_paths));
        let below_root =
            |file: &str| self.root_dir.is_empty() || file.strip_prefix(&self.root_dir).is_some_and(|rest| rest.starts_with('/'));
        changed.iter().any(|file| {
            let included = if self.paths.is_empty() { below_root(file) } else { paths.iter().any(|glob| glob.is_match(file)) };
            included && !ignored.iter().any(|glob| glob.is_match(file))
        })
    }
}

/// What a pattern of `buildFilter` stands for: itself, and, for one without wild cards, all below it.
///
/// # Errors
/// Why it is none.
pub(crate) fn glob(text: &str) -> Result<Vec<GlobMatcher>, String> {
    let text = text.trim();
    let text = text.strip_prefix("./").unwrap_or(text);
    let text = text.trim_start_matches('/');
    let bare = text.trim_end_matches('/');
    let mut patterns = vec![bare.to_owned()];
    if bare.is_empty() || bare == "." {
        patterns = vec!["**".to_owned()];
    } else if text.ends_with('/') || !bare.contains(['*', '?', '[', '{']) {
        patterns.push(format!("{bare}/**"));
    }
    let read = |pattern: &String| GlobBuilder::new(pattern).literal_separator(true).build().map(|glob| glob.compile_matcher());
    patterns.iter().map(read).collect::<Result<_, _>>().map_err(|error| error.kind().to_string())
}

/// The phrase of a commit's message that asks for no deploy, such as `[skip render]`, as written there.
pub fn skip_phrase(message: &str) -> Option<&str> {
    const WORDS: [&str; 4] = ["render", "deploy", "cd", "moat"];
    let mut rest = message;
    while let Some(at) = rest.find('[') {
        let (phrase, inner) = (&rest[at..], &rest[at + 1..]);
        if let Some(end) = inner.find(']') {
            let words: Vec<String> = inner[..end].split_whitespace().map(str::to_lowercase).collect();
            let asks = |skip: &str, what: &str| skip == "skip" && WORDS.contains(&what);
            if let [first, second] = words.as_slice()
                && (asks(first, second) || asks(second, first))
            {
                return Some(&phrase[..end + 2]);
            }
        }
        rest = inner;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(paths: &str, ignored: &str, root_dir: &str) -> PathFilter {
        PathFilter { paths: files(paths), ignored_paths: files(ignored), root_dir: root_dir.to_owned() }
    }

    fn files(list: &str) -> Vec<String> {
        list.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn files_concern_a_service_by_its_filter() {
        let rows = [
            // Nothing said: every commit.
            ("", "", "", "a.txt", true),
            ("", "", "", "", true),
            // `rootDir` is a filter.
            ("", "", "api", "api/app.py", true),
            ("", "", "api", "api2/app.py web/x", false),
            ("", "", "api", "api", false),
            ("", "", "api", "", false),
            // `paths` says instead of it what concerns the service.
            ("api/** shared/**", "", "api", "shared/types.ts", true),
            ("api/**", "", "api", "web/x", false),
            ("src/*.py", "", "", "src/app.py", true),
            ("src/*.py", "", "", "src/deep/app.py", false),
            ("src/**/*.py", "", "", "src/app.py", true),
            ("src/**/*.py", "", "", "src/a/b/app.py", true),
            ("**/*.md", "", "", "README.md", true),
            ("*.md", "", "", "docs/README.md", false),
            ("src/?.js", "", "", "src/a.js", true),
            ("src/?.js", "", "", "src/ab.js", false),
            ("src/[!t]*.js", "", "", "src/test.js", false),
            ("{api,web}/**", "", "", "web/x", true),
            // A bare path is a file, or a folder with all in it.
            ("render.yaml", "", "", "render.yaml", true),
            ("api", "", "", "api/deep/x", true),
            ("./api/", "", "", "api/x", true),
            ("/api", "", "", "api/x", true),
            ("api", "", "", "apis/x", false),
            (".", "", "", "x/y", true),
            // Ignored wins, file by file.
            ("", "**/*.md", "", "README.md docs/a.md", false),
            ("", "**/*.md", "", "README.md app.py", true),
            ("api/**", "api/tests/**", "", "api/tests/test_a.py", false),
            ("", "docs", "", "docs/a/b.txt", false),
            ("", "*.md", "api", "api/x.py README.md", true),
            ("", "api/*.md", "api", "api/x.md", false),
            // What is no glob fits nothing.
            ("src/[a", "", "", "src/[a", false),
        ];
        for (paths, ignored, root_dir, changed, want) in rows {
            assert_eq!(filter(paths, ignored, root_dir).concerns(&files(changed)), want, "{paths} {ignored} {root_dir} {changed}");
        }
    }

    #[test]
    fn a_push_holds_what_it_does_not_concern() {
        let rule = |trigger, filter| PushRule::Source { trigger, filter };
        let other = files("web/x");
        for (rule, changed, want) in [
            (rule(Trigger::Commit, filter("", "", "")), Some(&other[..]), None),
            (rule(Trigger::Commit, filter("", "", "api")), Some(&other[..]), Some(Held::RootDir)),
            (rule(Trigger::Commit, filter("api/**", "", "api")), Some(&other[..]), Some(Held::BuildFilter)),
            (rule(Trigger::Commit, filter("api/**", "", "api")), None, None),
            (rule(Trigger::Off, filter("", "", "")), Some(&other[..]), Some(Held::Off)),
            (rule(Trigger::Off, filter("", "", "")), None, Some(Held::Off)),
            (rule(Trigger::ChecksPass, filter("", "", "")), Some(&other[..]), Some(Held::ChecksPass)),
            (PushRule::Settings, Some(&other[..]), Some(Held::NotPushed)),
        ] {
            assert_eq!(rule.held(changed), want, "{rule:?}");
        }
    }

    #[test]
    fn phrases_ask_for_no_deploy() {
        for (message, want) in [
            ("Fix a typo [skip render]", Some("[skip render]")),
            ("[render skip] Fix", Some("[render skip]")),
            ("fix\n\nlonger [Skip Deploy] text", Some("[Skip Deploy]")),
            ("[deploy skip]", Some("[deploy skip]")),
            ("[skip cd]", Some("[skip cd]")),
            ("[cd skip]", Some("[cd skip]")),
            ("[skip moat]", Some("[skip moat]")),
            ("[moat skip]", Some("[moat skip]")),
            ("[ skip  render ]", Some("[ skip  render ]")),
            ("a [b [skip cd]", Some("[skip cd]")),
            ("é[x] [skip cd] [", Some("[skip cd]")),
            ("[skip ci]", None),
            ("[skip preview]", None),
            ("skip render", None),
            ("[skip]", None),
            ("[skip render", None),
            ("[render]", None),
            ("", None),
        ] {
            assert_eq!(skip_phrase(message), want, "{message}");
        }
    }
}
