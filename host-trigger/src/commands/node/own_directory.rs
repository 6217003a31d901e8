//! The commands that give the configuration of a runtime class a directory of its own.

use std::path::Path;

use super::configured::{Configured, Examined};
use crate::{
    Error,
    kata::node::runtime_class::{Manager, RuntimeClass},
};

/// Returns the commands for each runtime class of QEMU's whose directory has others, too.
pub(super) fn commands(configured: &Configured) -> Vec<String> {
    let mut commands = Vec::new();
    for class in &configured.classes {
        let Some(file) = &class.configuration else { continue };
        let Some(directory) = file.parent().filter(|path| configured.selected.contains(*path))
        else {
            continue;
        };
        let Some(Ok(examined)) = configured.directories.get(directory) else { continue };
        if matches!(examined.use_of, Err(Error::MixedConfigurations { .. }))
            && is_qemu(examined, file)
        {
            commands.extend(of_class(class, file, examined));
        }
    }
    commands
}

fn is_qemu(examined: &Examined, file: &Path) -> bool {
    let of_file = examined.directory.configurations.iter().find(|one| one.file == file);
    of_file.is_some_and(|one| one.hypervisors == ["qemu"])
}

fn of_class(class: &RuntimeClass, file: &Path, examined: &Examined) -> Vec<String> {
    let name = if class.name.is_empty() { "ecr" } else { &class.name };
    let own = Path::new("/etc/kata-containers").join(name);
    let copy = own.join(file.file_name().unwrap_or_default());
    let mut lines = vec![
        format!("# a directory of its own for the configuration of {name}:"),
        format!("mkdir -p {}", quoted(&own)),
        format!("cp {} {}", quoted(file), quoted(&own)),
    ];
    if examined.directory.has_config_d {
        let config_d = examined.directory.config_d();
        lines.push(format!("cp -r {} {}", quoted(&config_d), quoted(&own)));
    }
    match &class.defined {
        Some((Manager::Containerd, defined)) => lines.extend([
            format!(
                "# then, in {}: ConfigPath = \"{}\" in the options of the runtime {name}",
                defined.display(),
                copy.display()
            ),
            "systemctl restart containerd".to_owned(),
            format!("ecr-runtime node enable --runtime-class {}", quoted(Path::new(name))),
        ]),
        Some((Manager::Crio, defined)) => lines.extend([
            format!(
                "# then, in {}: runtime_config_path = \"{}\" in the runtime {name}",
                defined.display(),
                copy.display()
            ),
            "systemctl restart crio".to_owned(),
            format!("ecr-runtime node enable --runtime-class {}", quoted(Path::new(name))),
        ]),
        None => lines.push(format!(
            "# then define a runtime class whose configuration is {}, and run this command again",
            copy.display()
        )),
    }
    lines
}

/// A path as a word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    match text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}
