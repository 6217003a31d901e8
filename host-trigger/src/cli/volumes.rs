//! The volumes of a hot-plug, and the path of each: which of several paths belongs to which volume
//! follows from their order on the command line ([`ArgMatches::indices_of`]).

use std::path::PathBuf;

use clap::{ArgMatches, Args, Command, FromArgMatches};

use crate::{Error, device_path::check_device_path};

/// The words of the command line.
#[derive(Debug, Args)]
#[group(skip)]
struct Words {
    /// Path of the volume on the host
    #[arg(long, value_name = "PATH", required_unless_present = "mount_info")]
    block_volume: Vec<PathBuf>,

    /// Path of the device in the container; it must not exist yet
    #[arg(long, value_name = "PATH", required_unless_present = "mount_path")]
    device_path: Vec<String>,

    /// In place of --device-path: path in the container that the volume's file system is mounted
    /// at. A directory is made if there is none. The volume must have a file system: nothing is
    /// ever formatted. The container gets no device. The mount is always nodev and nosuid
    #[arg(long, value_name = "PATH")]
    mount_path: Vec<String>,
}

/// The volumes, and their paths in the container.
#[derive(Debug, Clone)]
pub struct VolumeArgs {
    /// The paths of the volumes on the host; none if Kata's mount info names the volume.
    pub block_volume: Vec<PathBuf>,
    /// The paths in the container, in the order of the command line.
    pub paths: Vec<ContainerPath>,
    /// A volume that is given two paths, one of each kind: its place in `block_volume`, and theirs
    /// in `paths`.
    twice: Option<(usize, usize, usize)>,
}

/// A path in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPath {
    /// The path.
    pub path: String,
    /// The volume's file system is mounted there; otherwise it is a device.
    pub is_mount: bool,
}

impl VolumeArgs {
    /// The volumes and their paths, in pairs; `named` is the volume that Kata's mount info names.
    ///
    /// # Errors
    /// They do not pair up, or a path is invalid or given twice.
    pub(crate) fn pairs(
        &self,
        named: Option<PathBuf>,
    ) -> Result<Vec<(PathBuf, ContainerPath)>, Error> {
        let volumes: Vec<_> = self.block_volume.iter().cloned().chain(named).collect();
        if let Some((volume, first, second)) = self.twice {
            let [device, mount] = match self.paths[first].is_mount {
                false => [first, second],
                true => [second, first],
            };
            return Err(Error::TwoPaths {
                volume: volumes.get(volume).cloned().unwrap_or_default(),
                device_path: self.paths[device].path.clone(),
                mount_path: self.paths[mount].path.clone(),
            });
        }
        let (count, paths) = (volumes.len(), self.paths.len());
        if count != paths {
            return Err(Error::Unpaired { volumes: count, paths });
        }
        for (index, path) in self.paths.iter().enumerate() {
            path.check()?;
            if self.paths[..index].iter().any(|other| other.path == path.path) {
                return Err(Error::Repeated { what: "the path", value: path.path.clone() });
            }
        }
        for ContainerPath { path, .. } in &self.paths {
            let is_above = |other: &&ContainerPath| {
                let rest = path.strip_prefix(&other.path);
                other.is_mount && rest.is_some_and(|rest| rest.starts_with('/'))
            };
            if let Some(above) = self.paths.iter().find(is_above) {
                let text = format!(
                    "{path:?} is below {:?}, which the same call mounts: plug it by a call of its \
                     own, afterwards",
                    above.path
                );
                return Err(Error::Usage { text });
            }
        }
        Ok(volumes.into_iter().zip(self.paths.iter().cloned()).collect())
    }
}

impl ContainerPath {
    fn check(&self) -> Result<(), Error> {
        check_device_path(&self.path).map_err(|why| match self.is_mount {
            false => Error::DevicePath { path: self.path.clone(), why },
            true => Error::MountPath { path: self.path.clone(), why },
        })
    }
}

/// A word, by its place on the command line.
enum Word {
    Volume,
    Path(ContainerPath),
}

fn in_order(matches: &ArgMatches, words: &Words) -> Vec<Word> {
    let at = |id: &str| matches.indices_of(id).into_iter().flatten().collect::<Vec<_>>();
    let paths = |id: &str, paths: &[String], is_mount: bool| -> Vec<(usize, Word)> {
        let word = |path: &String| Word::Path(ContainerPath { path: path.clone(), is_mount });
        at(id).into_iter().zip(paths.iter().map(word)).collect()
    };
    let mut all: Vec<_> = at("block_volume").into_iter().map(|at| (at, Word::Volume)).collect();
    all.extend(paths("device_path", &words.device_path, false));
    all.extend(paths("mount_path", &words.mount_path, true));
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, word)| word).collect()
}

