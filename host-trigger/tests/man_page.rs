//! The manual pages in `man/` are generated from the command line's definition and checked in.
//! After a change of the command line:
//! `ECR_RUNTIME_WRITE_DOCS=1 cargo test -p host-trigger --test man_page`.

use std::{collections::BTreeMap, fs, path::Path};

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use host_trigger::{command_line::Cli, exit_status::ExitStatus};

/// What a page shows as examples: what is done, and the command line.
const EXAMPLES: [(&str, &[(&str, &str)]); 16] = [
    ("ecr-runtime", EVERYTHING),
    ("ecr-runtime-block-volume", EVERYTHING),
    (
        "ecr-runtime-check",
        &[
            ("Check this node, before there is any sandbox", "ecr-runtime check"),
            (
                "Check whether a volume could be plugged into a sandbox",
                "ecr-runtime check --sandbox 7d3a",
            ),
            ("Check every sandbox of the node", "ecr-runtime check --all"),
        ],
    ),
    ("ecr-runtime-node", NODE),
    ("ecr-runtime-node-status", NODE),
    (
        "ecr-runtime-node-enable",
        &[
            ("Report what would be written", "ecr-runtime node enable --dry-run"),
            ("Enable ecr-qemu for all runtime classes of QEMU", "ecr-runtime node enable"),
            (
                "Enable a copy of the wrapper for a runtime class with another QEMU",
                "ecr-runtime node enable --runtime-class kata-qemu-snp --wrapper \
                 /usr/local/bin/ecr-qemu-snp",
            ),
        ],
    ),
    (
        "ecr-runtime-node-disable",
        &[("Remove everything that enable wrote", "ecr-runtime node disable")],
    ),
    (
        "ecr-runtime-completions",
        &[(
            "Install completion for bash",
            "ecr-runtime completions bash > /etc/bash_completion.d/ecr-runtime",
        )],
    ),
    (
        "ecr-runtime-block-volume-hot-plug",
        &[
            (
                "Attach a logical volume",
                "ecr-runtime block-volume hot-plug --container 4f1c --block-volume /dev/vg/data \
                 --device-path /dev/xvda",
            ),
            (
                "Attach two images, read-only, for user 1000, with a limit",
                "ecr-runtime block-volume hot-plug --container 4f1c --read-only --uid 1000 \
                 --iops 500 --block-volume a.img --device-path /dev/xvda --block-volume b.img \
                 --device-path /dev/xvdb",
            ),
            (
                "Mount the file system of a logical volume at /data",
                "ecr-runtime block-volume hot-plug --container 4f1c --block-volume /dev/vg/data \
                 --mount-path /data --mount-options noatime",
            ),
            (
                "Mount a volume as a CSI driver has described it for Kata",
                "ecr-runtime block-volume hot-plug --container 4f1c --mount-info mountInfo.json \
                 --mount-path /data",
            ),
            (
                "Attach a volume to a container of a pod",
                "ecr-runtime block-volume hot-plug --pod shop/db-0 --container app --block-volume \
                 /dev/vg/data --device-path /dev/xvda",
            ),
            (
                "Report what would be done",
                "ecr-runtime block-volume hot-plug --dry-run --container 4f1c --block-volume \
                 /dev/vg/data --device-path /dev/xvda",
            ),
        ],
    ),
    (
        "ecr-runtime-block-volume-hot-unplug",
        &[
            (
                "Detach a volume; give its holders half a minute",
                "ecr-runtime block-volume hot-unplug --container 4f1c --device-path /dev/xvda \
                 --wait 30s",
            ),
            (
                "Unmount a volume, and free it on the host",
                "ecr-runtime block-volume hot-unplug --container 4f1c --mount-path /data",
            ),
            (
                "Detach a volume that is in use",
                "ecr-runtime block-volume hot-unplug --sandbox 7d3a --volume 6ce820660d6cf372 \
                 --force",
            ),
        ],
    ),
    (
        "ecr-runtime-block-volume-list",
        &[
            ("Show all volumes of a sandbox", "ecr-runtime block-volume list --sandbox 7d3a"),
            ("Show the volumes of all pods of the node", "ecr-runtime block-volume list --all"),
            (
                "Print the IDs of volumes that are not attached",
                "ecr-runtime block-volume list --sandbox 7d3a --output json | jq -r \
                 '.volumes[] | select(.state != \"attached\") | .id'",
            ),
        ],
    ),
    (
        "ecr-runtime-block-volume-inspect",
        &[(
            "Show everything that is known of a volume",
            "ecr-runtime block-volume inspect --sandbox 7d3a --device-path /dev/xvda",
        )],
    ),
    (
        "ecr-runtime-block-volume-resize",
        &[
            (
                "Follow a logical volume that was extended on the host",
                "ecr-runtime block-volume resize --sandbox 7d3a --device-path /dev/xvda",
            ),
            (
                "Grow a raw image",
                "ecr-runtime block-volume resize --sandbox 7d3a --device-path /dev/xvda --size 20GiB",
            ),
        ],
    ),
    (
        "ecr-runtime-block-volume-throttle",
        &[
            (
                "Limit operations and written bytes per second",
                "ecr-runtime block-volume throttle --sandbox 7d3a --device-path /dev/xvda \
                 --iops 500 --bps-write 20MiB",
            ),
            (
                "Remove a limit",
                "ecr-runtime block-volume throttle --sandbox 7d3a --device-path /dev/xvda --iops 0",
            ),
        ],
    ),
    (
        "ecr-runtime-block-volume-stats",
        &[
            ("Show the counters of all volumes", "ecr-runtime block-volume stats --sandbox 7d3a"),
            (
                "Write them for the node exporter's textfile collector",
                "ecr-runtime block-volume stats --sandbox 7d3a --prometheus --output-file \
                 /var/lib/node_exporter/7d3a.prom",
            ),
        ],
    ),
    (
        "ecr-runtime-block-volume-repair",
        &[
            (
                "Report what interrupted runs left",
                "ecr-runtime block-volume repair --sandbox 7d3a --dry-run",
            ),
            ("Repair it", "ecr-runtime block-volume repair --sandbox 7d3a"),
        ],
    ),
];

