//! The system call filter of every sandbox (`config-linux.md`, "Seccomp"; seccomp(2)).
//!
//! Three answers: what ordinary programs use is allowed; what would reach outside the sandbox is refused with EPERM; what
//! this table does not know (a call of a newer kernel, `clone3`, `io_uring_*`) is answered ENOSYS, so that libraries fall
//! back to an older call that is judged here.
//!
//! Invariant: a call that is not in [`ALLOWED`] can't be made.

use serde::{Deserialize, Serialize};

/// `linux.seccomp`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// What happens with a call no rule names.
    pub default_action: String,
    /// The errno of the default action.
    pub default_errno_ret: u32,
    /// Only the machine's own system call tables: others (x32, i386) kill the process.
    pub architectures: Vec<String>,
    /// Rules.
    pub syscalls: Vec<Rule>,
}

/// One of `linux.seccomp.syscalls`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Calls by name.
    pub names: Vec<String>,
    /// `SCMP_ACT_…`.
    pub action: String,
    /// The errno, for `SCMP_ACT_ERRNO`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// Conditions that must all hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
}

/// A condition on an argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    /// Which argument, from 0.
    pub index: u32,
    /// What it is compared with (the mask, for a masked comparison).
    pub value: u64,
    /// The wanted value under the mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_two: Option<u64>,
    /// `SCMP_CMP_…`.
    pub op: String,
}

/// Flags of clone(2) that make namespaces: mount, cgroup, uts, ipc, user, pid, net.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Address families sockets may have: unix, IPv4, IPv6, netlink (`getifaddrs`).
const FAMILIES: [u64; 4] = [1, 2, 10, 16];

/// Values of personality(2) that change nothing of weight.
const PERSONALITIES: [u64; 3] = [0x0, 0x0008, 0xffff_ffff];

/// What every program may call, names apart by spaces.
const ALLOWED: &[&str] = &[
    // Files and folders.
    "access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fallocate",
    "fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat",
    "fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init",
    "inotify_init1 inotify_rm_watch ioctl lchown lgetxattr link linkat listxattr listxattrat llistxattr lremovexattr lseek",
    "lsetxattr lstat mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv",
    "preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename renameat",
    "renameat2 rmdir sendfile setxattr setxattrat splice stat statfs statx symlink symlinkat sync sync_file_range syncfs tee",
    "truncate umask unlink unlinkat utime utimensat utimes vmsplice write writev cachestat",
    // Memory.
    "brk get_mempolicy madvise map_shadow_stack membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap",
    "mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise remap_file_pages set_mempolicy",
    "mbind shmat shmctl shmdt shmget",
    // Processes, threads and identity.
    "alarm arch_prctl capget capset execve execveat exit exit_group fork get_robust_list get_thread_area getcpu getegid",
    "geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid",
    "gettid getuid ioprio_get ioprio_set kill pause pidfd_getfd pidfd_open pidfd_send_signal prctl prlimit64 process_vm_readv",
    "process_vm_writev ptrace rseq restart_syscall sched_get_priority_max sched_get_priority_min sched_getaffinity",
    "sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam",
    "sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid",
    "setgroups setitimer getitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid sysinfo",
    "tgkill times tkill uname vfork wait4 waitid landlock_add_rule landlock_create_ruleset landlock_restrict_self getrandom",
    "riscv_flush_icache riscv_hwprobe",
    // Signals.
    "rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo",
    "sigaltstack signalfd signalfd4",
    // Time and waiting.
    "clock_getres clock_gettime clock_nanosleep epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait",
    "eventfd eventfd2 futex futex_requeue futex_wait futex_waitv futex_wake gettimeofday io_cancel io_destroy io_getevents",
    "io_pgetevents io_setup io_submit nanosleep poll ppoll pselect6 select time timer_create timer_delete timer_getoverrun",
    "timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime",
    // Sockets (socket(2) itself is judged by its family) and messages.
    "accept accept4 bind connect getpeername getsockname getsockopt listen mq_getsetattr mq_notify mq_open mq_timedreceive",
    "mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd recvfrom recvmmsg recvmsg semctl semget semop semtimedop sendmmsg",
    "sendmsg sendto setsockopt shutdown socketpair",
];

/// What would reach outside the sandbox, or the kernel itself: refused by name so that programs see EPERM.
const REFUSED: &[&str] = &[
    "acct add_key adjtimex bpf chroot clock_adjtime clock_settime create_module delete_module fanotify_init fanotify_mark",
    "finit_module fsconfig fsmount fsopen fspick get_kernel_syms init_module io_uring_enter io_uring_register io_uring_setup",
    "ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie migrate_pages mount mount_setattr move_mount",
    "move_pages nfsservctl open_by_handle_at open_tree perf_event_open pivot_root query_module quotactl quotactl_fd reboot",
    "request_key setdomainname sethostname setns settimeofday swapoff swapon _sysctl syslog umount umount2 unshare uselib",
    "userfaultfd ustat vhangup vm86 vm86old",
];

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;

