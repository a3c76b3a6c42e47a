//! Control groups: which controllers the kernel offers, on cgroup v1 and v2.

/// Controllers that the kubelet cannot do without.
const REQUIRED: [&str; 3] = ["cpu", "memory", "pids"];

/// The enabled controllers and the version of cgroups that offers them; arguments as of [`missing_controllers`].
pub(crate) fn controllers(v2_controllers: Option<&str>, proc_cgroups: &str) -> (u8, Vec<String>) {
    match v2_controllers {
        Some(controllers) => {
            let names = controllers.split_whitespace().map(str::to_owned);
            (2, names.collect())
        }
        None => {
            let enabled = proc_cgroups.lines().filter_map(|line| {
                let fields: Vec<_> = line.split_whitespace().collect();
                match fields[..] {
                    [name, _, _, "1"] => Some(name.to_owned()),
                    _ => None,
                }
            });
            (1, enabled.collect())
        }
    }
}

/// The required controllers that are missing.
///
/// `v2_controllers` is /sys/fs/cgroup/cgroup.controllers, which exists on v2 only; `proc_cgroups`
/// is /proc/cgroups, which says of v1 what is compiled in and enabled.
pub(crate) fn missing_controllers(
    v2_controllers: Option<&str>,
    proc_cgroups: &str,
) -> Vec<&'static str> {
    let (_, enabled) = controllers(v2_controllers, proc_cgroups);
    let has = |name: &str| enabled.iter().any(|known| known == name);
    REQUIRED.into_iter().filter(|name| !has(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t2\t60\t1\nmemory\t6\t90\t0\npids\t9\t70\t1\n";

    #[test]
    fn v1_tells_what_is_switched_off() {
        assert_eq!(missing_controllers(None, V1), ["memory"]);
    }

    #[test]
    fn v2_lists_what_there_is() {
        assert!(missing_controllers(Some("cpuset cpu io memory pids\n"), V1).is_empty());
        assert_eq!(missing_controllers(Some("cpu io pids"), ""), ["memory"]);
    }
}
