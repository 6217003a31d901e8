//! The page of counters, read back by the rules of the [text
//! format](https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format), which
//! are written down here once more.

use std::collections::{BTreeMap, HashMap, HashSet};

use rstest::rstest;

use super::*;
use crate::ops::{
    container_state::ContainerState,
    place::{MountPlace, Place},
};
use crate::output::stats_report::tests::{report, volume};

/// One line of the page.
#[derive(Debug)]
struct Sample {
    metric: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Reads a page as strictly as the format's description lets a scraper be.
fn scrape(page: &str) -> Vec<Sample> {
    assert!(page.is_empty() || page.ends_with('\n'), "the last line has its end");
    let (mut families, mut series) = (HashSet::new(), HashSet::new());
    let (mut helped, mut typed) = (String::new(), String::new());
    let mut samples = Vec::new();
    for line in page.lines() {
        match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
            ["#", "HELP", name, help] => {
                assert!(families.insert(name.to_owned()), "{name} comes in one piece");
                assert!(is_name(name) && !help.is_empty() && !help.contains('\\'), "{line}");
                helped = name.to_owned();
            }
            ["#", "TYPE", name, kind] => {
                assert_eq!(helped, name, "help, type, samples");
                assert_eq!(
                    kind,
                    if name.ends_with("_total") { "counter" } else { "gauge" },
                    "{name}"
                );
                typed = name.to_owned();
            }
            _ => {
                let sample = sample(line).unwrap_or_else(|| panic!("{line:?} is no sample"));
                assert_eq!(sample.metric, typed, "samples follow their head");
                assert!(
                    series.insert((typed.clone(), sample.labels.clone())),
                    "no series comes twice: {line}"
                );
                samples.push(sample);
            }
        }
    }
    samples
}

/// `name{label="value",…} number`
fn sample(line: &str) -> Option<Sample> {
    let (metric, mut rest) = line.split_once('{')?;
    let mut labels = BTreeMap::new();
    loop {
        let (name, quoted) = rest.split_once("=\"")?;
        let (value, after) = unquoted(quoted)?;
        (is_name(name) && labels.insert(name.to_owned(), value).is_none()).then_some(())?;
        rest = match after.strip_prefix(',') {
            Some(next) => next,
            None => break rest = after.strip_prefix("} ")?,
        };
    }
    let value = rest
        .parse()
        .ok()
        .filter(|_| rest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.')))?;
    is_name(metric).then(|| Sample { metric: metric.to_owned(), labels, value })
}

/// The text up to the quote that ends it, and what is behind that.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    loop {
        match characters.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(match characters.next()?.1 {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                _ => return None,
            }),
            (_, other) => value.push(other),
        }
    }
}

fn is_name(name: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    name.bytes().next().is_some_and(|first| first.is_ascii_lowercase()) && name.bytes().all(inside)
}

fn values(samples: &[Sample], metric: &str) -> HashMap<String, f64> {
    let of = |sample: &Sample| {
        (
            sample.labels.get("operation").map(String::as_str).unwrap_or_default().to_owned(),
            sample.value,
        )
    };
    samples
        .iter()
        .filter(|sample| sample.metric == format!("ecr_block_volume_{metric}"))
        .map(of)
        .collect()
}

#[test]
fn counters_are_read_by_the_rules_of_the_format() {
    let samples = scrape(&exposition(&report(vec![volume("/dev/xvda")])));
    let operations = values(&samples, "operations_total");
    assert_eq!((operations.len(), operations["read"], operations["write"]), (4, 3.0, 0.0));
    assert_eq!(values(&samples, "operation_seconds_total")["read"], 1.500_000_001);
    assert_eq!(values(&samples, "bytes_total")["read"], 4096.0);
    assert_eq!(values(&samples, "failed_operations_total")["read"], 1.0);
    assert_eq!(values(&samples, "invalid_operations_total")["read"], 2.0);
    assert_eq!(values(&samples, "size_bytes")[""], 1_048_576.0);
    assert_eq!(values(&samples, "guest_operations_total")["read"], 5.0);
    assert_eq!(values(&samples, "guest_scsi_errors_total")[""], 9.0);
    assert_eq!(values(&samples, "guest_up")[""], 1.0);
    let labels: Vec<_> =
        samples[0].labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected = [
        ("container", "c1"),
        ("device_path", "/dev/xvda"),
        ("sandbox", "s1"),
        ("volume", "0123456789abcdef"),
    ];
    assert_eq!(labels, expected);
}

