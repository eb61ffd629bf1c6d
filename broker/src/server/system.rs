//! What the system lets this process have.

use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// How many files may be open.
#[expect(
    clippy::disallowed_methods,
    reason = "how many files may be open is the system's to say, in a simulation too"
)]
pub(crate) fn descriptors_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    usize::try_from(limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX)
}

/// How many bytes of memory it may have, if that is less than the machine has: by its control
/// groups, as containers have them, or by `ulimit -v`.
#[expect(
    clippy::disallowed_methods,
    reason = "how much memory there is is the system's to say, in a simulation too"
)]
pub(crate) fn memory_max() -> Option<usize> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let of_groups = memory_max_of(&groups, read);
    let of_process = getrlimit(Resource::As).current;
    let least = of_groups.into_iter().chain(of_process).min()?;
    Some(usize::try_from(least).unwrap_or(usize::MAX))
}

/// The least of the limits of the groups that `/proc/self/cgroup` names and of those above them. A
/// container sees its own group as the topmost one, also where it is named as the host sees it.
fn memory_max_of(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let files = groups.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, group) = line.split_once(':')?;
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return None,
        };
        let group = Path::new(group.trim_start_matches('/'));
        let ancestors = group.ancestors().map(move |at| Path::new(root).join(at).join(file));
        Some(ancestors.collect::<Vec<PathBuf>>())
    });
    // Without a limit there is a word in place of the number, or one larger than any memory.
    let limit = |path: PathBuf| read(&path)?.trim().parse().ok().filter(|max| *max < 1 << 50);
    files.flatten().filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        memory_max_of(groups, |path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path)?;
            Some(format!("{}\n", file.1))
        })
    }

    #[test]
    fn the_least_limit_of_a_group_and_those_above_it_counts() {
        let deep = [
            ("/sys/fs/cgroup/a/b/memory.max", "max"),
            ("/sys/fs/cgroup/a/memory.max", "134217728"),
            ("/sys/fs/cgroup/memory.max", "268435456"),
        ];
        assert_eq!(found("0::/a/b\n", &deep), Some(134_217_728));
        assert_eq!(found("0::/\n", &deep), Some(268_435_456));
        assert_eq!(found("0::/a/b\n", &deep[..1]), None);
        assert_eq!(found("", &deep), None);
        assert_eq!(found("no line of it\n0:\n", &deep), None);
        // A container's own is the topmost one, whatever it is called.
        assert_eq!(found("0::/../../kubepods/x\n", &deep[2..]), Some(268_435_456));
        let first = [
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "67108864"),
            ("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "9223372036854771712"),
        ];
        let groups = "3:cpu,cpuacct:/docker/x\n2:memory:/docker/x\n0::/system.slice\n";
        assert_eq!(found(groups, &first), Some(67_108_864));
        assert_eq!(found(groups, &first[1..]), None);
    }
}
