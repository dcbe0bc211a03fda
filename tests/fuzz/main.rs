//! The fuzz targets on a stable compiler: every file of the corpora, then mutations of them for a while.
//!
//! `FUZZ_SECONDS=n` gives each target so long; targets run side by side, one a processor. What was found once is a file
//! of its corpus, and so is run each time. Coverage guides `make fuzz`, which wants a nightly compiler.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use farrier::storm::random::Stream;
use targets::{TARGETS, Target};

mod targets;

const SECONDS: u64 = 10;
/// Checked in with the sources, so they stay small.
const FILE_BYTES_MAX: u64 = 4096;
const CORPORA_BYTES_MAX: u64 = 1024 * 1024;
/// A mutation may grow its seed, but not for ever.
const INPUT_BYTES_MAX: usize = 8192;
/// A target that takes longer than this for one input has a problem with it; debug builds on busy machines included.
const INPUT_TIME_MAX: Duration = Duration::from_secs(20);

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

/// By name of the file.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = corpora().join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).expect("a file"))).collect()
}

/// Runs one input; a failure leaves the input as a file and names it.
fn feed((name, target): Target, input: &[u8], origin: &str) -> Result<(), String> {
    let began = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
    if outcome.is_ok() && began.elapsed() <= INPUT_TIME_MAX {
        return Ok(());
    }
    let why = match outcome {
        Ok(()) => format!("took {:?}", began.elapsed()),
        Err(panic) => match panic.downcast::<String>() {
            Ok(said) => *said,
            Err(panic) => panic.downcast_ref::<&str>().copied().unwrap_or("panicked").to_owned(),
        },
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    let path = folder.join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).and_then(|()| fs::write(&path, input)).expect("the input is kept");
    Err(format!(
        "{name}, {origin}: {why}\n  the input is {}; put it into tests/fuzz/corpus/{name}",
        path.display()
    ))
}

/// What libFuzzer does, without knowing what came of it.
fn mutate(random: &mut Stream, seeds: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
    let below = |random: &mut Stream, bound: usize| (random.next_u64() % bound.max(1) as u64) as usize;
    let mut input = seeds[below(random, seeds.len())].1.clone();
    for _ in 0..=below(random, 6) {
        let at = below(random, input.len() + 1);
        let longest = 1 << below(random, 7);
        let length = below(random, longest).min(input.len() - at);
        match below(random, 8) {
            0 if at < input.len() => input[at] ^= 1 << below(random, 8),
            1 if at < input.len() => input[at] = random.next_u64() as u8,
            2 if at < input.len() => input[at] = [0, 1, 4, 127, 128, 254, 255][below(random, 7)],
            3 => drop(input.drain(at..at + length)),
            4 => {
                let copy = input[at..at + length].to_vec();
                let to = below(random, input.len() + 1);
                input.splice(to..to, copy);
            }
            5 => {
                let other = &seeds[below(random, seeds.len())].1;
                let from = below(random, other.len() + 1);
                let piece = other[from..].iter().take(1 + below(random, 64)).copied();
                input.splice(at..at + length, piece);
            }
            6 => {
                let number = random.next_u64();
                input.splice(at..at, number.to_be_bytes().into_iter().take(1 + below(random, 8)));
            }
            _ => {
                let byte = random.next_u64() as u8;
                input.splice(at..at, std::iter::repeat_n(byte, length));
            }
        }
        input.truncate(INPUT_BYTES_MAX);
    }
    input
}

fn run(target: Target, long: Duration) -> Result<usize, String> {
    let seeds = corpus(target.0);
    assert!(!seeds.is_empty(), "{} has no corpus", target.0);
    let began = Instant::now();
    for (path, input) in &seeds {
        feed(target, input, &path.display().to_string())?;
    }
    // Another seed each day finds more than the same each time; it is told with the failure, as is the input.
    let today = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut random = Stream::new(today.as_secs() / 86_400, target.0.len() as u64);
    let mut runs = seeds.len();
    while began.elapsed() < long {
        feed(target, &mutate(&mut random, &seeds), "mutated")?;
        runs += 1;
    }
    Ok(runs)
}

#[test]
fn s_16_nothing_that_comes_in_breaks_anything() {
    let seconds = std::env::var("FUZZ_SECONDS").map_or(SECONDS, |text| text.parse().expect("FUZZ_SECONDS=n"));
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    // One at a time says which of them it was.
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(target) = TARGETS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let began = Instant::now();
                    match run(*target, Duration::from_secs(seconds)) {
                        Ok(runs) => println!("{:<14} {runs:>9} inputs in {:?}", target.0, began.elapsed()),
                        Err(failure) => failures.lock().expect("failures").push(failure),
                    }
                }
            });
        }
    });
    std::panic::set_hook(quiet);
    let failures = failures.into_inner().expect("failures");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn corpora_are_small_and_each_has_its_target() {
    let mut total = 0;
    for entry in fs::read_dir(corpora()).expect("the corpora") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        assert!(TARGETS.iter().any(|(target, _)| *target == name), "{name} is no target");
        for (path, input) in corpus(&name) {
            let bytes = input.len() as u64;
            assert!(bytes <= FILE_BYTES_MAX, "{} has {bytes} bytes", path.display());
            total += bytes;
        }
    }
    assert!(total <= CORPORA_BYTES_MAX, "{total} bytes");
}

/// Every target can be run with coverage as well.
#[test]
fn each_target_is_one_of_cargo_fuzz() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml"));
    let manifest = manifest.expect("fuzz/Cargo.toml");
    for (target, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is not in fuzz/Cargo.toml");
    }
}
