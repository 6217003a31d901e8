//! clap_mangen writes the manual pages in `man/` from the definition of the command line. They are
//! checked in. After a change to the command line run
//! `ECR_RUNTIME_WRITE_MAN=1 cargo test -p host-trigger --test man_page`.

use std::{collections::BTreeMap, fs, path::Path};

use clap::CommandFactory;

#[test]
fn the_manual_pages_are_current() {
    let scratch = tempfile::tempdir().unwrap();
    clap_mangen::generate_to(host_trigger::cli::Cli::command(), scratch.path()).unwrap();
    let man = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let generated = pages(scratch.path());
    if std::env::var_os("ECR_RUNTIME_WRITE_MAN").is_some() {
        fs::create_dir_all(&man).unwrap();
        pages(&man).keys().for_each(|name| fs::remove_file(man.join(name)).unwrap());
        generated.iter().for_each(|(name, text)| fs::write(man.join(name), text).unwrap());
    }
    let checked_in = pages(&man);
    assert_eq!(generated.keys().collect::<Vec<_>>(), checked_in.keys().collect::<Vec<_>>());
    for (name, text) in &generated {
        assert!(
            checked_in[name] == *text,
            "{name} differs from the command line; see the comment at the top of this test"
        );
    }
}

/// Reads the pages of a directory, except those of the `help` commands, which only repeat others.
fn pages(directory: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    named
        .filter(|(name, _)| name.ends_with(".1") && !name.contains("-help"))
        .map(|(name, path)| (name, fs::read_to_string(path).unwrap()))
        .collect()
}
