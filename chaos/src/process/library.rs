//! The scenarios that come with the program.

use super::scenario::Scenario;

macro_rules! scenarios {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../scenarios/", $name, ".toml")))),*]
    };
}

/// By name, in the order in which they are best tried.
const ALL: &[(&str, &str)] = scenarios![
    "calm",
    "leader_killed",
    "follower_killed",
    "master_killed",
    "all_killed",
    "leader_paused",
    "follower_paused",
    "restart",
    "rolling_restart",
    "leader_isolated",
    "minority_partitioned",
    "majority_partitioned",
    "one_way",
    "bridge",
    "shattered",
    "late_network",
    "narrow_network",
    "resets",
    "full_disk",
    "disks_fill",
    "slow_disk",
    "clock_skew",
    "clock_jump",
    "moved",
    "old_copy",
    "clone",
    "bitrot",
    "truncated",
    "refounded",
    "members",
    "transfers",
    "churn",
    "compaction",
    "five_nodes",
    "opening_hours",
    "storm",
    "hostile",
];

/// Every scenario; one that cannot be read is a bug that a test finds.
pub(super) fn all() -> Result<Vec<Scenario>, String> {
    ALL.iter().map(|(name, text)| Scenario::parse(text).map_err(|why| format!("{name}.toml: {why}"))).collect()
}

/// A scenario by its name, or from a file.
pub(super) fn find(what: &str) -> Result<Scenario, String> {
    if let Some((_, text)) = ALL.iter().find(|(name, _)| *name == what) {
        return Scenario::parse(text).map_err(|why| format!("{what}.toml: {why}"));
    }
    if !what.ends_with(".toml") {
        return Err(format!("there is no scenario {what}: see `chaos list`, or name a .toml file"));
    }
    let text = std::fs::read_to_string(what).map_err(|error| format!("{what}: {error}"))?;
    Scenario::parse(&text).map_err(|why| format!("{what}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_file_is_a_scenario_of_its_name_and_in_the_list() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        let names: BTreeSet<String> = all().unwrap().into_iter().map(|scenario| scenario.name).collect();
        assert_eq!(names, files);
        assert!(ALL.iter().all(|(name, text)| Scenario::parse(text).unwrap().name == *name));
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert!(find("nothing").unwrap_err().contains("nothing"));
        assert!(find("/nowhere/x.toml").unwrap_err().contains("/nowhere/x.toml"));
    }
}
