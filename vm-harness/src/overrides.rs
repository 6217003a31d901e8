//! What a caller changes in the guest's image: the agent, its policy, further files, the kernel.
//!
//! The image is built by the recipe of an image of this build, with the overrides in place of the
//! originals. It is kept under a name that is a hash of everything in it, so that a hundred tests
//! build it once.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use image_builder::image::{self, DESCRIPTION, Recipe};
use sha2::{Digest as _, Sha256};

use crate::Error;

/// Paths from which agents read their policy, by suffix: kata-agent, and the reference agent.
const POLICY_PATHS: [(&str, &str); 2] =
    [("rego", "etc/kata-opa/default-policy.rego"), ("json", "etc/agent-policy.json")];

/// Replacements in an image; none by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The agent, PID 1 at `/usr/bin/agent`. Its shared libraries come from `extra` and from this
    /// machine.
    pub agent: Option<PathBuf>,
    /// A `.rego` file replaces kata-agent's default policy, a `.json` file that of the reference
    /// agent. Use `extra` for any other path.
    pub policy: Option<PathBuf>,
    /// Directories whose files are added to the guest's root, and replace those in it.
    pub extra: Vec<PathBuf>,
    /// An unpacked kernel package, or a kernel that needs no modules.
    pub kernel: Option<PathBuf>,
}

impl Overrides {
    /// Returns the overrides without agent and policy, for an image that exists for its agent.
    #[must_use]
    pub fn without_agent(&self) -> Self {
        Self { agent: None, policy: None, ..self.clone() }
    }

    /// Builds the image in `base` with these overrides below `directory`, and returns its path;
    /// `base` itself if there are none.
    pub(crate) fn image(&self, base: &Path, directory: &Path) -> Result<PathBuf, Error> {
        if *self == Self::default() {
            return Ok(base.to_owned());
        }
        let description = base.join(DESCRIPTION);
        let text = fs::read(&description).map_err(Error::file("read", &description))?;
        let built = image::read(base).ok_or_else(|| Error::Missing {
            what: format!("the recipe of {}", base.display()),
            remedy: "it was built by another version: run ci/build",
        })?;
        let recipe = self.apply(built.recipe)?;
        // If two tests need the same image at the same time, one builds it and the other waits.
        let lock = directory.join("own.lock");
        let lock = fs::File::create(&lock).map_err(Error::file("make", &lock))?;
        lock.lock().map_err(Error::file("lock", directory.join("own.lock")))?;
        let image = directory.join(format!("own-{}", self.key(&text)?));
        if !image.join(DESCRIPTION).exists() {
            let start = Instant::now();
            image::build(&recipe, &image).map_err(|error| Error::Image(Box::new(error)))?;
            tracing::info!(image = %image.display(), elapsed = ?start.elapsed(), "image built");
        }
        Ok(image)
    }

    fn apply(&self, mut recipe: Recipe) -> Result<Recipe, Error> {
        let programs = &mut recipe.programs;
        if let Some(agent) = &self.agent {
            programs.agent.clone_from(agent);
        }
        if let Some(policy) = &self.policy {
            programs.files.push((policy_path(policy)?.to_owned(), policy.clone()));
        }
        programs.extra.extend(self.extra.iter().cloned());
        if let Some(kernel) = &self.kernel {
            recipe.kernel.clone_from(kernel);
        }
        Ok(recipe)
    }

    /// Returns a hash of everything that determines the image: the base's description, and path,
    /// size and time of each file.
    fn key(&self, base: &[u8]) -> Result<String, Error> {
        let mut hash = Sha256::new();
        hash.update(base);
        let single = [("agent", &self.agent), ("policy", &self.policy), ("kernel", &self.kernel)];
        let single = single.into_iter().filter_map(|(role, path)| Some((role, path.as_ref()?)));
        for (role, path) in single.chain(self.extra.iter().map(|path| ("extra", path))) {
            hash.update(role);
            fingerprint(path, &mut hash).map_err(Error::file("read", path))?;
        }
        Ok(hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Returns the path of a policy file in the guest.
fn policy_path(policy: &Path) -> Result<&'static str, Error> {
    let suffix = policy.extension().unwrap_or_default();
    let known = POLICY_PATHS.iter().find(|(known, _)| suffix == *known);
    known.map(|(_, path)| *path).ok_or_else(|| Error::Policy { path: policy.to_owned() })
}

/// Hashes path, size and time of a file, or of everything below a directory.
fn fingerprint(path: &Path, hash: &mut Sha256) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    let time = (metadata.mtime(), metadata.mtime_nsec());
    hash.update(format!("{path:?} {} {:o} {time:?}\n", metadata.len(), metadata.mode()));
    if !metadata.is_dir() {
        return Ok(());
    }
    let mut entries = fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_type()?.is_symlink() {
            hash.update(format!("{:?} -> {:?}\n", entry.path(), fs::read_link(entry.path())?));
        } else {
            fingerprint(&entry.path(), hash)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_is_put_where_its_agent_reads_it() {
        assert_eq!(
            policy_path(Path::new("/p/allow.rego")).unwrap(),
            "etc/kata-opa/default-policy.rego"
        );
        assert_eq!(policy_path(Path::new("deny.json")).unwrap(), "etc/agent-policy.json");
        let error = policy_path(Path::new("/p/policy.txt")).unwrap_err().to_string();
        assert!(error.contains("/p/policy.txt") && error.contains(".rego"), "{error}");
    }

    #[test]
    fn every_change_of_an_override_gives_the_image_another_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("agent"), "one").unwrap();
        fs::create_dir_all(path("extra/etc")).unwrap();
        let overrides = Overrides {
            agent: Some(path("agent")),
            extra: vec![path("extra")],
            ..Overrides::default()
        };
        let mut names = vec![overrides.key(b"base").unwrap()];
        assert_eq!(overrides.key(b"base").unwrap(), names[0]);
        names.push(overrides.key(b"other base").unwrap());
        names.push(overrides.without_agent().key(b"base").unwrap());
        fs::write(path("agent"), "longer").unwrap();
        names.push(overrides.key(b"base").unwrap());
        fs::write(path("extra/etc/file"), "").unwrap();
        names.push(overrides.key(b"base").unwrap());
        let policy = Overrides { policy: Some(path("agent")), ..overrides };
        names.push(policy.key(b"base").unwrap());
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "{names:?}");
        let absent = Overrides { agent: Some(path("absent")), ..Overrides::default() };
        assert!(absent.key(b"base").unwrap_err().to_string().contains("absent"));
    }

    #[test]
    fn image_without_overrides_is_the_base_itself() {
        let base = Path::new("/images/default");
        assert_eq!(Overrides::default().image(base, Path::new("/nowhere")).unwrap(), base);
    }
}
