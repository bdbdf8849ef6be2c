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