/// What building an image takes besides, in the sandbox' own namespaces: mounts, a root and a host name for the Dockerfile's
/// commands.
const BUILDING: &str = "chroot mount pivot_root sethostname umount2 unshare";

/// The filter of a sandbox that builds an image: that of every sandbox, but for [`BUILDING`]. The commands of a Dockerfile run
/// under [`filter`].
pub fn building(arch: &str) -> Filter {
    let mut filter = filter(arch);
    for rule in filter.syscalls.iter_mut().filter(|rule| rule.action == "SCMP_ACT_ERRNO") {
        rule.names.retain(|name| !BUILDING.split(' ').any(|call| call == name));
    }
    if let Some(allowed) = filter.syscalls.first_mut() {
        allowed.names.extend(BUILDING.split(' ').map(str::to_owned));
    }
    filter
}

/// The filter of every sandbox on a machine with this architecture (`std::env::consts::ARCH`).
pub fn filter(arch: &str) -> Filter {
    let rule = |calls: &[&str], action: &str, errno_ret, args| Rule { names: names(calls), action: action.to_owned(), errno_ret, args };
    let equal = |value| vec![Argument { index: 0, value, value_two: None, op: "SCMP_CMP_EQ".to_owned() }];
    let mut syscalls = vec![rule(ALLOWED, "SCMP_ACT_ALLOW", None, Vec::new()), rule(REFUSED, "SCMP_ACT_ERRNO", Some(EPERM), Vec::new())];
    let masked = vec![Argument { index: 0, value: CLONE_NAMESPACES, value_two: Some(0), op: "SCMP_CMP_MASKED_EQ".to_owned() }];
    syscalls.push(rule(&["clone"], "SCMP_ACT_ALLOW", None, masked));
    for family in FAMILIES {
        syscalls.push(rule(&["socket"], "SCMP_ACT_ALLOW", None, equal(family)));
    }
    // Every family above the highest allowed one: AF_VSOCK, AF_PACKET, AF_ALG, AF_XDP and what comes.
    let above = vec![Argument { index: 0, value: 16, value_two: None, op: "SCMP_CMP_GT".to_owned() }];
    syscalls.push(rule(&["socket"], "SCMP_ACT_ERRNO", Some(EAFNOSUPPORT), above));
    for personality in PERSONALITIES {
        syscalls.push(rule(&["personality"], "SCMP_ACT_ALLOW", None, equal(personality)));
    }
    Filter { default_action: "SCMP_ACT_ERRNO".to_owned(), default_errno_ret: ENOSYS, architectures: native(arch), syscalls }
}

fn names(lines: &[&str]) -> Vec<String> {
    lines.iter().flat_map(|line| line.split(' ')).map(str::to_owned).collect()
}

fn native(arch: &str) -> Vec<String> {
    let name = match arch {
        "x86_64" => "SCMP_ARCH_X86_64",
        "aarch64" => "SCMP_ARCH_AARCH64",
        "riscv64" => "SCMP_ARCH_RISCV64",
        // An empty list means the machine's own architecture.
        _ => return Vec::new(),
    };
    vec![name.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_call_is_both_allowed_and_refused_nor_listed_twice() {
        let allowed: BTreeSet<String> = names(ALLOWED).into_iter().collect();
        let refused: BTreeSet<String> = names(REFUSED).into_iter().collect();
        assert_eq!(allowed.len(), names(ALLOWED).len());
        assert_eq!(refused.len(), names(REFUSED).len());
        assert_eq!(allowed.intersection(&refused).count(), 0);
    }

    #[test]
    fn a_build_may_mount_and_nothing_else_besides() {
        let (usual, building) = (filter("x86_64"), building("x86_64"));
        let more: Vec<&String> = building.syscalls[0].names.iter().filter(|name| !usual.syscalls[0].names.contains(name)).collect();
        assert_eq!(more, BUILDING.split(' ').collect::<Vec<_>>());
        assert_eq!(building.syscalls[1].names.len() + more.len(), usual.syscalls[1].names.len(), "each was refused by name");
        assert_eq!(building.syscalls[2..], usual.syscalls[2..]);
    }

    #[test]
    fn what_makes_namespaces_is_not_allowed_without_a_condition() {
        for call in ["clone", "clone3", "unshare", "setns", "mount", "socket", "personality", "io_uring_setup", "bpf", "keyctl"] {
            assert!(!names(ALLOWED).iter().any(|name| name == call), "`{call}`");
        }
    }
}
