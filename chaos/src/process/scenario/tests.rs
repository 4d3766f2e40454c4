use super::*;

const GOOD: &str = r#"
name = "a_name"
explained = "What it shows."
duration_s = 30

[load]
ws = 2

[[fault]]
at_s = 5
for_s = 2.5
kind = "kill"
who = "leader"
times = 3
every_s = 5
"#;

#[test]
fn a_scenario_is_read_with_its_defaults() {
    let scenario = Scenario::parse(GOOD).unwrap();
    assert_eq!((scenario.nodes, scenario.load.ws, scenario.load.socketio), (3, 2, Workload::default().socketio));
    assert_eq!((scenario.faults[0].kind, scenario.faults[0].who), (FaultKind::Kill, Some(FaultScope::Leader)));
    assert_eq!(scenario.outline(), "kill leader");
    assert_eq!(scenario.slo, Slo::default());
}

#[test]
fn what_is_wrong_is_named() {
    for (from, to, says) in [
        ("duration_s = 30", "duration_s = 30\ncolour = 1", "`colour`"),
        ("duration_s = 30", "duration_s = \"long\"", "line 4"),
        ("duration_s = 30", "duration_s = 0", "duration_s"),
        ("duration_s = 30", "duration_s = 30\nnodes = 4", "nodes"),
        ("duration_s = 30\n", "", "`duration_s`"),
        ("\"a_name\"", "\"A name\"", "name"),
        ("\"What it shows.\"", "\" \"", "explained"),
        ("ws = 2", "ws = 2\npace = 1", "`pace`"),
        ("ws = 2", "ws = 0\nsocketio = 0\npolling = 0", "load.ws"),
        ("ws = 2", "writes = 900\nreads = 200", "together"),
        ("ws = 2", "records = 0", "load.records"),
        ("ws = 2", "queues = 21", "load.queues"),
        ("ws = 2", "large_percent = 101", "load.large_percent"),
        ("ws = 2", "inserts = 1001", "load.inserts"),
        ("[load]", "[attack]\nsockets = 1\n[load]", "attack.sockets"),
        ("[load]", "[attack]\nhonest_s = 0\n[load]", "attack.honest_s"),
        ("[load]", "[attack]\nmemory_percent = 1\n[load]", "attack.memory_percent"),
        ("[load]", "[attack]\ncolour = 1\n[load]", "`colour`"),
        ("[load]", "[slo]\ngap_ms = 1\n[load]", "slo.gap_ms"),
        ("[load]", "[settings]\nkeep_change = 1\n[load]", "settings.keep_change"),
        ("[load]", "[settings]\nnode_id = 1\n[load]", "settings.node_id"),
        ("\"kill\"", "\"kil\"", "`kil`"),
        ("\"leader\"", "\"boss\"", "who: \"boss\""),
        ("\"leader\"", "9", "fault 1 (kill): who: there is no node 9"),
        ("\"leader\"", "0", "who: 0"),
        ("at_s = 5", "at_s = 31", "fault 1 (kill): at_s"),
        ("at_s = 5", "at_s = -1", "at_s"),
        ("for_s = 2.5", "for_s = 2.5\nlatency_ms = 3", "fault 1 (kill): latency_ms"),
        ("for_s = 2.5", "for_s = 2.5\nhow = 3", "`how`"),
        ("every_s = 5", "", "every_s"),
        ("times = 3", "times = 0", "times"),
        ("\"kill\"\nwho = \"leader\"", "\"old_copy\"\nwho = \"all\"", "fault 1 (old_copy): who: all"),
        ("\"kill\"\nwho = \"leader\"", "\"refounded\"\nwho = \"all\"", "who: all"),
        ("\"kill\"\nwho = \"leader\"\ntimes = 3", "\"truncated\"\ntimes = 14", "more than 16 nodes"),
        ("[load]", "[[fault]]\nat_s = 1\nkind = \"moved\"\n[[fault]]\nat_s = 1\nkind = \"reset\"\n[load]", "moved"),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let error = Scenario::parse(&GOOD.replacen(from, to, 1)).unwrap_err();
        assert!(error.contains(says) && !error.contains('\n'), "{to}: {error}");
    }
}

#[test]
fn the_seed_says_when_faults_strike() {
    let scenario = Scenario::parse(GOOD).unwrap();
    let of = |seed| scenario.timed(&mut Rng::new(seed));
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
    assert_eq!(of(1).len(), 3);
    let slow = scenario.clone().lasting(60.0).unwrap();
    assert!(slow.timed(&mut Rng::new(1))[0].at >= Duration::from_secs(10));
    assert!(scenario.lasting(0.0).unwrap_err().contains("--seconds"));
}
