//! Parts of the caller's own in the guest's image: an agent, its policy, further files, a kernel.
//!
//! An image is made by the recipe of one of this build's, with those parts in the place of its own.
//! It is kept, under a name that depends on all that it is made of, so that a hundred tests make it
//! once.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use image_builder::image::{self, DESCRIPTION, Recipe};
use sha2::{Digest as _, Sha256};

use crate::Error;

/// Where agents look for their policy, by the file's suffix: kata-agent, and the reference agent.
const POLICIES: [(&str, &str); 2] =
    [("rego", "etc/kata-opa/default-policy.rego"), ("json", "etc/agent-policy.json")];

/// What is the caller's own in an image; nothing by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    /// Becomes PID 1, at `/usr/bin/agent`. Its shared libraries come from `extra` and from this
    /// machine.
    pub agent: Option<PathBuf>,
    /// `.rego`: kata-agent's default policy; `.json`: the reference agent's. For another place use
    /// `extra`.
    pub policy: Option<PathBuf>,
    /// Directories that are laid over the guest's root.
    pub extra: Vec<PathBuf>,
    /// An unpacked kernel package, or a kernel that needs no modules.
    pub kernel: Option<PathBuf>,
}

impl Parts {
    /// The same for an image that is made for its own agent.
    #[must_use]
    pub fn without_agent(&self) -> Self {
        Self { agent: None, policy: None, ..self.clone() }
    }

    /// The image in `base` with these parts, below `directory`: `base` itself where there are none.
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
        let recipe = self.changed(built.recipe)?;
        // Two tests want the same image at the same time: one makes it, the other waits.
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

    fn changed(&self, mut recipe: Recipe) -> Result<Recipe, Error> {
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

    /// Of everything that decides what the image is: the base's description, and each file's path,
    /// size and time.
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

/// The place in the guest for a policy file.
fn policy_path(policy: &Path) -> Result<&'static str, Error> {
    let suffix = policy.extension().unwrap_or_default();
    let known = POLICIES.iter().find(|(known, _)| suffix == *known);
    known.map(|(_, path)| *path).ok_or_else(|| Error::Policy { path: policy.to_owned() })
}

/// A file's path, size and time; of a directory all that is below it.
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
    fn a_policy_goes_where_its_agent_looks() {
        assert_eq!(
            policy_path(Path::new("/p/allow.rego")).unwrap(),
            "etc/kata-opa/default-policy.rego"
        );
        assert_eq!(policy_path(Path::new("deny.json")).unwrap(), "etc/agent-policy.json");
        let error = policy_path(Path::new("/p/policy.txt")).unwrap_err().to_string();
        assert!(error.contains("/p/policy.txt") && error.contains(".rego"), "{error}");
    }

    #[test]
    fn every_change_of_a_part_gives_the_image_another_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("agent"), "one").unwrap();
        fs::create_dir_all(path("extra/etc")).unwrap();
        let parts =
            Parts { agent: Some(path("agent")), extra: vec![path("extra")], ..Parts::default() };
        let mut names = vec![parts.key(b"base").unwrap()];
        assert_eq!(parts.key(b"base").unwrap(), names[0]);
        names.push(parts.key(b"other base").unwrap());
        names.push(parts.without_agent().key(b"base").unwrap());
        fs::write(path("agent"), "longer").unwrap();
        names.push(parts.key(b"base").unwrap());
        fs::write(path("extra/etc/file"), "").unwrap();
        names.push(parts.key(b"base").unwrap());
        let policy = Parts { policy: Some(path("agent")), ..parts };
        names.push(policy.key(b"base").unwrap());
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "{names:?}");
        let gone = Parts { agent: Some(path("gone")), ..Parts::default() };
        assert!(gone.key(b"base").unwrap_err().to_string().contains("gone"));
    }

    #[test]
    fn without_parts_an_image_is_what_it_is() {
        assert_eq!(
            Parts::default().image(Path::new("/images/default"), Path::new("/nowhere")).unwrap(),
            Path::new("/images/default")
        );
    }
}
