//! The README and the guide agree with the crate.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rocket::figment::Figment;
use rocket::figment::providers::{Format, Toml};
use rocket::figment::value::Value;
use rocket::local::blocking::Client;
use rocket::{Build, Rocket};
use rocket_replicated::{mysql, postgres, sqlite};
use serde::Serialize;
use support::{json, logbook, program};

/// A Markdown file.
struct Document {
    /// Relative to the repository.
    path: PathBuf,
    text: String,
}

/// A part of a document.
enum Part<'t> {
    /// A line of prose, or of a table.
    Line(&'t str),
    /// A fenced block, without the fence's indentation.
    Block { language: &'t str, text: String },
}

fn parts(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.trim_start().strip_prefix("```") else {
            parts.push(Part::Line(line));
            continue;
        };
        let indentation = line.len() - line.trim_start().len();
        let inside = lines.by_ref().take_while(|line| line.trim() != "```");
        let inside: Vec<_> = inside.map(|line| line.get(indentation..).unwrap_or_default()).collect();
        parts.push(Part::Block { language: language.trim(), text: inside.join("\n") });
    }
    parts
}

/// The fenced blocks of a language.
fn snippets(text: &str, language: &str) -> Vec<String> {
    let of_language = |part: Part<'_>| match part {
        Part::Block { language: its, text } if its == language => Some(text),
        Part::Block { .. } | Part::Line(_) => None,
    };
    parts(text).into_iter().filter_map(of_language).collect()
}

/// A line without its spans of code, in which links do not count.
fn without_code(mut line: &str) -> String {
    let mut prose = String::new();
    while let Some(start) = line.find('`') {
        let code = &line[start..];
        let ticks = &code[..code.len() - code.trim_start_matches('`').len()];
        let Some(length) = code[ticks.len()..].find(ticks) else { break };
        prose += &line[..start];
        line = &code[ticks.len() + length + ticks.len()..];
    }
    prose + line
}

/// The anchor that GitHub and mdBook make of a heading's text, without the `#`.
fn anchor(title: &str) -> String {
    let (mut text, mut rest) = (String::new(), title);
    while let Some((before, after)) = rest.split_once("](") {
        text += before;
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    text += rest;
    let character = |c: char| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || matches!(c, '-' | '_') => Some(c),
        _ => None,
    };
    text.trim().to_lowercase().chars().filter_map(character).collect()
}

impl Document {
    fn read(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_owned();
        let text = std::fs::read_to_string(program::repository().join(&path))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, text }
    }

    /// The targets of its links, including those in HTML and the sources of pictures.
    fn links(&self) -> Vec<String> {
        let mut links = Vec::new();
        for part in parts(&self.text) {
            let Part::Line(line) = part else { continue };
            let line = without_code(line);
            for target in line.split("](").skip(1) {
                let target = target.split([')', ' ']).next().unwrap_or_default();
                links.push(target.trim_matches(['<', '>']).to_owned());
            }
            if let Some((label, target)) = line.split_once("]: ")
                && label.starts_with('[')
            {
                links.extend(target.split_whitespace().next().map(str::to_owned));
            }
            for attribute in ["href=\"", "src=\"", "srcset=\""] {
                let targets = line.split(attribute).skip(1).filter_map(|rest| rest.split('"').next());
                links.extend(targets.map(str::to_owned));
            }
        }
        links
    }

    /// The anchors of its headings.
    fn anchors(&self) -> BTreeSet<String> {
        let mut anchors = BTreeSet::new();
        for part in parts(&self.text) {
            let Part::Line(line) = part else { continue };
            for attribute in [" id=\"", " name=\""] {
                let named = line.split(attribute).skip(1).filter_map(|rest| rest.split('"').next());
                anchors.extend(named.map(str::to_owned));
            }
            let title = line.trim_start_matches('#');
            let Some(title) = title.strip_prefix(' ').filter(|_| line.starts_with('#')) else { continue };
            let (anchor, mut number) = (anchor(title), 0);
            let mut numbered = anchor.clone();
            while !anchors.insert(numbered) {
                number += 1;
                numbered = format!("{anchor}-{number}");
            }
        }
        anchors
    }

    /// The error in a link of this document, if the link leads to a file of the repository.
    fn problem(&self, link: &str) -> Option<String> {
        const OURS: [&str; 3] = [
            "https://github.com/rocket-replicated/rocket_replicated/blob/main/",
            "https://github.com/rocket-replicated/rocket_replicated/tree/main/",
            "https://raw.githubusercontent.com/rocket-replicated/rocket_replicated/main/",
        ];
        let from_root = OURS.iter().find_map(|ours| link.strip_prefix(ours));
        if from_root.is_none() && (link.contains("://") || link.starts_with("mailto:")) {
            return None;
        }
        let folder = self.path.parent().filter(|_| from_root.is_none()).unwrap_or(Path::new(""));
        let link = from_root.unwrap_or(link);
        let (path, heading) = match link.split_once('#') {
            Some((path, heading)) => (path, Some(heading)),
            None => (link, None),
        };
        let file = if path.is_empty() { self.path.clone() } else { folder.join(path) };
        if !program::repository().join(&file).exists() {
            return Some("there is no such file".into());
        }
        let heading = heading.filter(|_| file.extension().is_some_and(|extension| extension == "md"))?;
        let is_there = Self::read(&file).anchors().contains(heading);
        (!is_there).then(|| "there is no such heading".into())
    }
}

