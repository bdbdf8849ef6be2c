//! `roomlog bench`: a short run measures what it says, whatever the figures are on this machine.

use std::process::Command;

#[test]
fn the_media_bench_measures_a_real_worker() {
    let run = Command::new(env!("CARGO_BIN_EXE_roomlog"))
        .args(["bench", "media", "--json", "--seconds", "1", "--case", "light", "--no-pin"])
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&run.stdout).expect("one JSON object");
    let case = &report["cases"][0];
    let number = |name: &str| case[name].as_f64().unwrap_or_else(|| panic!("no {name} in {report}"));
    assert_eq!((number("consumers"), number("pps")), (50.0, 120.0));
    // 6 000 packets in a second, but for a machine that is busy with other tests.
    assert!(number("delivered") > 0.9 && number("delivered") <= 1.0, "{report}");
    assert!(number("packets_per_s") > 3_000.0, "{report}");
    assert!(number("authenticated") >= 0.01, "{report}");
    assert!(number("us_per_packet") > 0.1 && number("us_per_packet") < 10_000.0, "{report}");
    assert!(number("delay_p50_ms") > 0.0 && number("delay_p99_ms") >= number("delay_p50_ms"), "{report}");
    assert!(report["generator_ceiling_pps"].as_u64() > Some(1_000), "{report}");
    let floor = |name: &str| report["floor"][name].as_f64();
    assert!(floor("gso_us") > Some(0.05) && floor("gso_us") < floor("send_us"), "{report}");
    let memory = report["bytes_per_consumer"].as_u64();
    assert!(memory > Some(1_000) && memory < Some(10_000_000), "{report}");
    assert!(said.contains("packets/s at most"), "the generator's own ceiling comes first: {said}");
}

#[test]
fn the_token_bench_asks_a_whole_nuve_and_a_bare_route() {
    let run = Command::new(env!("CARGO_BIN_EXE_roomlog"))
        .args(["bench", "token", "--json", "--seconds", "1", "--rooms", "40"])
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&run.stdout).expect("one JSON object");
    let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("no {name} in {report}"));
    assert_eq!(number("rooms"), 40.0);
    assert!(number("per_s") > 10.0 && number("bare_per_s") > 10.0, "{report}");
    let ratio = number("per_s") / number("bare_per_s");
    assert!((number("ratio") - ratio).abs() < 0.01, "{report}");
    assert!(number("p50_ms") > 0.0 && number("p99_ms") >= number("p50_ms"), "{report}");
}

#[test]
fn the_join_bench_makes_whole_joins_and_says_what_each_step_costs() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = Command::new(env!("CARGO_BIN_EXE_roomlog"))
        .args(["bench", "join", "--json", "--clients", "8", "--data"])
        .arg(folder.path())
        .arg("--memory")
        .arg(folder.path())
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&run.stdout).expect("one JSON object");
    assert_eq!((report["log"].as_str(), report["clients"].as_u64()), (Some("sled"), Some(8)));
    let all = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("no {name} in {report}"));
    assert!(all("joins_per_s") > 0.1 && all("alone_ms") > 0.1, "{report}");
    assert!(all("cpu_ms") > 0.1 && all("client_cpu_ms") > 0.0, "{report}");
    assert!(report["memory"]["joins_per_s"].as_f64() > Some(0.1), "{report}");
    let steps = report["steps"].as_array().expect("steps");
    let names: Vec<_> = steps.iter().filter_map(|step| step["step"].as_str()).collect();
    assert_eq!(names, ["token", "socket", "capabilities", "transports", "join"]);
    for step in steps {
        let number = |name: &str| step[name].as_f64().unwrap_or_else(|| panic!("no {name} in {report}"));
        assert!(number("p50_ms") > 0.0 && number("p99_ms") >= number("p50_ms"), "{report}");
        assert!(number("sent_bytes") > 50.0 && number("received_bytes") > 50.0, "{report}");
        assert!(number("cpu_ms") > 0.0, "{report}");
        // A room of four is made, placed and opened once; else each step is one commit, of the transports two.
        let least = match step["step"].as_str() {
            Some("token") => 0.25,
            Some("transports") => 2.0,
            _ => 1.0,
        };
        assert!(number("commits") >= least && number("commits") <= least + 1.0, "{report}");
        assert!(number("log_bytes") >= number("commits") * 100.0, "{report}");
    }
    assert!(
        std::fs::read_dir(folder.path()).expect("it is there").next().is_none(),
        "it leaves nothing behind"
    );
}
