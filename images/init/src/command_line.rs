//! The [kernel command line](https://docs.kernel.org/admin-guide/kernel-parameters.html),
//! `/proc/cmdline`: module parameters and the guest's own switches.

use std::fs;

use crate::error::{Error, at};

const PATH: &str = "/proc/cmdline";

/// The parameters of the command line, in order.
pub(crate) struct CommandLine {
    parameters: Vec<(String, Option<String>)>,
}

impl CommandLine {
    /// Reads the command line of the running kernel.
    pub(crate) fn read() -> Result<Self, Error> {
        Ok(Self::parse(&fs::read_to_string(PATH).map_err(at(PATH))?))
    }

    /// Splits at white space outside of double quotes, and removes the quotes.
    pub(crate) fn parse(text: &str) -> Self {
        let mut quoted = false;
        let parameters = text
            .split(|c: char| {
                quoted ^= c == '"';
                c.is_whitespace() && !quoted
            })
            .map(|word| word.replace('"', ""))
            .filter(|word| !word.is_empty())
            .map(|word| match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (word, None),
            })
            .collect();
        Self { parameters }
    }

    /// Returns the modules of `guest.modules=a,b`, which are loaded before the image's own list.
    pub(crate) fn extra_modules(&self) -> impl Iterator<Item = &str> {
        self.parameters
            .iter()
            .filter(|(name, _)| name == "guest.modules")
            .filter_map(|(_, value)| value.as_deref())
            .flat_map(|value| value.split(','))
            .filter(|module| !module.is_empty())
    }

    /// Returns the parameters of `module` in the format of `finit_module(2)`. For modules, modprobe
    /// copies `module.parameter=value` from the command line; the kernel does so only for built-in
    /// code.
    pub(crate) fn module_parameters(&self, module: &str) -> String {
        let mut text = String::new();
        for (name, value) in &self.parameters {
            let Some((owner, parameter)) = name.split_once('.') else { continue };
            if owner.replace('-', "_") != module {
                continue;
            }
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(parameter);
            if let Some(value) = value {
                text.push('=');
                let quote = if value.contains(char::is_whitespace) { "\"" } else { "" };
                text.extend([quote, value, quote]);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_parameters_are_those_of_that_module_in_order() {
        let line = CommandLine::parse(
            "quiet scsi_mod.scan=none sd_mod.x=1 scsi-mod.max_luns=9 scsi_mod.flag\n",
        );
        assert_eq!(line.module_parameters("scsi_mod"), "scan=none max_luns=9 flag");
        assert_eq!(line.module_parameters("virtio_scsi"), "");
    }

    #[test]
    fn a_quoted_value_keeps_its_spaces() {
        let line = CommandLine::parse(r#"root=x m.text="a b" m.last=1"#);
        assert_eq!(line.module_parameters("m"), r#"text="a b" last=1"#);
    }

    #[test]
    fn extra_modules_are_separated_by_commas_and_the_parameter_can_be_repeated() {
        let line = CommandLine::parse(
            "guest.modules=ahci,,vsock_loopback guest.modules guest.modules=loop",
        );
        assert_eq!(line.extra_modules().collect::<Vec<_>>(), ["ahci", "vsock_loopback", "loop"]);
    }
}