const NODE: &[(&str, &str)] = &[
    ("Show the runtime classes", "ecr-runtime node status"),
    ("Let Kata start QEMU by ecr-qemu in new sandboxes", "ecr-runtime node enable"),
    ("Let it start QEMU itself again", "ecr-runtime node disable"),
];

const EVERYTHING: &[(&str, &str)] = &[
    ("Check this node", "ecr-runtime check"),
    (
        "Attach a volume to a running container",
        "ecr-runtime block-volume hot-plug --container 4f1c --block-volume /dev/vg/data \
         --device-path /dev/xvda",
    ),
    ("Show the volumes of its sandbox", "ecr-runtime block-volume list --sandbox 7d3a"),
    ("Detach it", "ecr-runtime block-volume hot-unplug --container 4f1c --device-path /dev/xvda"),
];

const FILES: [(&str, &str); 10] = [
    (
        "/etc/containerd/config.toml, /etc/crio/crio.conf, and what they import",
        "The runtime classes; node finds Kata's configurations there. It writes \
         config.d/zz-ecr-runtime.toml beside them, and /etc/ecr-runtime/NAME.path for ecr-qemu(1).",
    ),
    ("/run/ecr-runtime", "Locked by node enable and node disable while they change something."),
    (
        "/run/vc/vm/SANDBOX/extra-monitor.sock, qmp.sock",
        "QMP sockets of a sandbox of Kata's Go runtime, in the order in which they are tried. The \
         directory is locked while a command works on the sandbox.",
    ),
    (
        "/run/vc/sbs/SANDBOX/shim-monitor.sock, persist.json",
        "Where the agent's address is found, and QEMU's process. The directories beside them are \
         the containers.",
    ),
    (
        "/run/kata/SANDBOX/extra-monitor.sock, shim-monitor.sock",
        "The same for Kata's Rust runtime, whose QEMU is started by ecr-qemu(1).",
    ),
    (
        "/run/containerd/io.containerd.runtime.v2.task/NAMESPACE/CONTAINER/config.json",
        "Which sandbox a container of the Rust runtime is in. Also looked for below \
         /run/k3s/containerd, and below /run/containers/storage/overlay-containers (CRI-O).",
    ),
    (
        "/run/containerd/containerd.sock, /run/crio/crio.sock, /run/k3s/containerd/containerd.sock",
        "Where the container engine tells which sandbox and containers a pod has, if --pod names \
         one. If several exist, --cri must name one. Only root may have made them.",
    ),
    (
        "/run/user/UID/run/vc, /run/user/UID/run/kata",
        "The same for a VMM that runs as another user, whom --vmm-user names. All other \
         directories must belong to root and be writable by root alone.",
    ),
    (
        "/dev/log",
        "Where audit records are written, unless --audit-log names another file or socket.",
    ),
    ("/dev/kmsg", "Where they are written if /dev/log does not take them within 2 seconds."),
];

