//! The scenarios of a node, by the names with which they can be chosen, and what each builds upon.

use clap::ValueEnum;

use super::Node;

/// A scenario that can be chosen. The package and the wrapper are installed before each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// A sandbox starts through the wrapper
    Start,
    /// A volume is refused by an agent without the plugin; with `--stock-agent`
    Refuse,
    /// A volume is plugged by the pod's name, read and written
    Plug,
    /// The journal has the audit records
    Audit,
    /// The volume is unplugged by the pod's name
    Unplug,
    /// containerd is restarted while a volume is plugged
    RestartContainerd,
    /// A container is stopped while a volume is plugged; with `--kata`
    StopContainer,
    /// The pod is stopped while a volume is plugged
    StopPod,
    /// The shim is killed while a volume is plugged; with `--kata`, without KVM only if chosen
    KillShim,
}

impl Scenario {
    /// What it proves, as the report says it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Start => "a sandbox starts through the wrapper",
            Self::Refuse => "a volume is refused: the agent does not contain the plugin",
            Self::Plug => "a volume is plugged by the pod's name, read and written",
            Self::Audit => "the journal has the audit records",
            Self::Unplug => "the volume is unplugged by the pod's name",
            Self::RestartContainerd => "containerd is restarted while a volume is plugged",
            Self::StopContainer => "a container is stopped while a volume is plugged",
            Self::StopPod => "the pod is stopped while a volume is plugged",
            Self::KillShim => "the shim is killed while a volume is plugged",
        }
    }

    /// The scenarios that run because this one was chosen: those before, which it builds upon, and
    /// the one after it that leaves the sandbox as it was.
    fn with(self) -> &'static [Self] {
        match self {
            Self::Start => &[],
            // It has a pod of its own.
            Self::KillShim => &[],
            Self::Plug | Self::Audit | Self::Unplug => &[Self::Start, Self::Plug, Self::Unplug],
            Self::Refuse | Self::RestartContainerd | Self::StopContainer | Self::StopPod => {
                &[Self::Start]
            }
        }
    }

    /// Whether it cannot be expected to pass where the runtime is emulated. containerd's CRI plugin
    /// gives the end of a container 10 s, a constant, and removes the bundles then. The clean-up of
    /// an emulated runtime took 11 s (Kata 3.30, containerd 1.7.24), did not find its bundle, and
    /// left QEMU running.
    fn needs_kvm(self) -> bool {
        self == Self::KillShim
    }

    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Scenarios that run, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selection(Vec<Scenario>);

impl Selection {
    /// Parses the names that [`Selection::names`] returned.
    ///
    /// # Panics
    /// One is unknown: harness and suite are one program.
    pub(super) fn parse(names: &str) -> Self {
        let parse = |name| Scenario::from_str(name, false).unwrap_or_else(|e| panic!("{e}"));
        Self(names.split(',').map(parse).collect())
    }

    /// The names, separated by commas.
    pub(super) fn names(&self) -> String {
        self.0.iter().map(|scenario| scenario.name()).collect::<Vec<_>>().join(",")
    }

    pub(super) fn has(&self, scenario: Scenario) -> bool {
        self.0.contains(&scenario)
    }
}

impl Node {
    /// The scenarios that this node has.
    pub fn all_scenarios(&self) -> Vec<Scenario> {
        let has = |scenario: &Scenario| match scenario {
            Scenario::Start => true,
            Scenario::Refuse => !self.plugin,
            Scenario::StopContainer | Scenario::KillShim => self.plugin && self.kata.is_some(),
            _ => self.plugin,
        };
        Scenario::value_variants().iter().copied().filter(has).collect()
    }

    /// The scenarios that run: those that were chosen with what belongs to them, or all that can be
    /// expected to pass.
    pub(super) fn selection(&self, is_emulated: bool) -> Selection {
        let chosen = |one: &Scenario| match &self.scenarios[..] {
            [] => !(is_emulated && one.needs_kvm()),
            chosen => chosen.iter().any(|of| of == one || of.with().contains(one)),
        };
        Selection(self.all_scenarios().into_iter().filter(chosen).collect())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn node(kata: bool, plugin: bool, scenarios: &[Scenario]) -> Node {
        let kata = kata.then(|| "/kata".into());
        let scenarios = scenarios.to_vec();
        Node { package: "/deb".into(), kata, plugin, emulated: false, scenarios }
    }

    #[rstest]
    #[case::of_the_harness(false, true, "start,plug,audit,unplug,restart-containerd,stop-pod")]
    #[case::of_kata(
        true,
        true,
        "start,plug,audit,unplug,restart-containerd,stop-container,stop-pod,kill-shim"
    )]
    #[case::of_a_stock_agent(true, false, "start,refuse")]
    fn all_scenarios_of_a_node_run_if_none_is_chosen(
        #[case] kata: bool,
        #[case] plugin: bool,
        #[case] names: &str,
    ) {
        let selection = node(kata, plugin, &[]).selection(false);
        assert_eq!(selection.names(), names);
        assert_eq!(Selection::parse(names), selection);
    }

    #[test]
    fn a_shim_is_killed_in_an_emulated_node_only_if_that_was_chosen() {
        let all = node(true, true, &[]);
        assert!(!all.selection(true).has(Scenario::KillShim), "{:?}", all.selection(true));
        assert!(all.selection(true).has(Scenario::StopPod));
        assert!(node(true, true, &[Scenario::KillShim]).selection(true).has(Scenario::KillShim));
    }

    #[rstest]
    #[case::own_pod(&[Scenario::KillShim], "kill-shim")]
    #[case::restored_afterwards(&[Scenario::Audit], "start,plug,audit,unplug")]
    #[case::beginning(&[Scenario::StopPod], "start,stop-pod")]
    #[case::order(
        &[Scenario::KillShim, Scenario::StopContainer, Scenario::KillShim],
        "start,stop-container,kill-shim"
    )]
    fn a_chosen_scenario_runs_with_what_it_builds_upon(
        #[case] chosen: &[Scenario],
        #[case] names: &str,
    ) {
        assert_eq!(node(true, true, chosen).selection(false).names(), names);
    }
}
