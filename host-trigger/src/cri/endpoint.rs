//! Where the container engine listens, by the rules of kubelet and kubeadm: as named, or the only
//! one of the usual sockets that exists. Which of two is meant is never guessed.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use crate::Error;

/// The variable that names the socket, as for `crictl`.
const VARIABLE: &str = "CONTAINER_RUNTIME_ENDPOINT";
/// The sockets of containerd, CRI-O, and the containerd that k3s and RKE2 bring.
const USUAL: [&str; 3] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
];

/// The socket of a container engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its path.
    pub socket: PathBuf,
}

impl Endpoint {
    /// Finds the socket: as `named`, or as the environment names it, or a usual one.
    ///
    /// # Errors
    /// The name is invalid, there is no socket in the usual places, or there are several.
    pub fn find(named: Option<&OsStr>) -> Result<Self, Error> {
        let variable = env::var_os(VARIABLE).filter(|value| !value.is_empty());
        match named.map(OsStr::to_owned).or(variable) {
            Some(named) => Self::parse(&named),
            None => Self::usual(&USUAL.map(PathBuf::from)),
        }
    }

    /// Parses an absolute path or `unix://PATH`.
    fn parse(named: &OsStr) -> Result<Self, Error> {
        let path = match named.as_bytes().strip_prefix(b"unix://") {
            Some(path) => Path::new(OsStr::from_bytes(path)),
            None => Path::new(named),
        };
        match path.is_absolute() {
            true => Ok(Self { socket: path.to_owned() }),
            false => Err(Error::CriEndpoint { endpoint: OsString::from(named) }),
        }
    }

    fn usual(places: &[PathBuf]) -> Result<Self, Error> {
        let mut found: Vec<_> = places.iter().filter(|place| place.exists()).cloned().collect();
        match (found.pop(), found.is_empty()) {
            (Some(socket), true) => Ok(Self { socket }),
            (Some(last), false) => {
                found.push(last);
                Err(Error::CriAmbiguous { found })
            }
            (None, _) => Err(Error::NoCri { searched: places.to_vec() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/run/crio/crio.sock", Some("/run/crio/crio.sock"))]
    #[case("unix:///run/crio/crio.sock", Some("/run/crio/crio.sock"))]
    #[case("unix://crio.sock", None)]
    #[case("crio.sock", None)]
    #[case("tcp://127.0.0.1:10010", None)]
    #[case("", None)]
    fn an_endpoint_is_an_absolute_path(#[case] named: &str, #[case] socket: Option<&str>) {
        let parsed = Endpoint::parse(OsStr::new(named)).ok();
        assert_eq!(parsed.map(|endpoint| endpoint.socket), socket.map(PathBuf::from));
    }

    #[test]
    fn the_only_usual_socket_that_exists_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let places = ["a", "b", "c"].map(|name| root.path().join(name));
        let error = Endpoint::usual(&places).unwrap_err();
        assert!(matches!(error, Error::NoCri { searched } if searched == places));
        std::fs::write(&places[1], "").unwrap();
        assert_eq!(Endpoint::usual(&places).unwrap().socket, places[1]);
        std::fs::write(&places[2], "").unwrap();
        let error = Endpoint::usual(&places).unwrap_err();
        assert!(matches!(error, Error::CriAmbiguous { found } if found == places[1..]));
    }
}
