//! The system calls the appliance makes; every other one fails with EPERM, as if it were not permitted.
//!
//! Failing, not killing: what the C library tries and can do without (it asks for much) costs nothing that way, and a
//! call that we forgot costs one request and not the service. What matters is not in the list: no program is started, no
//! process made, none looked into, nothing mounted, no namespace entered, no module, key, or BPF program loaded.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::PrivilegeError;

/// By purpose. What both architectures have; those that only x86-64 still has are below.
const CALLS: &[c_long] = &[
    // Files.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_ioctl,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_fadvise64,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_copy_file_range,
    libc::SYS_pipe2,
    // Sockets; `socket` itself is below, by family.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // Threads; `clone` itself is below, for threads only.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_setpriority,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals, to ourselves.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // Who we are.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_umask,
];

/// Older forms of the same, which the C library and SQLite still use where they exist.
#[cfg(target_arch = "x86_64")]
const OLDER_CALLS: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_readlink,
    libc::SYS_chmod,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_dup2,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER_CALLS: &[c_long] = &[];

/// What is left to a process that waits for one descriptor, then says one thing by another, and ends ([`super::Keeper`]).
const KEEPER_CALLS: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_close,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The wire, operators, the bridge's state; nothing else speaks to us, or we to it.
const FAMILIES: [libc::c_int; 5] =
    [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET];

/// False where the processor's filters cannot be written.
pub(super) fn restrict_appliance() -> Result<bool, PrivilegeError> {
    restrict([new_clone(), listed().map_err(|error| failed(&error))?])
}

pub(super) fn restrict_keeper() -> Result<bool, PrivilegeError> {
    restrict([keepers().map_err(|error| failed(&error))?])
}

fn failed(error: &dyn std::fmt::Display) -> PrivilegeError {
    PrivilegeError::Seccomp { reason: error.to_string() }
}

fn restrict(filters: impl IntoIterator<Item = Filter>) -> Result<bool, PrivilegeError> {
    let Ok(architecture) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(false) };
    for filter in filters {
        let (rules, otherwise, matched) = filter;
        let filter = SeccompFilter::new(rules, otherwise, matched, architecture);
        let program: BpfProgram =
            filter.and_then(TryInto::try_into).map_err(|error: seccompiler::BackendError| failed(&error))?;
        apply_filter(&program).map_err(|error| failed(&error))?;
    }
    Ok(true)
}

/// Rules, what becomes of other calls, what becomes of those that match.
type Filter = (BTreeMap<c_long, Vec<SeccompRule>>, SeccompAction, SeccompAction);

fn denied(errno: libc::c_int) -> SeccompAction {
    SeccompAction::Errno(u32::try_from(errno).unwrap_or(1))
}

/// `clone3` hides its flags in memory, where no filter looks. Without it the C library takes `clone`.
fn new_clone() -> Filter {
    (BTreeMap::from([(libc::SYS_clone3, Vec::new())]), SeccompAction::Allow, denied(libc::ENOSYS))
}

fn listed() -> Result<Filter, seccompiler::BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> =
        CALLS.iter().chain(OLDER_CALLS).map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_clone3, Vec::new());
    let thread = u64::try_from(libc::CLONE_THREAD).unwrap_or_default();
    rules.insert(libc::SYS_clone, vec![argument(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    let families = FAMILIES.iter().map(|family| number(*family));
    let families = families.map(|family| argument(0, SeccompCmpOp::Eq, family));
    rules.insert(libc::SYS_socket, families.collect::<Result<_, _>>()?);
    // A thread's name is all that it may say about itself.
    let naming = argument(0, SeccompCmpOp::Eq, number(libc::PR_SET_NAME))?;
    rules.insert(libc::SYS_prctl, vec![naming]);
    Ok((rules, denied(libc::EPERM), SeccompAction::Allow))
}

fn keepers() -> Result<Filter, seccompiler::BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> =
        KEEPER_CALLS.iter().map(|call| (*call, Vec::new())).collect();
    // Memory, but none that could be executed.
    let executable = number(libc::PROT_EXEC);
    rules.insert(libc::SYS_mmap, vec![argument(2, SeccompCmpOp::MaskedEq(executable), 0)?]);
    Ok((rules, denied(libc::EPERM), SeccompAction::Allow))
}

fn argument(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?])
}

fn number(value: libc::c_int) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_a_rule_opens_nothing_and_does_nothing_that_the_appliance_may_not() {
        let (appliance, ..) = listed().unwrap();
        let (rules, otherwise, _) = keepers().unwrap();
        assert_eq!(otherwise, SeccompAction::Errno(1));
        assert!(rules.keys().all(|call| appliance.contains_key(call)));
        assert!(!rules[&libc::SYS_mmap].is_empty());
        for call in [libc::SYS_openat, libc::SYS_socket, libc::SYS_clone, libc::SYS_mprotect, libc::SYS_ioctl]
        {
            assert!(!rules.contains_key(&call), "{call}");
        }
    }

    #[test]
    fn what_takes_a_machine_over_is_not_in_the_list() {
        let (rules, otherwise, _) = listed().unwrap();
        assert_eq!(otherwise, SeccompAction::Errno(1));
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_mount,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_bpf,
            libc::SYS_init_module,
            libc::SYS_kexec_load,
            libc::SYS_setuid,
            libc::SYS_kill,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
        ] {
            assert!(!rules.contains_key(&call), "{call}");
        }
        // With an empty list of conditions a call is allowed whatever its arguments.
        assert!(!rules[&libc::SYS_clone].is_empty() && !rules[&libc::SYS_socket].is_empty());
    }
}
