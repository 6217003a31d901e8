//! A command line that is being typed, up to the cursor, as bash has it in `COMP_LINE`
//! ([programmable completion](https://www.gnu.org/software/bash/manual/html_node/Programmable-Completion.html)).

/// The line in words.
#[derive(Debug)]
pub(super) struct Line {
    words: Vec<String>,
}

/// What an option's value is to be completed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Pod,
    Container,
    Sandbox,
    Volume,
    DevicePath,
    MountPath,
}

impl Line {
    /// Splits `text`; the last word is the one that is being typed, and may be empty.
    pub(super) fn parse(text: &str) -> Self {
        let (mut words, mut word) = (Vec::new(), String::new());
        let (mut quote, mut is_escaped) = (None, false);
        for c in text.chars() {
            match (quote, c) {
                _ if is_escaped => {
                    word.push(c);
                    is_escaped = false;
                }
                (None | Some('"'), '\\') => is_escaped = true,
                (None, '\'' | '"') => quote = Some(c),
                (Some(open), _) if open == c => quote = None,
                (None, c) if c.is_whitespace() => words.push(std::mem::take(&mut word)),
                _ => word.push(c),
            }
        }
        words.retain(|word| !word.is_empty());
        words.push(word);
        Self { words }
    }

    /// The option whose value is being typed, and what is typed of the value.
    fn typed(&self) -> Option<(&str, &str)> {
        let (last, before) = self.words.split_last()?;
        match last.split_once('=') {
            Some(typed) if last.starts_with("--") => Some(typed),
            _ => Some((before.last()?, last)),
        }
    }

    /// What is to be completed, and its beginning; `None` if it is no name.
    pub(super) fn wanted(&self) -> Option<(Wanted, &str)> {
        let (option, prefix) = self.typed()?;
        let wanted = match option {
            "--pod" => Wanted::Pod,
            "--container" => Wanted::Container,
            "--sandbox" => Wanted::Sandbox,
            "--volume" => Wanted::Volume,
            // A new path is not known yet.
            "--device-path" | "--mount-path"
                if self.words.iter().any(|word| word == "hot-plug") =>
            {
                return None;
            }
            "--device-path" => Wanted::DevicePath,
            "--mount-path" => Wanted::MountPath,
            _ => return None,
        };
        Some((wanted, prefix))
    }

    /// The value of `option`, if it was typed as a whole.
    pub(super) fn value(&self, option: &str) -> Option<&str> {
        let (_, words) = self.words.split_last()?;
        words.iter().enumerate().find_map(|(index, word)| match word.split_once('=') {
            Some((name, value)) if name == option => Some(value),
            _ if word == option => words.get(index + 1).map(String::as_str),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("ecr-runtime block-volume list --pod ", Some((Wanted::Pod, "")))]
    #[case("ecr-runtime block-volume list --pod shop/db", Some((Wanted::Pod, "shop/db")))]
    #[case("ecr-runtime block-volume list --pod=shop/db:0", Some((Wanted::Pod, "shop/db:0")))]
    #[case("ecr-runtime check --sandbox '7d", Some((Wanted::Sandbox, "7d")))]
    #[case("ecr-runtime block-volume hot-unplug --device-path /dev/x", Some((Wanted::DevicePath, "/dev/x")))]
    #[case("ecr-runtime block-volume hot-unplug --mount-path /d", Some((Wanted::MountPath, "/d")))]
    #[case("ecr-runtime block-volume hot-plug --device-path /dev/x", None)]
    #[case("ecr-runtime block-volume hot-plug --mount-path /d", None)]
    #[case("ecr-runtime block-volume list --pod a ", None)]
    #[case("ecr-runtime block-volume list --po", None)]
    #[case("ecr-runtime --run-dir", None)]
    #[case("", None)]
    fn the_option_before_the_cursor_tells_what_is_wanted(
        #[case] text: &str,
        #[case] wanted: Option<(Wanted, &str)>,
    ) {
        assert_eq!(Line::parse(text).wanted(), wanted);
    }

    #[test]
    fn values_are_found_in_both_forms_and_without_quotes() {
        let line =
            Line::parse(r#"ecr-runtime --run-dir="/a b" list --pod 'x/y' --cri c\ d --volume 0"#);
        let value = |option| line.value(option);
        assert_eq!(
            [value("--run-dir"), value("--pod"), value("--cri"), value("--sandbox")],
            [Some("/a b"), Some("x/y"), Some("c d"), None]
        );
        // What is being typed is no value yet.
        assert_eq!(value("--volume"), None);
    }
}
