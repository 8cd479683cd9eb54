//! Where things live: the state of a checkout, the cache of its user, and claimed ports.
//!
//! ```text
//! <checkout>/.weirgate/<world>/     one running system: its state, logs, configuration, database
//! <cache>/weirgate/python-<hash>/   what was installed from requirements.lock, for all checkouts
//! <cache>/weirgate/ports/           claims, so that worlds of all checkouts keep out of each other's way
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::FlockOperation;

/// Overrides the cache folder.
pub const CACHE_VARIABLE: &str = "WEIRGATE_CACHE";

/// Below the ephemeral range of Linux (32768), so that no outgoing connection can sit on a port
/// while the emulator behind it is restarted.
const PORTS: std::ops::Range<u16> = 21_000..32_000;

#[derive(Clone, Debug)]
pub struct Layout {
    pub checkout: PathBuf,
    pub cache: PathBuf,
}

impl Layout {
    /// The checkout is the nearest folder upwards that holds the workspace; outside of one, the
    /// current folder.
    pub fn discover() -> Result<Self> {
        let here = std::env::current_dir().context("the current folder is gone")?;
        let checkout = here.ancestors().find(|folder| is_checkout(folder)).unwrap_or(&here);
        Ok(Self { checkout: checkout.to_owned(), cache: cache_folder()? })
    }

    pub fn worlds(&self) -> PathBuf {
        self.checkout.join(".weirgate")
    }

    /// The folder of one world. The name becomes a path and a prefix of names in the emulators.
    pub fn world(&self, name: &str) -> Result<PathBuf> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 40 || !name.chars().all(plain) {
            bail!("a world is named with 1 to 40 lower-case letters, digits and hyphens: {name:?}");
        }
        Ok(self.worlds().join(name))
    }
}

fn is_checkout(folder: &Path) -> bool {
    folder.join("Cargo.toml").is_file() && folder.join("infra/data-plane.yaml").is_file()
}

fn cache_folder() -> Result<PathBuf> {
    let named = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty());
    if let Some(folder) = named(CACHE_VARIABLE) {
        return Ok(PathBuf::from(folder));
    }
    let base = match (named("XDG_CACHE_HOME"), named("HOME")) {
        (Some(folder), _) => PathBuf::from(folder),
        (None, Some(home)) if cfg!(target_os = "macos") => {
            PathBuf::from(home).join("Library/Caches")
        }
        (None, Some(home)) => PathBuf::from(home).join(".cache"),
        (None, None) => bail!("neither HOME nor {CACHE_VARIABLE} is set: nowhere to cache"),
    };
    Ok(base.join("weirgate"))
}

/// A file lock, released when dropped and, by the kernel, when its holder dies.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl FileLock {
    /// `None`: somebody else holds it.
    pub fn try_take(path: &Path) -> Result<Option<Self>> {
        let file = open_lock(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(io::Error::from(error)).context(format!("lock {}", path.display())),
        }
    }

    /// Waits for the holder to let go.
    pub fn take(path: &Path) -> Result<Self> {
        let file = open_lock(path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .with_context(|| format!("lock {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

fn open_lock(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent() {
        create_folder(folder)?;
    }
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

/// A port nobody listens on and no other world has claimed; ours until dropped, so that an
/// emulator can be restarted on it.
#[derive(Debug)]
pub struct Port {
    pub number: u16,
    _claim: FileLock,
}

impl Port {
    pub fn claim(cache: &Path) -> Result<Self> {
        let span = PORTS.end - PORTS.start;
        let first = u16::from_le_bytes(random_bytes()?) % span;
        for step in 0..span {
            let number = PORTS.start + (first + step) % span;
            let Some(claim) = FileLock::try_take(&cache.join("ports").join(number.to_string()))?
            else {
                continue;
            };
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Ok(Self { number, _claim: claim });
            }
        }
        bail!("no free port between {} and {}", PORTS.start, PORTS.end)
    }
}

/// From the operating system: these choose ports and make passwords, never test data.
pub fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("read /dev/urandom")?;
    Ok(bytes)
}

pub fn create_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

/// Removing what is not there is fine.
pub fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {}", folder.display())),
    }
}

/// Readers see the old content or the new, never half of it.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let draft = PathBuf::from(name);
    fs::write(&draft, content)
        .and_then(|()| fs::rename(&draft, path))
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_name_cannot_leave_its_folder() {
        let layout = Layout { checkout: "/c".into(), cache: "/k".into() };
        assert_eq!(layout.world("demo-2").unwrap(), Path::new("/c/.weirgate/demo-2"));
        for name in ["", "..", "a/b", "A", "a b", &"x".repeat(41)] {
            assert!(layout.world(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn two_claims_never_share_a_port() {
        let cache = tempfile::tempdir().unwrap();
        let ports: Vec<Port> = (0..20).map(|_| Port::claim(cache.path()).unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(|port| port.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 20);
        let held = cache.path().join("ports").join(numbers[0].to_string());
        assert!(FileLock::try_take(&held).unwrap().is_none());
    }
}
