//! A strict reader of the exposition format: what it accepts, every scraper does.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Series by name and labels, in the order of the text.
pub(in crate::operator) type Series = BTreeMap<String, f64>;

/// Reads the whole text, or says what is wrong with it.
pub(in crate::operator) fn parse(text: &str) -> Result<Series, String> {
    let (mut families, mut helped) = (BTreeMap::<String, String>::new(), BTreeSet::new());
    let mut series = Series::new();
    let mut current: Option<String> = None;
    if !text.ends_with('\n') {
        return Err("the last line has no end".to_owned());
    }
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or(format!("no help: {line}"))?;
            if help.is_empty() || !helped.insert(name.to_owned()) {
                return Err(format!("help twice or empty: {line}"));
            }
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or(format!("no type: {line}"))?;
            let known = ["counter", "gauge", "histogram"].contains(&kind);
            if !known || !is_name(name) || families.insert(name.to_owned(), kind.to_owned()).is_some() {
                return Err(format!("type: {line}"));
            }
            if kind == "counter" && !name.ends_with("_total") {
                return Err(format!("a counter ends in _total: {line}"));
            }
            current = Some(name.to_owned());
        } else {
            let family = current.as_deref().ok_or(format!("no family: {line}"))?;
            let (name, labels, value) = sample(line)?;
            let suffix = name.strip_prefix(family).ok_or(format!("outside its family {family}: {line}"))?;
            let allowed: &[&str] =
                if families[family] == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            if !allowed.contains(&suffix) {
                return Err(format!("{suffix} in {family}: {line}"));
            }
            if value < 0.0 || series.insert(format!("{name}{labels}"), value).is_some() {
                return Err(format!("negative or twice: {line}"));
            }
        }
    }
    let untold = families.keys().find(|name| !helped.contains(*name));
    if let Some(name) = untold {
        return Err(format!("{name} has no help"));
    }
    for name in families.iter().filter(|(_, kind)| *kind == "histogram").map(|(name, _)| name) {
        check_histogram(name, &series)?;
    }
    Ok(series)
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
        && !name.as_bytes()[0].is_ascii_digit()
}

/// Name, labels as written, value.
fn sample(line: &str) -> Result<(&str, String, f64), String> {
    let wrong = |what: &str| format!("{what}: {line}");
    let end = line.find(['{', ' ']).ok_or(wrong("no value"))?;
    let name = &line[..end];
    if !is_name(name) {
        return Err(wrong("name"));
    }
    let mut rest = &line[end..];
    let mut labels = String::new();
    if let Some(mut inside) = rest.strip_prefix('{') {
        let mut seen = BTreeSet::new();
        loop {
            let (label, after) = inside.split_once("=\"").ok_or(wrong("label"))?;
            if !is_name(label) || label.contains(':') || !seen.insert(label.to_owned()) {
                return Err(wrong("label name"));
            }
            let mut escaped = false;
            let close = after
                .char_indices()
                .find_map(|(at, c)| {
                    let closing = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    closing.then_some(at)
                })
                .ok_or(wrong("label value"))?;
            labels.push_str(&format!("{{{label}={}}}", &after[..close]));
            match after[close + 1..].strip_prefix(',') {
                Some(more) => inside = more,
                None => {
                    rest = after[close + 1..].strip_prefix('}').ok_or(wrong("closing brace"))?;
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').ok_or(wrong("space before the value"))?;
    Ok((name, labels, value.parse().map_err(|_| wrong("value"))?))
}

/// Buckets only grow, end with +Inf, and that is the count.
fn check_histogram(name: &str, series: &Series) -> Result<(), String> {
    let mut groups: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (key, count) in series.iter().filter(|(key, _)| key.starts_with(&format!("{name}_bucket"))) {
        let (labels, end) = key[name.len() + 7..].split_once("{le=").ok_or(format!("no le: {key}"))?;
        let end = end.trim_end_matches('}').replace("+Inf", "inf");
        let end = end.parse().map_err(|_| format!("le: {key}"))?;
        groups.entry(labels.to_owned()).or_default().push((end, *count));
    }
    for (labels, mut buckets) in groups {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = series.get(&format!("{name}_count{labels}")).ok_or(format!("no count: {labels}"))?;
        let grows = buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1);
        let last = buckets.last().ok_or("no bucket")?;
        if !grows
            || last.0 != f64::INFINITY
            || last.1 != *count
            || !series.contains_key(&format!("{name}_sum{labels}"))
        {
            return Err(format!("{name}{labels} does not add up: {buckets:?}"));
        }
    }
    Ok(())
}

#[test]
fn label_values_are_escaped() {
    let mut text = Text::default();
    text.sample("x", &[("a", "q\"b\\s\nn"), ("b", "")], 3);
    assert_eq!(text.0, "x{a=\"q\\\"b\\\\s\\nn\",b=\"\"} 3\n");
    let whole = format!("# HELP x A thing.\n# TYPE x gauge\n{}", text.0);
    assert_eq!(parse(&whole).unwrap().len(), 1);
}

#[test]
fn histograms_are_cumulative_and_in_seconds() {
    let tally = Tally::default();
    for micros in [40, 60, 2_000_000, 400_000_000] {
        tally.took(Timed::DhcpReply, std::time::Duration::from_micros(micros));
    }
    let mut text = Text::default();
    durations(&mut text, &tally);
    let series = parse(&text.0).unwrap();
    let of = |suffix: &str| series[&format!("farrier_duration_seconds_{suffix}")];
    assert_eq!(of("bucket{stage=dhcp-reply}{le=0.00005}"), 1.0);
    assert_eq!(of("bucket{stage=dhcp-reply}{le=0.0001}"), 2.0);
    assert_eq!(of("bucket{stage=dhcp-reply}{le=300}"), 3.0);
    assert_eq!(of("bucket{stage=dhcp-reply}{le=+Inf}"), 4.0);
    assert_eq!(of("sum{stage=dhcp-reply}"), 402.0001);
    assert_eq!(of("count{stage=store-commit}"), 0.0);
}

#[test]
fn the_reader_is_strict() {
    let good = "# HELP x_total A.\n# TYPE x_total counter\nx_total{a=\"b\"} 1\n";
    assert!(parse(good).is_ok());
    for (from, to) in [
        ("# HELP x_total A.\n", ""),
        ("counter", "counters"),
        ("x_total{", "y_total{"),
        ("a=\"b\"", "a=b"),
        ("a=\"b\"", "a=\"b\",a=\"c\""),
        (" 1\n", "\n"),
        (" 1\n", " one\n"),
        (" 1\n", " 1"),
        (" 1\n", " 1\nx_total{a=\"b\"} 2\n"),
    ] {
        assert!(parse(&good.replace(from, to)).is_err(), "{from} → {to}");
    }
}

#[test]
fn what_is_in_use_stands_beside_its_bound() {
    let (tally, mut text) = (Tally::default(), Text::default());
    let _transfers = tally.level("tftp", "sessions", 4096).take(2);
    in_use(&mut text, &tally);
    for line in [
        "farrier_in_use{service=\"tftp\",what=\"sessions\"} 2\n",
        "farrier_in_use_limit{service=\"tftp\",what=\"sessions\"} 4096\n",
    ] {
        assert!(text.0.contains(line), "{}", text.0);
    }
}
