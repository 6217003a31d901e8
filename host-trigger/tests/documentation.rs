//! Generated documentation: `docs/json.schema.json`, and the tables in `docs/exit-status.md` and
//! `docs/json.md`. They are checked in, and this test compares them. To write them:
//! `ECR_RUNTIME_WRITE_DOCS=1 cargo test -p host-trigger --test documentation`.
//!
//! Every `ecr-runtime` command that a page shows is one that the program takes.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use clap::{CommandFactory as _, error::ErrorKind};
use host_trigger::{command_line::Cli, exit_status::ExitStatus};

fn docs(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)
}

/// Compares the text of a file with `expected`, or writes it.
fn compare_or_write(name: &str, expected: &str) {
    let path = docs(name);
    if std::env::var_os("ECR_RUNTIME_WRITE_DOCS").is_some() {
        fs::write(&path, expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap();
    assert!(found == expected, "docs/{name} is out of date; see the head of this test");
}

/// Replaces the table between the markers of this title.
fn with_table(text: &str, title: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- begin {title} -->\n"), format!("<!-- end {title} -->\n"));
    let (head, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
    let (_, tail) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    [head, &begin, "\n", table, "\n", &end, tail].concat()
}

fn exit_statuses() -> String {
    let mut table = "| status | meaning | examples |\n|---|---|---|\n".to_owned();
    for status in ExitStatus::ALL {
        let (code, meaning, examples) = (status.code(), status.meaning(), status.examples());
        writeln!(table, "| {code} | {meaning} | {examples} |").unwrap();
    }
    let signal = ExitStatus::Signal(0);
    writeln!(table, "| 128+n | {} | {} |", signal.meaning(), signal.examples()).unwrap();
    table
}

/// Every reason with its status and its remedy, as `src/error/catalog.rs` lists them.
fn reasons() -> String {
    let source = include_str!("../src/error/catalog.rs");
    let constants: Vec<(&str, &str)> = source
        .split("const ")
        .filter_map(|text| {
            let (name, value) = text.split_once(": &str =")?;
            let value = value.trim_start().strip_prefix('"')?;
            Some((name, value.split_once('"')?.0))
        })
        .collect();
    let mut rows = Vec::new();
    for call in source.split("class(").skip(1) {
        let Some(call) = call.trim_start().strip_prefix('"') else { continue };
        let (reason, rest) = call.split_once('"').unwrap();
        let mut parts = rest.trim_start_matches(',').trim_start().splitn(2, [',', '(']);
        let status = parts.next().unwrap().trim();
        let rest = parts.next().unwrap().trim_start();
        let remedy = match rest.strip_prefix('"') {
            Some(text) => literal(text),
            None => {
                let name = rest.split([')', ',']).next().unwrap().trim();
                constants
                    .iter()
                    .find(|(constant, _)| *constant == name)
                    .map(|(_, text)| *text)
                    .unwrap_or_default()
                    .to_owned()
            }
        };
        let code = ExitStatus::ALL.iter().find(|known| format!("{known:?}") == status);
        let code = code.map_or("128+n".to_owned(), |status| status.code().to_string());
        rows.push((code, reason.to_owned(), remedy));
    }
    rows.sort_by_key(|(code, reason, _)| (code.parse().unwrap_or(u8::MAX), reason.clone()));
    rows.dedup();
    let mut table = "| status | reason | remedy |\n|---|---|---|\n".to_owned();
    for (code, reason, remedy) in rows {
        writeln!(table, "| {code} | `{reason}` | {remedy} |").unwrap();
    }
    table
}

/// The value of the string literal that begins after its opening quote.
fn literal(text: &str) -> String {
    let mut value = String::new();
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => break,
            '\\' => match characters.next() {
                // A continued line.
                Some('\n') => {
                    let rest = characters.as_str().trim_start();
                    characters = rest.chars();
                }
                Some(c) => value.push(c),
                None => break,
            },
            c => value.push(c),
        }
    }
    value
}

#[test]
fn the_json_schema_is_current() {
    let mut schema = serde_json::to_value(host_trigger::output::schema::schema()).unwrap();
    // With the features of the whole workspace, serde_json keeps the order of keys.
    schema.sort_all_objects();
    let schema = serde_json::to_string_pretty(&schema).unwrap();
    compare_or_write("json.schema.json", &format!("{schema}\n"));
}

#[test]
fn the_tables_of_exit_statuses_and_reasons_are_current() {
    let (statuses, reasons) = (exit_statuses(), reasons());
    assert!(reasons.contains("| 13 | `qmp_held` | Kata's shim holds qmp.sock"), "{reasons}");
    let text = fs::read_to_string(docs("exit-status.md")).unwrap();
    let text = with_table(&text, "exit statuses", &statuses);
    compare_or_write("exit-status.md", &with_table(&text, "reasons", &reasons));
    let text = fs::read_to_string(docs("json.md")).unwrap();
    compare_or_write("json.md", &with_table(&text, "exit statuses", &statuses));
}

/// The Markdown files in `directory` and below it.
fn pages(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// The commands that a page shows: in blocks, where they are complete, and in the text, where they
/// may be without their arguments.
fn commands(page: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for (index, part) in page.split("```").enumerate() {
        if index % 2 == 1 {
            let block = part.replace("\\\n", " ");
            let lines = block.lines().map(|line| line.strip_prefix("# ").unwrap_or(line));
            found.extend(lines.map(|line| (line.to_owned(), true)));
        } else {
            let spans = part.split('`').skip(1).step_by(2);
            found.extend(spans.map(|span| (span.replace('\n', " "), false)));
        }
    }
    found.retain(|(command, _)| command.starts_with("ecr-runtime ") && !command.contains('…'));
    found
}

/// The words of a command, without what a shell does with its output. What is to be replaced is one
/// word, and what may be left out is there.
fn words(command: &str) -> Vec<String> {
    let mut text = String::new();
    let mut placeholder = None::<String>;
    for c in command.chars() {
        match (c, &mut placeholder) {
            ('<', _) => placeholder = Some(String::new()),
            ('>', Some(name)) => {
                text.push_str(if name == "volume ID" { "0123456789abcdef" } else { "x" });
                placeholder = None;
            }
            (c, Some(name)) => name.push(c),
            ('[' | ']', None) => {}
            ('>' | '|' | ';' | '&', None) => break,
            ('#', None) if text.ends_with(' ') => break,
            (c, None) => text.push(c),
        }
    }
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_way_to_the_first_volume_is_six_commands() {
    let page = fs::read_to_string(docs("operations.md")).unwrap();
    let (_, block) = page.split_once("```console\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let typed: Vec<_> = block.lines().filter(|line| line.starts_with("# ")).collect();
    assert_eq!(typed.len(), 6, "{typed:?}");
    assert_eq!(typed[0], "# apt install ./ecr-runtime_*_amd64.deb");
}

#[test]
fn every_command_in_the_documentation_is_one_that_the_program_takes() {
    let mut files = vec![docs("../README.md"), docs("../SECURITY.md")];
    pages(&docs(""), &mut files);
    let mut count = 0;
    for file in files {
        for (command, is_complete) in commands(&fs::read_to_string(&file).unwrap()) {
            count += 1;
            let parsed = Cli::command().try_get_matches_from(words(&command));
            let Err(error) = parsed else { continue };
            let is_part = matches!(
                error.kind(),
                ErrorKind::MissingRequiredArgument | ErrorKind::MissingSubcommand
            ) || error.to_string().contains("a value is required");
            let is_shown =
                matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            assert!(is_shown || is_part && !is_complete, "{}: {command}: {error}", file.display());
        }
    }
    assert!(count > 50, "only {count} commands were found");
}

#[test]
fn the_rules_of_the_package_are_those_of_the_example() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
    assert_eq!(
        read("share/block-volumes.rego"),
        read("../agent-plugin/examples/kata-agent/rules.rego")
    );
}
