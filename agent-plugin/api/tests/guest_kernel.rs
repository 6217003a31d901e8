//! `docs/guest-kernel.md` has a row for each capability of the guest's kernel, with the words that
//! `check` prints.

use block_volume_api::{KERNEL_CAPABILITIES, Without};

const PAGE: &str = include_str!("../../../docs/guest-kernel.md");

#[test]
fn the_page_has_the_table_of_the_api() {
    let rows = PAGE.lines().filter(|line| line.starts_with("| `"));
    let found: Vec<String> = rows.map(|row| row.replace('`', "")).collect();
    let expected = KERNEL_CAPABILITIES
        .iter()
        .map(|capability| {
            format!("| {} | {} | {} |", capability.name, capability.option, capability.lost)
        })
        .collect::<Vec<_>>();
    assert_eq!(found, expected);
}

#[test]
fn the_page_counts_those_that_every_volume_needs() {
    let needed =
        KERNEL_CAPABILITIES.iter().take_while(|of| of.without == Without::NoVolumes).count();
    let all = KERNEL_CAPABILITIES.iter().filter(|of| of.without == Without::NoVolumes).count();
    assert_eq!((needed, all), (7, 7));
    assert!(PAGE.contains("Without one of the first seven a `hot-plug` is refused"));
}
