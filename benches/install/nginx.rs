//! The peer's server: nginx with sendfile, of one directory, ended with this value.

use std::fs;
use std::net::{SocketAddrV4, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Nginx(Child);

impl Nginx {
    /// Serves `place/www`.
    pub fn start(place: &Path, listen: SocketAddrV4) -> Nginx {
        let configuration = place.join("nginx.conf");
        let at = place.display();
        let text = format!(
            "daemon off; worker_processes 2; pid {at}/nginx.pid; error_log {at}/error.log; user root;\n\
             events {{}}\n\
             http {{ access_log off; sendfile on; keepalive_requests 1000000;\n\
             client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; \
             scgi_temp_path {at}/s;\n\
             server {{ listen {listen}; root {at}/www; }} }}\n"
        );
        fs::write(&configuration, text).expect("a file");
        let child = Command::new("/usr/sbin/nginx")
            .arg("-c")
            .arg(&configuration)
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx: package nginx-light");
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(listen).is_err() {
            assert!(Instant::now() < deadline, "nginx does not listen");
            std::thread::yield_now();
        }
        Nginx(child)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGQUIT to the master ends its workers as well.
        if let Ok(id) = i32::try_from(self.0.id()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGQUIT);
        }
        let _ = self.0.wait();
    }
}
