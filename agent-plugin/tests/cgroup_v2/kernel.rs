//! Compares the plugin's BPF interpreter with the kernel.

use agent_plugin::cgroup::{
    Access,
    interpreter::{DeviceContext, run},
};
use rstest::rstest;

use crate::{
    groups::{Groups, OTHER, allow},
    runtimes::{BLOCK, CHAR, Runtime, program},
};

/// Each question goes to the interpreter and, through real device nodes, to the kernel.
#[rstest]
fn the_interpreter_and_the_kernel_agree(
    #[values(Runtime::Crun, Runtime::Runc, Runtime::OldRunc, Runtime::Systemd)] runtime: Runtime,
) {
    let rules = [
        (BLOCK, 2, Some(7), Some(0), true),
        (CHAR, 6, Some(1), None, true),
        (BLOCK, 1, None, None, true),
    ];
    let groups = Groups::with(&format!("interpreter-{runtime:?}"), &program(runtime, &rules));
    allow(&groups.container(), OTHER, Access::READ).unwrap();
    let program = groups.instructions("c1").remove(0);
    let node = std::env::temp_dir().join(format!("ecr-node-{}-{runtime:?}", std::process::id()));
    let node = node.display();
    for (kind, letter, major, minor) in
        [(1, 'b', 7, 0), (1, 'b', 7, 1), (1, 'b', 7, 2), (2, 'c', 1, 3), (2, 'c', 1, 5)]
    {
        for (access, how) in [
            (1, format!("mknod {node} {letter} {major} {minor} && rm {node}")),
            (2, format!("dd count=0 if=/dev/{}", name(letter, minor))),
            (
                4,
                format!("dd count=0 conv=notrunc if=/proc/version of=/dev/{}", name(letter, minor)),
            ),
            (6, format!(": <>/dev/{}", name(letter, minor))),
        ] {
            let answer = run(&program, DeviceContext { kind, access, major, minor }).unwrap();
            assert_eq!(groups.can("c1", &how), answer, "{runtime:?}: {how}");
        }
    }
}

fn name(letter: char, minor: u32) -> String {
    match (letter, minor) {
        ('b', minor) => format!("loop{minor}"),
        (_, 3) => "null".to_owned(),
        _ => "zero".to_owned(),
    }
}