impl FromArgMatches for VolumeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let words = Words::from_arg_matches(matches)?;
        let order = in_order(matches, &words);
        // Volumes and paths in turn, or all of one and then all of the other.
        let begins_with_volume = matches!(order.first(), Some(Word::Volume));
        let (mut volumes, mut paths, mut twice) = (0, Vec::<ContainerPath>::new(), None);
        for word in order {
            match word {
                Word::Volume => volumes += 1,
                Word::Path(path) => {
                    // One more path than volumes so far, of another kind than the one before.
                    let differs = paths.last().is_some_and(|last| last.is_mount != path.is_mount);
                    if begins_with_volume && paths.len() >= volumes && differs {
                        twice = twice.or(Some((volumes - 1, paths.len() - 1, paths.len())));
                    }
                    paths.push(path);
                }
            }
        }
        if volumes <= 1
            && let [first, second] = &paths[..]
            && first.is_mount != second.is_mount
        {
            twice = Some((0, 0, 1));
        }
        Ok(Self { block_volume: words.block_volume, paths, twice })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for VolumeArgs {
    fn augment_args(command: Command) -> Command {
        Words::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Words::augment_args_for_update(command)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        volumes: VolumeArgs,

        #[arg(long)]
        mount_info: Option<PathBuf>,
    }

    /// The pairs, such as `a=/m:` for a mount; or the reason of the error. `b`, `d` and `m` are the
    /// options.
    fn pairs(words: &[&str]) -> Result<Vec<String>, String> {
        let words = words.iter().map(|&word| match word {
            "b" => "--block-volume",
            "d" => "--device-path",
            "m" => "--mount-path",
            word => word,
        });
        let line = Line::try_parse_from(std::iter::once("x").chain(words));
        let Line { volumes, mount_info } = line.map_err(|e| e.to_string())?;
        let named = mount_info.map(|_| PathBuf::from("named"));
        let pairs = volumes.pairs(named).map_err(|e| e.class().reason.to_owned())?;
        let pair = |(volume, path): (PathBuf, ContainerPath)| {
            let kind = if path.is_mount { ":" } else { "" };
            format!("{}={}{kind}", volume.display(), path.path)
        };
        Ok(pairs.into_iter().map(pair).collect())
    }

    #[rstest]
    #[case(&["b", "a", "m", "/m"], &["a=/m:"])]
    #[case(&["b", "a", "d", "/d", "b", "c", "m", "/m"], &["a=/d", "c=/m:"])]
    #[case(&["b", "a", "m", "/m", "b", "c", "d", "/d"], &["a=/m:", "c=/d"])]
    #[case(&["b", "a", "b", "c", "m", "/m", "d", "/d"], &["a=/m:", "c=/d"])]
    #[case(&["d", "/d", "m", "/m", "b", "a", "b", "c"], &["a=/d", "c=/m:"])]
    #[case(&["d", "/d", "b", "a", "m", "/m", "b", "c"], &["a=/d", "c=/m:"])]
    #[case(&["b=a", "m", "/m", "--mount-info", "f"], &[])]
    #[case(&["--mount-info", "f", "m", "/m"], &["named=/m:"])]
    fn a_path_belongs_to_the_volume_at_its_place(#[case] words: &[&str], #[case] found: &[&str]) {
        let found: Vec<_> = found.iter().map(|&pair| pair.to_owned()).collect();
        match found.is_empty() {
            true => assert!(pairs(words).is_err()),
            false => assert_eq!(pairs(words).unwrap(), found),
        }
    }

    #[rstest]
    #[case(&["b", "a", "d", "/d", "m", "/m"], "two_paths")]
    #[case(&["b", "a", "m", "/m", "d", "/d"], "two_paths")]
    #[case(&["m", "/m", "b", "a", "d", "/d"], "two_paths")]
    #[case(&["b", "a", "d", "/d", "m", "/m", "b", "c"], "two_paths")]
    #[case(&["b", "a", "m", "/m", "m", "/n"], "unpaired")]
    #[case(&["b", "a", "b", "c", "m", "/m"], "unpaired")]
    #[case(&["b", "a", "m", "x"], "invalid_mount_path")]
    #[case(&["b", "a", "m", "/"], "invalid_mount_path")]
    #[case(&["b", "a", "d", "x"], "invalid_device_path")]
    #[case(&["b", "a", "m", "/x", "b", "c", "d", "/x"], "repeated")]
    #[case(&["b", "a", "m", "/x/y", "b", "c", "m", "/x"], "usage")]
    #[case(&["b", "a", "m", "/x", "b", "c", "d", "/x/y"], "usage")]
    fn what_does_not_pair_up_is_refused(#[case] words: &[&str], #[case] reason: &str) {
        assert_eq!(pairs(words).unwrap_err(), reason);
    }

    #[test]
    fn both_paths_of_a_volume_are_named() {
        let words = ["x", "--block-volume=a", "--mount-path=/m", "--device-path=/d"];
        let error = Line::try_parse_from(words).unwrap().volumes.pairs(None).unwrap_err();
        let message = error.message();
        assert!(message.contains(r#""a""#) && message.contains("/d") && message.contains("/m"));
    }

    #[test]
    fn a_volume_and_a_path_are_needed() {
        assert!(pairs(&["b", "a"]).unwrap_err().contains("--device-path"));
        assert!(pairs(&["m", "/m"]).unwrap_err().contains("--block-volume"));
    }
}