const ENVIRONMENT: [(&str, &str); 3] = [
    ("NO_COLOR, CLICOLOR, CLICOLOR_FORCE, TERM", "Whether help and usage errors are colored."),
    (
        "CONTAINER_RUNTIME_ENDPOINT",
        "The container engine's socket for --pod, unless --cri names it.",
    ),
    (
        "COLUMNS",
        "The width of help texts where standard output is no terminal, at most 100. \
         Nothing else depends on the environment.",
    ),
];

#[test]
fn the_manual_pages_are_current() {
    let generated = generate();
    let man = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    if std::env::var_os("ECR_RUNTIME_WRITE_DOCS").is_some() {
        fs::create_dir_all(&man).unwrap();
        pages(&man).keys().for_each(|name| fs::remove_file(man.join(name)).unwrap());
        generated.iter().for_each(|(name, text)| fs::write(man.join(name), text).unwrap());
    }
    let checked_in = pages(&man);
    assert_eq!(generated.keys().collect::<Vec<_>>(), checked_in.keys().collect::<Vec<_>>());
    for (name, text) in &generated {
        assert!(checked_in[name] == *text, "man/{name} is out of date; see the head of this test");
    }
}

fn generate() -> BTreeMap<String, String> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut names = Vec::new();
    collect_names(&command, &mut names);
    let mut generated = BTreeMap::new();
    add_pages(&command, &names, &mut generated);
    generated
}

/// The name of the page of a command, `ecr-runtime-block-volume-list`.
fn page_name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn collect_names(command: &Command, names: &mut Vec<String>) {
    names.push(page_name(command));
    command.get_subcommands().for_each(|command| collect_names(command, names));
}

fn add_pages(command: &Command, names: &[String], pages: &mut BTreeMap<String, String>) {
    let name = page_name(command);
    // The page has its own section of examples.
    let page = Man::new(command.clone().before_help(None::<&str>));
    let mut text = Vec::new();
    page.render_title(&mut text).unwrap();
    page.render_name_section(&mut text).unwrap();
    page.render_synopsis_section(&mut text).unwrap();
    page.render_description_section(&mut text).unwrap();
    page.render_options_section(&mut text).unwrap();
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text).unwrap();
    }
    let mut text = String::from_utf8(text).unwrap();
    let (_, examples) =
        EXAMPLES.iter().find(|(of, _)| *of == name).unwrap_or_else(|| panic!("{name}: examples"));
    let statuses = ExitStatus::ALL.into_iter().chain([ExitStatus::Signal(0)]);
    let statuses = statuses.map(|status| {
        let code = match status {
            ExitStatus::Signal(_) => "128+n".to_owned(),
            status => status.code().to_string(),
        };
        (code, format!("{}: {}", status.meaning(), status.examples()))
    });
    section(&mut text, "EXIT STATUS", statuses);
    section(&mut text, "ENVIRONMENT", ENVIRONMENT);
    section(&mut text, "FILES", FILES);
    text.push_str(".SH EXAMPLES\n");
    for (what, line) in *examples {
        text.push_str(&format!(
            ".PP\n{}:\n.PP\n.RS 4\n.nf\n{}\n.fi\n.RE\n",
            roff(what),
            roff(line)
        ));
    }
    text.push_str(".SH \"SEE ALSO\"\n");
    let others: Vec<_> =
        names.iter().filter(|other| **other != name).map(|other| roff(other)).collect();
    text.push_str(&format!("{}(1),\necr\\-qemu(1)\n", others.join("(1),\n")));
    pages.insert(format!("{name}.1"), text);
    command.get_subcommands().for_each(|command| add_pages(command, names, pages));
}

/// A section of tagged paragraphs.
fn section(
    text: &mut String,
    title: &str,
    items: impl IntoIterator<Item = (impl AsRef<str>, impl AsRef<str>)>,
) {
    text.push_str(&format!(".SH \"{title}\"\n"));
    for (tag, item) in items {
        text.push_str(&format!(".TP\n\\fB{}\\fR\n{}\n", roff(tag.as_ref()), roff(item.as_ref())));
    }
}

/// Escapes for [roff](https://man7.org/linux/man-pages/man7/groff.7.html).
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

fn pages(directory: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        // The page of ecr-qemu, which has no options of its own, is written by hand.
        .filter(|(name, _)| name.starts_with("ecr-runtime") && name.ends_with(".1"))
        .map(|(name, path)| (name, fs::read_to_string(path).unwrap()))
        .collect()
}
