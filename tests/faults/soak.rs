//! R-12, as long as one likes: `make soak MINUTES=n`. Leases, downloads and questions side by side, a tenth of the DHCP
//! messages malformed; memory, descriptors and latency are sampled, drawn, and must not drift.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::load::{Model, POOL, plug_relay, under_load};
use crate::support::{TestBed, in_namespace, pattern};

const RATE: f64 = 200.0;
const MALFORMED: f64 = 0.1;
/// Share that the end may differ from the beginning.
const DRIFT_MAX: f64 = 0.05;
/// So that a soak of a minute has something to compare.
const SAMPLES_MIN: usize = 60;

#[derive(Clone, Copy, Debug)]
struct Sample {
    at_secs: f64,
    memory_kib: f64,
    descriptors: f64,
    latency_ms: f64,
}

fn memory_kib(pid: i32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the appliance runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn sample(bed: &TestBed, model: &Model, began: Instant) -> Sample {
    let pid = bed.server_pid();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count();
    let mut latencies = std::mem::take(&mut model.book().latencies);
    latencies.sort_by(f64::total_cmp);
    Sample {
        at_secs: began.elapsed().as_secs_f64(),
        memory_kib: memory_kib(pid),
        descriptors: descriptors as f64,
        latency_ms: latencies.get(latencies.len() / 2).copied().unwrap_or(0.0),
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

type Pick = fn(&Sample) -> f64;
const SERIES: [(&str, Pick); 3] = [
    ("memory, KiB", |sample| sample.memory_kib),
    ("open descriptors", |sample| sample.descriptors),
    ("REQUEST to ACK, ms (median)", |sample| sample.latency_ms),
];

/// Medians of the second and the last fifth: the first is warming up.
fn ends(samples: &[Sample], pick: Pick) -> (f64, f64) {
    let fifth = samples.len() / 5;
    let early = median(samples[fifth..2 * fifth].iter().map(pick));
    let late = median(samples[samples.len() - fifth..].iter().map(pick));
    (early, late)
}

fn draw(samples: &[Sample]) -> String {
    let (width, height) = (900.0, 170.0);
    let last = samples.last().map_or(1.0, |sample| sample.at_secs.max(1.0));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n",
        width + 20.0,
        SERIES.len() as f64 * (height + 40.0)
    );
    for (number, (name, pick)) in SERIES.iter().enumerate() {
        let top = number as f64 * (height + 40.0) + 25.0;
        let most = samples.iter().map(pick).fold(1e-9, f64::max) * 1.1;
        let points: Vec<String> = samples
            .iter()
            .map(|sample| {
                let (x, y) =
                    (sample.at_secs / last * width + 10.0, top + height - pick(sample) / most * height);
                format!("{x:.1},{y:.1}")
            })
            .collect();
        let (early, late) = ends(samples, *pick);
        let _ = write!(
            svg,
            "<text x=\"10\" y=\"{:.0}\">{name}: {early:.1} early, {late:.1} late, {:.0} min</text>\n\
             <rect x=\"10\" y=\"{top}\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#999\"/>\n\
             <polyline fill=\"none\" stroke=\"#06c\" points=\"{}\"/>\n",
            top - 6.0,
            last / 60.0,
            points.join(" ")
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Where the picture goes: target/, or wherever SOAK_OUT says.
fn out() -> PathBuf {
    std::env::var_os("SOAK_OUT")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from)
}

#[test]
fn r_12_soak() {
    let minutes: f64 =
        std::env::var("SOAK_MINUTES").map_or(0.05, |text| text.parse().expect("SOAK_MINUTES: a number"));
    let is_soak = std::env::var_os("SOAK_MINUTES").is_some();
    in_namespace("soak::r_12_soak", || {
        let mut bed = TestBed::new(POOL);
        bed.publish("metal", &pattern(1 << 20), &pattern(4 << 20));
        bed.quiet = true;
        bed.is_captured = false;
        bed.start_server();
        let relay = plug_relay(&mut bed);
        let loader = bed.plug("02:00:00:00:0c:01");
        loader.boot_udhcpc();
        let ended = AtomicBool::new(false);
        let duration = Duration::from_secs_f64(minutes * 60.0);
        let mut samples = Vec::new();
        let (acks, exchanges) = std::thread::scope(|scope| {
            // Downloads by TFTP and by HTTP, one after another, and an operator who looks.
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    loader.output(
                        "curl",
                        &["-s", "-o", "/dev/null", "--max-time", "20", "http://192.168.77.2/boot.ipxe"],
                    );
                    loader.output(
                        "busybox",
                        &["tftp", "-g", "-l", "/dev/null", "-r", "undionly.kpxe", "192.168.77.2"],
                    );
                    bed.farrier(&["status"]);
                    std::thread::park_timeout(Duration::from_millis(100));
                }
            });
            let done = under_load(&relay, RATE, MALFORMED, |model| {
                let began = Instant::now();
                let wanted = if is_soak { SAMPLES_MIN } else { 10 };
                let every = (duration / wanted as u32).min(Duration::from_secs(5));
                while began.elapsed() < duration {
                    std::thread::park_timeout(every);
                    samples.push(sample(&bed, model, began));
                }
                model.compare(&bed);
                let book = model.book();
                (book.acks, book.exchanges)
            });
            ended.store(true, Ordering::SeqCst);
            done
        });
        assert!(acks > 0 && !bed.log().contains("panicked"));
        let out = out();
        fs::create_dir_all(&out).expect("a place for the picture");
        fs::write(out.join("soak.svg"), draw(&samples)).expect("the picture");
        let mut summary =
            format!("{minutes} min, {exchanges} exchanges, {acks} acknowledged, {} samples\n", samples.len());
        let mut drifted = Vec::new();
        for (name, pick) in SERIES {
            let (early, late) = ends(&samples, pick);
            let drift = (late - early) / early.max(1e-9);
            let _ = writeln!(summary, "{name}: {early:.2} early, {late:.2} late, {:+.1} %", drift * 100.0);
            // Of latency only more is worse, and other programs on the machine are in it.
            if drift > DRIFT_MAX && !name.contains("ms") {
                drifted.push(name);
            }
        }
        fs::write(out.join("soak.txt"), &summary).expect("the summary");
        println!("{summary}");
        // Seconds tell nothing about drift: a short run checks that all of this works.
        assert!(!is_soak || drifted.is_empty(), "more than 5 %: {drifted:?}\n{summary}");
    });
}
