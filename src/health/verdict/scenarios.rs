//! What becomes of servers that say this and that: `tests/scenarios/*.toml`, each of which tells a story that an operator
//! can read, played to the judge.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::*;
use crate::config::UnknownLag;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// The story in a few words.
    title: String,
    /// The names of all servers, that of `url` first.
    servers: Vec<String>,
    #[serde(default)]
    follow_promotion: bool,
    /// In seconds.
    max_lag: u64,
    steps: Vec<Step>,
}

/// A time during which the servers say the same.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// The first and the last second. Each server is looked at once in each second.
    seconds: [u64; 2],
    /// By name. A server that is not named says what it said before.
    #[serde(default)]
    says: BTreeMap<String, String>,
    /// The states at the end, by name.
    then: BTreeMap<String, String>,
    /// The server that takes the writes at the end, or "none".
    writes: Option<String>,
}

/// Reads "takes writes, timeline 2, at 110, instance b, system 8", "in recovery, …", "no answer" or "full".
fn finding(said: &str) -> (Finding, Option<Instance>) {
    let mut observed = Observation { system: Some(7), ..Observation::default() };
    let (mut timeline, mut lsn, mut instance) = (1, None, None);
    for fact in said.split(", ") {
        let words: Vec<_> = fact.split(' ').collect();
        match words[..] {
            ["no", "answer"] => return (Finding::Failed, None),
            ["full"] => return (Finding::Full, None),
            ["takes", "writes"] => observed.role = ReportedRole::Master,
            ["in", "recovery"] => observed.role = ReportedRole::Slave,
            ["timeline", number] => timeline = number.parse().unwrap(),
            ["at", number] => lsn = Some(number.parse().unwrap()),
            ["instance", name] => instance = Some(Instance::of(name)),
            ["system", number] => observed.system = Some(number.parse().unwrap()),
            _ => panic!("{fact:?} of {said:?} is not understood"),
        }
    }
    observed.position = lsn.map(|lsn| Position::Lsn { timeline, lsn });
    (Finding::Observed(observed), instance)
}

fn play(file: &str, scenario: &Scenario) {
    let id = |name: &str| {
        let place = scenario.servers.iter().position(|server| server == name);
        ServerId(place.unwrap_or_else(|| panic!("{file}: no server is called {name:?}")) as u32)
    };
    let checks = Checks {
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        max_lag: Some(Duration::from_secs(scenario.max_lag)),
        unknown_lag: UnknownLag::Unexpected,
        follow_promotion: scenario.follow_promotion,
    };
    let servers: Vec<_> = scenario.servers.iter().map(|name| id(name)).collect();
    let (mut verdicts, mut master) = (Verdicts::new(servers[0], &servers, checks), servers[0]);
    let (begin, mut says, mut states) = (Instant::now(), BTreeMap::new(), BTreeMap::new());
    for step in &scenario.steps {
        says.extend(step.says.iter().map(|(name, said)| (id(name), said.as_str())));
        let [first, last] = step.seconds;
        for second in first..=last {
            for (server, said) in &says {
                let (finding, instance) = finding(said);
                match finding {
                    Finding::Failed => drop(states.insert(*server, NodeState::Down)),
                    _ if instance.is_some() => verdicts.record_instance(*server, instance),
                    _ => {}
                }
                let at = begin + Duration::from_secs(second);
                let verdict = verdicts.judge(*server, SlaveLog::Masters, at, &finding);
                master = verdict.new_master.unwrap_or(master);
                states.extend(verdict.states.iter().map(|(server, state, _)| (*server, *state)));
            }
        }
        let place = format!("{file}: {}, second {last}", scenario.title);
        for (name, state) in &step.then {
            let found = states.get(&id(name)).map(|state| state.as_str());
            assert_eq!(found, Some(state.as_str()), "{place}: {name}");
        }
        if let Some(writes) = &step.writes {
            let takes_writes = states.get(&master) == Some(&NodeState::Up);
            let found = if takes_writes { scenario.servers[master.0 as usize].as_str() } else { "none" };
            assert_eq!(found, writes, "{place}: writes");
        }
    }
}

#[test]
fn the_stories_end_as_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut played = 0;
    for file in folder.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let scenario = toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        play(name, &scenario);
        played += 1;
    }
    assert!(played >= 12, "{played} stories");
}
