//! The path of a device in a container.

/// The prefix of the names that the plugin gives to device nodes before they are complete.
const TEMPORARY: &str = ".ecrblk-";

/// Checks that `path` is an absolute, normalized path of bounded length.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_device_path(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("it is not absolute");
    }
    if path.len() > 4096 {
        return Err("it is longer than 4096 bytes");
    }
    if path.contains('\0') {
        return Err("it holds a NUL");
    }
    for part in path[1..].split('/') {
        match part {
            "" => return Err("it has an empty component"),
            "." | ".." => return Err("it has a component \".\" or \"..\""),
            _ if part.starts_with(TEMPORARY) => {
                return Err("it has a name that the plugin uses itself");
            }
            _ if part.len() > 255 => return Err("it has a component of more than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    fn valid_paths_pass(#[values("/dev/xvda", "/data/a b", "/dev/..x", "/x")] path: &str) {
        assert_eq!(check_device_path(path), Ok(()));
    }

    #[rstest]
    fn invalid_paths_are_refused(
        #[values(
            "",
            "dev/xvda",
            "/",
            "/dev/",
            "/dev//x",
            "/dev/../x",
            "/./x",
            "/dev/..",
            "/a\0b",
            "/dev/.ecrblk-1"
        )]
        path: &str,
    ) {
        assert!(check_device_path(path).is_err());
    }

    #[test]
    fn long_paths_are_refused() {
        assert!(check_device_path(&format!("/{}", "x".repeat(256))).is_err());
        assert!(check_device_path(&"/x".repeat(2049)).is_err());
    }
}
