//! What the server says of itself in `postmaster.pid`.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// The lines of `postmaster.pid` that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PidFile {
    pub pid: i32,
    pub socket_dir: PathBuf,
    /// The server has finished its recovery and accepts connections.
    pub is_ready: bool,
}

impl PidFile {
    pub fn path(cluster: &Path) -> PathBuf {
        cluster.join("postmaster.pid")
    }

    /// None when the file is absent or half written.
    pub fn read(cluster: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(Self::path(cluster)).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let pid = lines.next()?.trim().parse().ok()?;
        let socket_dir = PathBuf::from(lines.nth(3)?);
        let is_ready = lines.nth(2).is_some_and(|status| status.trim() == "ready");
        Some(Self { pid, socket_dir, is_ready })
    }
}

/// Whether process `pid` is the server of this cluster. A number alone proves nothing: it may have been
/// given to another process since. The command line is looked at because everybody may read it, while
/// the working folder of another account's process is closed even to root in many containers.
pub fn is_postmaster_of(pid: i32, cluster: &Path) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        line.split(|&byte| byte == 0).any(|argument| argument == cluster.as_os_str().as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_line_tells_whether_the_server_is_ready() {
        let text = |status: &str| {
            format!("123\n/d/postgres\n1700000000\n5432\n/d/socket\n\n  1234  5\n{status}\n")
        };
        let ready = PidFile::parse(&text("ready   ")).unwrap();
        assert_eq!((ready.pid, ready.is_ready), (123, true));
        assert_eq!(ready.socket_dir, Path::new("/d/socket"));
        assert!(!PidFile::parse(&text("starting")).unwrap().is_ready);
        assert_eq!(PidFile::parse("123\n"), None);
    }
}