/// The Markdown files in a folder and below.
fn documents_in(folder: &Path) -> Vec<Document> {
    let mut found = Vec::new();
    for entry in program::repository().join(folder).read_dir().unwrap().map(Result::unwrap) {
        let path = folder.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            found.extend(documents_in(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(Document::read(path));
        }
    }
    found
}

fn readme() -> Document {
    Document::read("README.md")
}

/// The README and the guide.
fn pages() -> Vec<Document> {
    let mut pages = documents_in(Path::new("docs/guide"));
    pages.push(readme());
    pages
}

/// The page that has a heading for each key.
fn configuration() -> Document {
    Document::read("docs/guide/configuration.md")
}

/// The page for users of other crates, with all line breaks reduced to spaces.
fn migrating() -> String {
    let text = Document::read("docs/guide/migrating.md").text;
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The parameters of URLs that name a file.
const FILES: [&str; 7] =
    ["sslrootcert=", "sslcert=", "sslkey=", "ssl-ca=", "ssl-cert=", "ssl-key=", "ssl-root-cert="];

/// A section whose files are in this folder, and whose servers are on this machine: a name that cannot be resolved may
/// take as long as the resolver likes. Names whose addresses are discovered stay.
fn at_home(toml: &str, folder: &Path) -> String {
    let has_names = toml.contains("discover");
    let mut hosts = Vec::new();
    let mut urls = toml.split("://");
    let mut home = urls.next().unwrap_or_default().to_owned();
    for url in urls {
        home += "://";
        if home.ends_with("sqlite://") {
            home += &format!("{}/{url}", folder.display());
            continue;
        }
        let end = url.find(['/', '?', '"', '\'', '\n']).unwrap_or(url.len());
        let begin = url[..end].rfind('@').map_or(0, |at| at + 1);
        let host = url[begin..end].split(':').next().unwrap_or_default();
        if has_names || host.is_empty() || host.starts_with('[') {
            home += url;
            continue;
        }
        let number = hosts.iter().position(|known| *known == host).unwrap_or_else(|| {
            hosts.push(host);
            hosts.len() - 1
        });
        home += &format!("{}127.0.0.{}{}", &url[..begin], number + 1, &url[begin + host.len()..]);
    }

    let file = folder.join("authority.pem");
    std::fs::write(&file, "").unwrap();
    for parameter in FILES {
        let mut values = home.split(parameter);
        let mut with_file = values.next().unwrap_or_default().to_owned();
        for value in values {
            let end = value.find(['&', '"', '\'', '\n']).unwrap_or(value.len());
            with_file += &format!("{parameter}{}{}", file.display(), &value[end..]);
        }
        home = with_file;
    }
    home
}

/// A Rocket in this profile, whose database `replicated` has this section.
fn rocket(profile: &str, section: &impl Serialize) -> Rocket<Build> {
    /// The key of a test.
    const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    logbook::open();
    let defaults = match profile {
        "release" => rocket::Config::release_default(),
        _ => rocket::Config::debug_default(),
    };
    let figment = Figment::from(defaults)
        .merge(("secret_key", KEY))
        .merge(("databases.replicated", section))
        .select(profile);
    rocket::custom(figment)
}

/// Attaches the fairing for the database that a URL leads to.
fn attach(rocket: Rocket<Build>, url: &str) -> Rocket<Build> {
    match url.split("://").next() {
        Some("postgres" | "postgresql") => rocket.attach(postgres::Replicated::fairing()),
        Some("mysql" | "mariadb") => rocket.attach(mysql::Replicated::fairing()),
        Some("sqlite") => rocket.attach(sqlite::Replicated::fairing()),
        _ => panic!("`{url}` says by no scheme which database it leads to"),
    }
}

/// Launches each database of a configuration file, in the debug and in the release profile.
fn launch_all(place: &str, toml: &str) {
    for profile in ["debug", "release"] {
        let folder = tempfile::tempdir().unwrap();
        let toml = at_home(toml, folder.path());
        let figment = Figment::from(Toml::string(&toml).nested()).select(profile);
        let databases = figment.find_value("databases").ok().and_then(Value::into_dict);
        for (name, section) in databases.unwrap_or_else(|| panic!("{place}: no TOML, or no table:\n{toml}")) {
            let url = section.find_ref("url").and_then(Value::as_str);
            let url = url.unwrap_or_else(|| panic!("{place}: `{name}` has no `url`:\n{toml}"));
            let launched = Client::untracked(attach(rocket(profile, &section), url));
            launched.unwrap_or_else(|error| {
                let log = logbook::lines(&["misconfigured"]);
                panic!("{place}: `{name}` in the profile `{profile}`: {error}: {:?}\n{toml}", log.last())
            });
        }
    }
}

#[test]
fn sections_launch() {
    let has_tls = cfg!(any(feature = "tls-native-tls", feature = "tls-rustls"));
    let asks_for_tls = |toml: &str| toml.contains("sslmode=") || toml.contains("ssl-mode=");
    let mut launched = 0;
    for page in pages() {
        let sections = snippets(&page.text, "toml");
        let sections = sections.iter().filter(|toml| toml.contains("[default.databases."));
        for section in sections.filter(|toml| has_tls || !asks_for_tls(toml)) {
            launch_all(&page.path.display().to_string(), section);
            launched += 1;
        }
    }
    assert!(launched >= 10, "{launched} sections in all");
    launch_all("Rocket.toml", include_str!("../Rocket.toml"));
    launch_all("examples/blog/Rocket.toml", include_str!("../examples/blog/Rocket.toml"));
}

#[test]
fn dependencies_name_this_version() {
    let this_version = format!("{}.{}", env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"));
    let mut named = 0;
    for page in pages() {
        for snippet in snippets(&page.text, "toml").iter().filter(|toml| toml.contains("dependencies]")) {
            let place = page.path.display();
            let manifest: toml::Table =
                snippet.parse().unwrap_or_else(|error| panic!("{place}: {error}: {snippet}"));
            let tables = ["dependencies", "dev-dependencies"].into_iter().filter_map(|key| manifest.get(key));
            for (name, dependency) in tables.filter_map(toml::Value::as_table).flatten() {
                let expected: &str = match name.as_str() {
                    "rocket_replicated" | "rocket_replicated_testing" => &this_version,
                    "sqlx" => "0.9",
                    _ => continue,
                };
                // A dependency without a version is named by a path, or by where it is kept.
                if let Some(version) = dependency.get("version").unwrap_or(dependency).as_str() {
                    assert_eq!(version, expected, "{place}: {name}");
                    named += 1;
                }
            }
        }
    }
    assert!(named > 0);
}

/// The entry of a key in the reference.
struct Entry {
    key: String,
    /// The facts in its list, by the words that each line begins with.
    facts: BTreeMap<String, String>,
}

impl Entry {
    fn fact(&self, name: &str) -> &str {
        let fact = self.facts.get(name).map(String::as_str);
        fact.unwrap_or_else(|| panic!("`{}` has no line `{name}`", self.key))
    }

    /// The default, if it is a value.
    fn default(&self) -> Option<&str> {
        let value = self.fact("Default").strip_prefix('`')?.strip_suffix('`')?;
        (!value.contains('`')).then_some(value)
    }

    /// The lines of a section in its example.
    fn example(&self) -> String {
        let spans: Vec<_> = self.fact("Example").split('`').skip(1).step_by(2).collect();
        spans.join("\n")
    }

    /// True if a slave's entry may have the key. The section may have the key as well.
    fn is_in_slaves_entries(&self) -> bool {
        self.key.starts_with(OF_SLAVES) || self.facts.contains_key("In a slave's entry")
    }
}

const OF_SLAVES: &str = "slaves[].";
const OF_PINS: &str = "pin.";

/// The keys of the reference, in its order.
fn reference() -> Vec<Entry> {
    let page = configuration();
    let mut entries: Vec<Entry> = Vec::new();
    let mut is_entry = false;
    for part in parts(&page.text) {
        let Part::Line(line) = part else { continue };
        if line.starts_with('#') {
            let key = line.strip_prefix("### `").and_then(|key| key.strip_suffix('`'));
            is_entry = key.is_some();
            entries.extend(key.map(|key| Entry { key: key.to_owned(), facts: BTreeMap::new() }));
            continue;
        }
        let fact = line.strip_prefix("- ").filter(|_| is_entry).and_then(|line| line.split_once(": "));
        if let (Some((name, fact)), Some(entry)) = (fact, entries.last_mut()) {
            entry.facts.insert(name.to_owned(), fact.to_owned());
        }
    }
    entries
}

const MASTER: &str = "postgres://app@127.0.0.1/blog";
const SLAVE: &str = "postgres://app@127.0.0.2/blog";

/// Launches with a section that cannot be understood. Returns the latest line of the log that has these words.
fn refusal(section: &str, words: &[&str]) -> Option<String> {
    let keys: toml::Table = section.parse().unwrap_or_else(|error| panic!("{section}: {error}"));
    let rocket = rocket("debug", &keys).attach(postgres::Replicated::fairing());
    let error = Client::untracked(rocket).expect_err(section);
    assert!(matches!(error.kind(), rocket::error::ErrorKind::FailedFairings(_)), "{section}: {error}");
    logbook::lines(words).pop()
}

/// The keys of a table, from an error that lists them. The section has an unknown key in that table.
fn known(section: &str) -> BTreeSet<String> {
    let line = refusal(section, &["zzzzzzzzzz", "the keys here are "]).unwrap();
    let (_, keys) = line.split_once("the keys here are ").unwrap();
    keys.split(", ").map(|key| key.trim_matches('`').to_owned()).collect()
}

#[test]
fn the_reference_has_every_key() {
    let entries = reference();
    let distinct: BTreeSet<_> = entries.iter().map(|entry| &entry.key).collect();
    assert_eq!(distinct.len(), entries.len(), "a key has one heading");
    let (mut section, mut slave, mut pin) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for entry in &entries {
        let key = entry.key.strip_prefix(OF_SLAVES).unwrap_or(&entry.key);
        if entry.is_in_slaves_entries() {
            slave.insert(key.to_owned());
        }
        if let Some(key) = key.strip_prefix(OF_PINS) {
            pin.insert(key.to_owned());
        } else if key == entry.key {
            section.insert(key.to_owned());
        }
    }
    assert_eq!(section, known("zzzzzzzzzz = 1"));
    assert_eq!(slave, known(&format!("url = {MASTER:?}\nslaves = [{{ url = {SLAVE:?}, zzzzzzzzzz = 1 }}]")));
    assert_eq!(pin, known(&format!("url = {MASTER:?}\npin = {{ zzzzzzzzzz = 1 }}")));
}

#[test]
fn the_ranges_of_the_reference_are_those_of_the_crate() {
    const TOO_MUCH: u32 = 1_000_000_000;

    let mut checked = 0;
    for entry in reference() {
        let said = entry.fact("Type");
        let range = said.split_once("seconds, ").or_else(|| said.split_once("number, "));
        let Some((_, range)) = range else { continue };
        let range: Vec<_> = range.split([' ', ',', ';']).take(3).collect();
        let [least, "to", most] = range[..] else { panic!("`{}`: {said}", entry.key) };
        let section = if let Some(key) = entry.key.strip_prefix(OF_SLAVES) {
            format!("slaves = [{{ url = {SLAVE:?}, {key} = {TOO_MUCH} }}]")
        } else {
            format!("{} = {TOO_MUCH}", entry.key)
        };
        let key = format!(".{}`: expected", entry.key.replace("[]", "[0]"));
        let limits = format!("from {least} to {most}");
        let line = refusal(&format!("url = {MASTER:?}\n{section}"), &[&key, &limits]);
        assert!(line.is_some(), "nothing says {key}, {limits}");
        checked += 1;
    }
    assert!(checked >= 15, "{checked} ranges in all");
}

#[test]
fn the_examples_of_the_reference_are_understood() {
    for entry in reference() {
        let example = entry.example();
        let key = entry.key.rsplit('.').next().unwrap();
        assert!(example.contains(&format!("{key} = ")), "`{}`: {example}", entry.key);
        let has = |key: &str| example.lines().any(|line| line.starts_with(&format!("{key} = ")));
        let mut section = String::from("[default.databases.replicated]\n");
        if !has("url") {
            let url =
                if example.contains("sqlite://") { "sqlite://blog.db" } else { "postgres://app@db-1/blog" };
            section += &format!("url = {url:?}\n");
        }
        if !has("slaves") {
            section += "slaves = [\"postgres://app@db-2/blog\"]\n";
        }
        launch_all(&format!("the example of `{}`", entry.key), &(section + &example));
    }
}

#[test]
fn every_place_names_the_oldest_rust() {
    let manifest: toml::Table = include_str!("../Cargo.toml").parse().unwrap();
    let oldest = manifest["workspace"]["package"]["rust-version"].as_str().unwrap();
    for page in ["README.md", "docs/guide/tutorial.md"] {
        let said = Document::read(page).text;
        let said: Vec<_> = said
            .split("Rust 1.")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next())
            .collect();
        assert_eq!(said.iter().map(|minor| format!("1.{minor}")).collect::<Vec<_>>(), [oldest], "{page}");
    }
    // It takes the oldest version from `Cargo.toml`, unless a file of its own says otherwise.
    for file in ["clippy.toml", ".clippy.toml"] {
        assert!(!program::repository().join(file).exists(), "{file}");
    }
}

/// The configuration in force, as the status page shows it.
fn in_force(section: &str) -> serde_json::Value {
    let keys: toml::Table = section.parse().unwrap_or_else(|error| panic!("{section}: {error}"));
    let rocket = rocket("debug", &keys)
        .attach(postgres::Replicated::fairing())
        .mount("/status", postgres::Replicated::status_open_to_everybody());
    let client = Client::untracked(rocket).unwrap_or_else(|error| panic!("{section}: {error}"));
    let mut status: serde_json::Value = json(client.get("/status/status.json").dispatch());
    let settings = status["settings"].take();
    assert!(settings.as_array().is_some_and(|settings| settings.len() > 10), "{settings}");
    settings
}

#[test]
fn the_defaults_of_the_reference_are_those_in_force() {
    for more in ["", "consistency = \"position\"\n"] {
        let (mut of_slave, mut defaults) = (String::new(), String::new());
        for entry in reference() {
            let is_given = more.starts_with(&entry.key) || entry.key == "slaves";
            let Some(default) = entry.default().filter(|_| !is_given) else { continue };
            match entry.key.strip_prefix(OF_SLAVES) {
                Some(key) => of_slave += &format!(", {key} = {default}"),
                None => defaults += &format!("{} = {default}\n", entry.key),
            }
        }
        assert!(!of_slave.is_empty() && defaults.lines().count() > 15, "{of_slave} {defaults}");
        let section = |of_slave: &str, defaults: &str| {
            format!("url = {MASTER:?}\nslaves = [{{ url = {SLAVE:?}{of_slave} }}]\n{more}{defaults}")
        };
        assert_eq!(in_force(&section(&of_slave, &defaults)), in_force(&section("", "")), "{defaults}");
    }
}

#[test]
fn the_connections_that_the_reference_counts_are_those_at_launch() {
    logbook::open();
    let page = configuration().text;
    let chapter = page.split("\n## How many connections this opens\n").nth(1).unwrap();
    let chapter = chapter.split("\n## ").next().unwrap();
    let (sections, logs) = (snippets(chapter, "toml"), snippets(chapter, "text"));
    let ([section], [said]) = (&sections[..], &logs[..]) else {
        panic!("there is one section, and what the log says of it: {chapter}");
    };
    let defaults = rocket::Config::debug_default();
    let figment = Figment::from(defaults).merge(Toml::string(section).nested()).select("debug");
    let rocket = rocket::custom(figment).attach(postgres::Replicated::fairing());
    let _client = Client::untracked(rocket).unwrap_or_else(|error| panic!("{section}: {error}"));
    let said: Vec<_> = said.lines().map(|line| format!("INFO: {line}")).collect();
    assert_eq!(logbook::lines(&["at most", "connections to"]), said);
}

#[test]
fn migrating_takes_as_many_lines_as_the_guide_says() {
    let folder = program::repository().join("examples/coming_over");
    let [before, after] = ["before", "after"].map(|side| folder.join(side).join("src/main.rs"));
    let diff = std::process::Command::new("diff").args([&before, &after]).output().unwrap();
    let diff = String::from_utf8(diff.stdout).unwrap();
    let changed = diff.lines().filter(|line| line.starts_with('>')).count();
    let all = std::fs::read_to_string(before).unwrap().lines().count();
    let says = format!("{changed} lines of {all} change");
    assert!(migrating().contains(&says), "{says}");
}

#[test]
fn the_guide_has_the_messages_of_the_compiler() {
    let sources = [include_str!("../src/backend/mod.rs"), include_str!("../src/web/guards.rs")].concat();
    let migrating = migrating();
    for message in ["is not a pool that rocket_replicated can open", "is not a driver of rocket_replicated"] {
        assert!(sources.contains(message) && migrating.contains(message), "{message}");
    }
    // A message names the chapter, which the README leads to.
    assert!(sources.contains("Coming from rocket_db_pools"));
    let chapter = "## Coming from rocket_db_pools";
    assert!(migrating.contains(chapter) && readme().text.contains(chapter));
}

#[test]
fn the_commands_exist() {
    let root = program::repository();
    let commands = snippets(&readme().text, "sh").join("\n");
    assert!(commands.contains("cargo run -p guestbook") && commands.contains("./scripts/test"));
    for page in pages() {
        let place = page.path.display();
        for command in snippets(&page.text, "sh").iter().flat_map(|snippet| snippet.lines()) {
            for script in command.split_whitespace().filter_map(|word| word.strip_prefix("./scripts/")) {
                assert!(root.join("scripts").join(script).is_file(), "{place}: {command}");
            }
            for rest in command.split("cargo run -p ").skip(1) {
                let package = rest.split_whitespace().next().unwrap_or_default();
                let manifest = root.join("examples").join(package).join("Cargo.toml");
                assert!(manifest.is_file(), "{place}: {command}");
            }
        }
    }
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut documents = documents_in(Path::new("docs"));
    documents
        .extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "testing/README.md"].map(Document::read));
    let (mut links, mut broken) = (0, Vec::new());
    for document in &documents {
        for link in document.links() {
            links += 1;
            let problem = document.problem(&link);
            broken.extend(problem.map(|problem| format!("{}: {link}: {problem}", document.path.display())));
        }
    }
    assert!(links > 100, "{links} links in all");
    assert!(broken.is_empty(), "{broken:#?}");
}