#[test]
fn volumes_share_a_metrics_head_and_nothing_is_an_empty_page() {
    let mut other = volume("/dev/xvdb");
    other.id = "fedcba9876543210".into();
    let page = exposition(&report(vec![volume("/dev/xvda"), other]));
    assert_eq!(
        scrape(&page).len(),
        2 * scrape(&exposition(&report(vec![volume("/dev/xvda")]))).len()
    );
    assert_eq!(exposition(&report(Vec::new())), "");
}

#[test]
fn a_guest_that_does_not_reply_is_down() {
    let mut volume = volume("/dev/xvda");
    volume.guest = None;
    let samples = scrape(&exposition(&report(vec![volume])));
    assert_eq!(values(&samples, "guest_up")[""], 0.0);
    assert_eq!(values(&samples, "operations_total").len(), 4);
    assert!(samples.iter().all(|sample| !sample.metric.contains("guest_operations")));
}

#[test]
fn a_paused_container_is_said_to_be_paused() {
    let paused =
        VolumeStats { container_state: Some(ContainerState::Paused), ..volume("/dev/xvda") };
    let samples = scrape(&exposition(&report(vec![paused, volume("/dev/xvdb")])));
    let states: Vec<_> = samples
        .iter()
        .filter(|sample| sample.metric == "ecr_block_volume_container_state")
        .map(|sample| (sample.labels["device_path"].as_str(), sample.labels["state"].as_str()))
        .collect();
    assert_eq!(states, [("/dev/xvda", "paused")]);
}

#[rstest]
#[case("/dev/a\\b\"c\nd")]
#[case("/dev/x\"} 1\n# HELP evil x")]
#[case("/dev/a{b}=c,d é # 1\\")]
#[case("\\n\\\\n\n")]
fn no_path_breaks_out_of_its_label(#[case] path: &str) {
    let samples = scrape(&exposition(&report(vec![volume(path)])));
    assert_eq!(samples.len(), scrape(&exposition(&report(vec![volume("/dev/xvda")]))).len());
    assert!(samples.iter().all(|sample| sample.labels["device_path"] == path));
}

#[test]
fn the_use_of_a_file_system_has_the_names_of_kubelet() {
    let mut mounted = volume("");
    mounted.place =
        Place::Mount(MountPlace { mount_path: "/data".into(), ..MountPlace::default() });
    mounted.file_system = Some(FileSystemUse {
        capacity_bytes: 1000,
        used_bytes: 600,
        available_bytes: 300,
        inodes: 10,
        inodes_used: 3,
        inodes_free: 7,
        ..FileSystemUse::default()
    });
    let page = exposition(&report(vec![volume("/dev/xvda"), mounted]));
    let samples = scrape(&page);
    for (name, value) in [
        ("capacity_bytes", 1000.0),
        ("used_bytes", 600.0),
        ("available_bytes", 300.0),
        ("inodes", 10.0),
        ("inodes_used", 3.0),
        ("inodes_free", 7.0),
        ("file_system_read_only", 0.0),
    ] {
        let name = format!("ecr_block_volume_{name}");
        let of: Vec<_> = samples.iter().filter(|sample| sample.metric == name).collect();
        assert_eq!(of.len(), 1, "{name}: a device has none");
        assert!((of[0].value - value).abs() < 0.5, "{name}: {of:?}");
        assert_eq!(of[0].labels["mount_path"], "/data");
        assert!(!of[0].labels.contains_key("device_path"));
    }
}

#[test]
fn a_file_system_that_counts_no_inodes_has_no_metric_of_them() {
    let mut mounted = volume("");
    mounted.file_system = Some(FileSystemUse::default());
    let page = exposition(&report(vec![mounted]));
    assert!(page.contains("capacity_bytes{") && !page.contains("inodes"), "{page}");
}

#[test]
fn in_open_metrics_a_metric_has_no_suffix_and_a_volume_its_own_labels() {
    let all = [volume("a")];
    let text = page(&all, TextFormat::OpenMetrics, &|_| vec![("name", "a \"b\"".to_owned())]);
    let total = "ecr_block_volume_operations";
    assert!(text.contains(&format!("# TYPE {total} counter\n{total}_total{{")), "{text}");
    assert!(text.contains(r#",name="a \"b\"",operation="read"} "#), "{text}");
}
