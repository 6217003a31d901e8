//! The release builds contain no fault points.

use vm_harness::Environment;

/// A string that only a build with fault points contains.
const MARK: &[u8] = b"fault points are compiled in";

#[test]
fn shipped_binaries_have_no_fault_points_and_the_test_builds_have_them() {
    let environment = Environment::from_variables();
    let contains = |path: &std::path::Path| {
        let bytes =
            std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        bytes.windows(MARK.len()).any(|window| window == MARK)
    };
    assert!(!contains(&environment.ecr_runtime().unwrap()), "ecr-runtime has fault points");
    assert!(
        contains(&environment.ecr_runtime_with_faults().unwrap()),
        "the test build has no fault points"
    );
    assert!(
        !contains(&environment.image("default").unwrap().join("initramfs.cpio")),
        "the image has fault points"
    );
    assert!(
        contains(&environment.image("fault").unwrap().join("initramfs.cpio")),
        "the fault image has no fault points"
    );
}
