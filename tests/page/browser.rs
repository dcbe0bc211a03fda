//! A browser of its own for each test, and what it is asked again and again.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

/// Longer than anything here takes on a busy machine; only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// What `npm` fetches; never part of the product.
const AXE: &str = "axe-core@4.14.1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// A telephone.
    Narrow,
    Wide,
}

impl Width {
    pub const BOTH: [Width; 2] = [Width::Narrow, Width::Wide];

    pub fn pixels(self) -> u32 {
        match self {
            Width::Narrow => 360,
            Width::Wide => 1920,
        }
    }
}

pub struct Browser {
    pub client: Client,
    pub width: Width,
    base: String,
    _driver: Driver,
    _profile: tempfile::TempDir,
}

/// chromedriver. Killed, it would leave its browser running; asked to end, it ends that first.
struct Driver {
    child: Child,
    port: u16,
}

impl Driver {
    fn ask_to_end(&self) -> std::io::Result<()> {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(b"GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        // It answers, and closes when it has ended.
        std::io::copy(&mut connection, &mut std::io::sink()).map(|_| ())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.ask_to_end().is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Browser {
    /// A browser for the site at `base` (`http://127.0.0.1:1234`).
    pub async fn open(base: &str, width: Width) -> Browser {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver (.ci/packages.txt names the Debian package)");
        let output = driver.stdout.take().expect("a pipe");
        let port = BufReader::new(output)
            .lines()
            .map_while(Result::ok)
            .find_map(|line| {
                line.strip_suffix('.')?.split_once("successfully on port ")?.1.parse::<u16>().ok()
            })
            .expect("chromedriver says its port");
        let driver = Driver { child: driver, port };
        let profile = tempfile::tempdir().expect("a temporary directory");
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities(width, profile.path()))
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("chromium starts");
        Browser { client, width, base: base.to_owned(), _driver: driver, _profile: profile }
    }

    pub async fn goto(&self, path: &str) {
        self.client.goto(&format!("{}{path}", self.base)).await.expect("the page loads");
    }

    /// Through the form, as a person does.
    pub async fn log_in(&self, token: &str) {
        self.goto("/").await;
        self.fill("#token", token).await;
        self.click("form.login button").await;
        self.find("body[data-live]").await;
    }

    pub async fn script(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.expect("the script runs")
    }

    /// Text of the first element, as it is seen.
    pub async fn text(&self, css: &str) -> String {
        self.find(css).await.text().await.expect("an element has text")
    }

    /// Waits for it.
    pub async fn find(&self, css: &str) -> fantoccini::elements::Element {
        match self.client.wait().at_most(PATIENCE).for_element(Locator::Css(css)).await {
            Ok(element) => element,
            Err(error) => panic!("{css}: {error}\n{}", self.script("return document.body.innerText").await),
        }
    }

    /// Waits until the script's value is true; the page is looked at in short turns. What the script looks at may not be
    /// there yet, or be about to be replaced.
    pub async fn until(&self, what: &str, script: &str) {
        let script = format!("try {{ {script} }} catch (missing) {{ return String(missing) }}");
        let waiting = async {
            while self.script(&script).await != Value::Bool(true) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!(
                "waited {PATIENCE:?} in vain: {what}: {}\n{}",
                self.script(&script).await,
                self.script("return document.body.innerText").await
            );
        }
    }

    pub async fn click(&self, css: &str) {
        self.find(css).await.click().await.unwrap_or_else(|error| panic!("{css}: {error}"));
    }

    pub async fn fill(&self, css: &str, text: &str) {
        let field = self.find(css).await;
        field.clear().await.expect("a field can be emptied");
        field.send_keys(text).await.expect("a field can be typed into");
    }

    /// `auto`, `light` or `dark`, by the page's own button.
    pub async fn theme(&self, wanted: &str) {
        for _ in 0..3 {
            if self.text("#theme").await.ends_with(wanted) {
                return;
            }
            self.click("#theme").await;
        }
        panic!("the button does not come to {wanted}");
    }

    /// Keeps a picture of what is shown.
    pub async fn screenshot(&self, name: &str) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/page-screenshots");
        std::fs::create_dir_all(&directory).expect("a directory");
        let picture = self.client.screenshot().await.expect("a picture");
        let path = directory.join(format!("{name}-{}.png", self.width.pixels()));
        std::fs::write(path, picture).expect("the picture is written");
    }

    /// What axe-core finds serious or critical, one line each; and what makes the page scroll sideways.
    pub async fn complaints(&self) -> Vec<String> {
        let source = std::fs::read_to_string(axe()).expect("axe-core");
        let script = format!(
            "{source}; const done = arguments[arguments.length - 1];
             axe.run(document, {{ resultTypes: ['violations'] }}).then(
               (found) => done(found.violations.filter((rule) => ['serious', 'critical'].includes(rule.impact))
                 .flatMap((rule) => rule.nodes.map((node) => `${{rule.id}}: ${{node.html.slice(0, 160)}}: ${{node.failureSummary}}`))),
               (error) => done([String(error)]));"
        );
        let found = self.client.execute_async(&script, Vec::new()).await.expect("axe runs");
        let mut complaints: Vec<String> = serde_json::from_value(found).expect("a list of lines");
        let wide = self
            .script("const page = document.documentElement; return page.scrollWidth - page.clientWidth")
            .await;
        if wide.as_i64() != Some(0) {
            complaints.push(format!("the page is {wide} pixels wider than its window"));
        }
        complaints
    }
}

fn capabilities(width: Width, profile: &Path) -> serde_json::Map<String, Value> {
    let height = match width {
        Width::Narrow => 2200,
        Width::Wide => 1400,
    };
    let arguments = [
        "--headless=new".to_owned(),
        "--no-sandbox".to_owned(),
        "--disable-gpu".to_owned(),
        "--disable-dev-shm-usage".to_owned(),
        "--disable-background-networking".to_owned(),
        "--disable-component-update".to_owned(),
        "--disable-sync".to_owned(),
        "--no-first-run".to_owned(),
        "--hide-scrollbars".to_owned(),
        format!("--window-size={},{height}", width.pixels()),
        format!("--user-data-dir={}", profile.display()),
    ];
    let mut options = json!({ "args": arguments });
    if width == Width::Narrow {
        // A window has a least width; a telephone has not.
        options["mobileEmulation"] =
            json!({ "deviceMetrics": { "width": width.pixels(), "height": height, "pixelRatio": 1 } });
    }
    let patience = PATIENCE.as_millis() as u64;
    let whole = json!({
        "goog:chromeOptions": options,
        "goog:loggingPrefs": { "browser": "ALL" },
        "timeouts": { "script": patience, "pageLoad": patience },
    });
    whole.as_object().cloned().unwrap_or_default()
}

/// axe-core's one file, fetched once.
fn axe() -> PathBuf {
    static FETCHED: OnceLock<PathBuf> = OnceLock::new();
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock();
    FETCHED
        .get_or_init(|| {
            let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("axe");
            let file = place.join("node_modules/axe-core/axe.min.js");
            if !file.exists() {
                std::fs::create_dir_all(&place).expect("a directory");
                let status = Command::new("npm")
                    .args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"])
                    .arg(&place)
                    .arg(AXE)
                    .status()
                    .expect("npm (.ci/packages.txt names the Debian package)");
                assert!(status.success() && file.exists(), "npm could not fetch {AXE}: {status}");
            }
            file
        })
        .clone()
}
