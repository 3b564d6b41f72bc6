/*
 * The init of the guest kernel's own test: runs as PID 1, checks what the agent and containers need, prints
 * one line for each ("ok NAME" or "FAIL NAME: why") on the console and resets the machine.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Needs nothing but itself: static, no shell, no files. selftest/run.sh builds and boots it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/ptp_clock.h>
#include <linux/seccomp.h>
#include <linux/vm_sockets.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <immintrin.h>

static int failures;

static void report(const char *name, int ok, const char *fmt, ...)
{
	va_list ap;
	char text[256];

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	if (!ok)
		failures++;
	printf("%s %s%s%s\n", ok ? "ok" : "FAIL", name, text[0] ? ": " : "", text);
}

/* The condition is a call that sets errno when it fails. */
static void check(const char *name, int succeeded)
{
	report(name, succeeded, "%s", succeeded ? "" : strerror(errno));
}

static double now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static double now_by_syscall(clockid_t clock)
{
	struct timespec t;

	syscall(SYS_clock_gettime, clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void show(const char *path, int lines)
{
	char line[512];
	FILE *file = fopen(path, "r");

	if (!file) {
		printf("# %s: %s\n", path, strerror(errno));
		return;
	}
	while (lines-- > 0 && fgets(line, sizeof line, file))
		printf("# %s", line);
	fclose(file);
}

static void test_mounts(void)
{
	char controllers[256] = "", *missing = NULL;
	static const char *const wanted[] = { "memory", "cpu ", "pids", "io ", "hugetlb", "cpuset" };
	unsigned count;
	int fd;

	mkdir("/proc", 0755); mkdir("/sys", 0755); mkdir("/tmp", 0755); mkdir("/dev", 0755);
	check("mount proc", mount("proc", "/proc", "proc", 0, NULL) == 0);
	check("mount sysfs", mount("sysfs", "/sys", "sysfs", 0, NULL) == 0);
	if (access("/dev/null", F_OK))
		check("mount devtmpfs", mount("dev", "/dev", "devtmpfs", 0, NULL) == 0);
	check("mount tmpfs", mount("tmp", "/tmp", "tmpfs", 0, "size=16m,mode=1777") == 0);
	mkdir("/tmp/a", 0755); mkdir("/tmp/b", 0755); mkdir("/tmp/w", 0755); mkdir("/tmp/o", 0755);
	check("mount overlay", mount("o", "/tmp/o", "overlay", 0, "lowerdir=/tmp/a,upperdir=/tmp/b,workdir=/tmp/w") == 0);
	mkdir("/tmp/pts", 0755); mkdir("/tmp/mq", 0755); mkdir("/tmp/cg", 0755);
	check("mount devpts", mount("p", "/tmp/pts", "devpts", 0, "newinstance,ptmxmode=0666") == 0);
	check("mount mqueue", mount("m", "/tmp/mq", "mqueue", 0, NULL) == 0);
	check("mount cgroup2", mount("c", "/tmp/cg", "cgroup2", 0, NULL) == 0);
	/* cpuset is there where there is a choice of processors: not in a kernel for one. */
	count = sysconf(_SC_NPROCESSORS_CONF) > 1 ? 6 : 5;
	fd = open("/tmp/cg/cgroup.controllers", O_RDONLY);
	if (fd >= 0 && read(fd, controllers, sizeof controllers - 1) > 0)
		for (unsigned i = 0; i < count; i++)
			if (!strstr(controllers, wanted[i]))
				missing = (char *)wanted[i];
	close(fd);
	controllers[strcspn(controllers, "\n")] = 0;
	report("cgroup controllers", controllers[0] && !missing, "%s%s%s", controllers, missing ? "; missing " : "", missing ? missing : "");
	show("/proc/filesystems", 40);
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), ok;

	if (fd < 0)
		return 0;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

/* A memory limit kills the child that crosses it, and nobody else. */
static void test_memory_limit(void)
{
	int status, pid;

	write_file("/tmp/cg/cgroup.subtree_control", "+memory +pids +cpu +io");
	mkdir("/tmp/cg/limited", 0755);
	check("memory.max", write_file("/tmp/cg/limited/memory.max", "8388608"));
	check("cpu.max", write_file("/tmp/cg/limited/cpu.max", "50000 100000"));
	check("pids.max", write_file("/tmp/cg/limited/pids.max", "10"));
	pid = fork();
	if (pid == 0) {
		write_file("/tmp/cg/limited/cgroup.procs", "0");
		for (;;) {
			char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

			if (p == MAP_FAILED)
				_exit(1);
			memset(p, 1, 1 << 20);
		}
	}
	waitpid(pid, &status, 0);
	report("memory limit kills", WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %#x", status);
	check("freezer", write_file("/tmp/cg/limited/cgroup.freeze", "1"));
}

/* A cgroup device program that forbids everything: opening /dev/null in the group fails, outside it works. */
static void test_device_program(void)
{
	struct bpf_insn deny[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr load = { .prog_type = BPF_PROG_TYPE_CGROUP_DEVICE, .insn_cnt = 2, .insns = (uintptr_t)deny,
				.license = (uintptr_t)"GPL" };
	union bpf_attr attach = { .attach_type = BPF_CGROUP_DEVICE };
	int group, program, status, pid;

	mkdir("/tmp/cg/nodev", 0755);
	group = open("/tmp/cg/nodev", O_RDONLY | O_DIRECTORY);
	program = syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load);
	check("bpf load", program >= 0);
	attach.target_fd = group;
	attach.attach_bpf_fd = program;
	check("bpf attach", syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof attach) == 0);
	pid = fork();
	if (pid == 0) {
		write_file("/tmp/cg/nodev/cgroup.procs", "0");
		_exit(open("/dev/null", O_RDONLY) < 0 && errno == EPERM ? 0 : 1);
	}
	waitpid(pid, &status, 0);
	report("bpf denies device", status == 0, "status %#x", status);
	check("device outside", open("/dev/null", O_RDONLY) >= 0);
}

static void test_namespaces(void)
{
	static const struct { const char *name; int flag; } spaces[] = {
		{ "mnt", CLONE_NEWNS }, { "uts", CLONE_NEWUTS }, { "ipc", CLONE_NEWIPC }, { "pid", CLONE_NEWPID },
		{ "net", CLONE_NEWNET }, { "cgroup", 0x02000000 }, { "user", CLONE_NEWUSER }, { "time", 0x80 },
	};

	for (unsigned i = 0; i < sizeof spaces / sizeof *spaces; i++) {
		int status, pid = fork();

		if (pid == 0)
			_exit(unshare(spaces[i].flag) ? errno : 0);
		waitpid(pid, &status, 0);
		report("namespace", status == 0, "%s%s%s", spaces[i].name, status ? " " : "", status ? strerror(WEXITSTATUS(status)) : "");
	}
}

static void test_seccomp(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EXDEV),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { 4, code };
	int status, pid = fork();

	if (pid == 0) {
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
			_exit(2);
		_exit(syscall(SYS_getppid) == -1 && errno == EXDEV ? 0 : 1);
	}
	waitpid(pid, &status, 0);
	report("seccomp filter", status == 0, "status %#x", status);
}

static void test_files_and_sockets(void)
{
	struct io_uring_params ring = { 0 };
	unsigned long aio = 0;
	int fds[2];
	sigset_t set;

	check("io_uring", syscall(SYS_io_uring_setup, 4, &ring) >= 0);
	check("aio", syscall(SYS_io_setup, 4, &aio) == 0);
	check("epoll", epoll_create1(0) >= 0);
	check("eventfd", eventfd(0, 0) >= 0);
	check("timerfd", timerfd_create(CLOCK_MONOTONIC, 0) >= 0);
	sigemptyset(&set);
	check("signalfd", signalfd(-1, &set, 0) >= 0);
	check("inotify", inotify_init1(0) >= 0);
	check("fanotify", fanotify_init(FAN_CLASS_NOTIF, O_RDONLY) >= 0);
	check("memfd", memfd_create("m", 0) >= 0);
	check("shmget", syscall(SYS_shmget, 0, 4096, 01600) >= 0);
	check("msgget", syscall(SYS_msgget, 0, 01600) >= 0);
	check("semget", syscall(SYS_semget, 0, 1, 01600) >= 0);
	check("mq_open", syscall(SYS_mq_open, "q", O_CREAT | O_RDWR, 0600, NULL) >= 0);
	check("socket inet", socket(AF_INET, SOCK_STREAM, 0) >= 0);
	check("socket inet6", socket(AF_INET6, SOCK_STREAM, 0) >= 0);
	check("socket packet", socket(AF_PACKET, SOCK_RAW, 0) >= 0);
	check("socket vsock", socket(AF_VSOCK, SOCK_STREAM, 0) >= 0);
	check("socket netfilter", socket(AF_NETLINK, SOCK_RAW, 12) >= 0);
	check("socketpair", socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds) == 0);
	check("/dev/net/tun", open("/dev/net/tun", O_RDWR) >= 0);
	check("/dev/fuse", open("/dev/fuse", O_RDWR) >= 0);
	check("devpts/ptmx", open("/tmp/pts/ptmx", O_RDWR) >= 0);
	check("/dev/hwrng or none", access("/dev/hwrng", R_OK) == 0 || errno == ENOENT);
	check("pidfd_open", syscall(SYS_pidfd_open, getpid(), 0) >= 0);
	check("keyctl", syscall(SYS_keyctl, 1 /* join session */, NULL, 0, 0, 0) >= 0);
	check("membarrier", syscall(SYS_membarrier, 0, 0, 0) > 0);
}

static void test_ptp(void)
{
	int fd = open("/dev/ptp0", O_RDONLY);
	struct timespec t = { 0 };

	if (fd < 0)
		printf("# no /dev/ptp0: this host does not answer the clock pairing call\n");
	else
		report("ptp_kvm", clock_gettime((~(clockid_t)fd << 3) | 3, &t) == 0, "difference to wall clock %.6f s",
		       t.tv_sec + t.tv_nsec / 1e9 - now(CLOCK_REALTIME));
	show("/sys/devices/system/clocksource/clocksource0/current_clocksource", 1);
	show("/sys/devices/system/clocksource/clocksource0/available_clocksource", 1);
}

/* The clock read in user space and the one read by the kernel are the same clock. */
static void test_clocks(void)
{
	double worst = 0, begin = now(CLOCK_MONOTONIC), last = begin;
	int backwards = 0;

	for (int i = 0; i < 2000; i++) {
		double fast = now(CLOCK_MONOTONIC), slow = now_by_syscall(CLOCK_MONOTONIC);

		if (fast < last || slow < fast)
			backwards++;
		if (slow - fast > worst)
			worst = slow - fast;
		last = slow;
	}
	report("clocks agree", backwards == 0 && worst < 0.1, "backwards %d, worst gap %.6f s", backwards, worst);
}

/* Two processes keep different values in all vector registers while the scheduler alternates between them. */
__attribute__((target("avx"))) static int avx_survives(int seed, int rounds)
{
	int bad = 0;

	for (int i = 0; i < rounds; i++) {
		uint64_t in[4] = { seed, seed + i, ~(uint64_t)seed, i }, out[4], high[4];

		__asm__ volatile("vmovdqu %2, %%ymm15\n\tvmovdqu %2, %%ymm7\n\tmov $24, %%eax\n\tsyscall\n\t" /* sched_yield */
				 "vmovdqu %%ymm15, %0\n\tvmovdqu %%ymm7, %1"
				 : "=m"(out), "=m"(high) : "m"(in) : "rax", "rcx", "r11", "memory");
		bad += memcmp(in, out, sizeof in) != 0 || memcmp(in, high, sizeof in) != 0;
	}
	return bad;
}

static void test_vector_state(void)
{
	int pids[3], bad = 0, status;

	if (!__builtin_cpu_supports("avx")) {
		printf("# no AVX on this processor: vector state not tested\n");
		return;
	}
	for (int i = 0; i < 3; i++) {
		pids[i] = fork();
		if (pids[i] == 0)
			_exit(avx_survives(1000 * (i + 1), 300) != 0);
	}
	for (int i = 0; i < 3; i++) {
		waitpid(pids[i], &status, 0);
		bad += status != 0;
	}
	report("vector state across switches", bad == 0, "%d of 3 processes saw foreign values", bad);
}

static sigjmp_buf after_fault;

static void on_fault(int signal)
{
	siglongjmp(after_fault, signal);
}

__attribute__((noinline)) static int readable(uintptr_t address)
{
	if (sigsetjmp(after_fault, 1))
		return 0;
	(void)*(volatile char *)address;
	return 1;
}

/* Names the readable addresses of a range, the first few of them. */
static unsigned readable_in(const char *name, uintptr_t begin, uintptr_t end, uintptr_t step)
{
	unsigned count = 0;

	for (uintptr_t a = begin; a < end; a += step)
		if (readable(a) && count++ < 4)
			printf("# READABLE %s %#lx\n", name, a);
	return count;
}

/* After a mapping changes, the old translation is gone for the program at once. */
static void test_stale_translations(void)
{
	struct sigaction action = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
	const size_t pages = 64, size = pages * 4096;
	unsigned stale = 0;

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	for (int round = 0; round < 20; round++) {
		char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		for (size_t i = 0; i < pages; i++)
			p[i * 4096] = 1 + i;
		madvise(p, size / 2, MADV_DONTNEED);
		for (size_t i = 0; i < pages; i++)
			stale += p[i * 4096] != (char)(i < pages / 2 ? 0 : 1 + i);
		mprotect(p + 4096, 4096, PROT_NONE);
		stale += readable((uintptr_t)p + 4096);
		mmap(p + 8192, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		stale += p[8192] != 0;
		munmap(p, size);
		for (size_t i = 0; i < pages; i += 7)
			stale += readable((uintptr_t)p + i * 4096);
	}
	report("no stale translations", stale == 0, "%u stale", stale);
	signal(SIGSEGV, SIG_DFL);
	signal(SIGBUS, SIG_DFL);
}

/* No address of the kernel's half may be read by a program. */
static void test_kernel_memory(void)
{
	struct sigaction action = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
	unsigned count = 0;

	/* PID 1's faults are logged although they are handled: not here. */
	write_file("/proc/sys/debug/exception-trace", "0");
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	count += readable_in("top-level entry", 0xffff800000000000, 0xfffff80000000000, 1ul << 39);
	count += readable_in("direct map", 0xffff888000000000, 0xffff888008000000, 1ul << 20);
	count += readable_in("struct pages", 0xffffea0000000000, 0xffffea0000200000, 1ul << 16);
	count += readable_in("vmalloc", 0xffffc90000000000, 0xffffc90000100000, 1ul << 13);
	count += readable_in("processor entry area", 0xfffffe0000000000, 0xfffffe0000040000, 1ul << 12);
	count += readable_in("kernel image", 0xffffffff81000000, 0xffffffff83000000, 1ul << 15);
	count += readable_in("BPF programs", 0xffffffffa0000000, 0xffffffffa0400000, 1ul << 14);
	count += readable_in("fixed mappings", 0xffffffffff400000, 0xfffffffffffff000, 1ul << 12);
	report("kernel memory is out of reach", count == 0, "%u addresses readable", count);
	signal(SIGSEGV, SIG_DFL);
	signal(SIGBUS, SIG_DFL);
}

/* The least of many short samples: what the thing costs while nobody else uses the processor. */
static double least(double (*sample)(void), int times)
{
	double best = 1e9;

	while (times-- > 0) {
		double one = sample();

		if (one < best)
			best = one;
	}
	return best * 1e6;
}

static double sample_syscall(void)
{
	double begin = now(CLOCK_MONOTONIC);

	for (int i = 0; i < 20; i++)
		syscall(SYS_getppid);
	return (now(CLOCK_MONOTONIC) - begin) / 20;
}

static double sample_fault(void)
{
	const size_t size = 16 * 4096;
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	double begin = now(CLOCK_MONOTONIC), each;

	for (size_t i = 0; i < size; i += 4096)
		p[i] = 1;
	each = (now(CLOCK_MONOTONIC) - begin) / 16;
	munmap(p, size);
	return each;
}

static double sample_pipe_switch(void)
{
	int there[2], back[2], status;
	double begin, each;
	char byte = 0;
	pid_t pid;

	if (pipe(there) || pipe(back))
		return 1;
	pid = fork();
	if (pid == 0) {
		for (int i = 0; i < 21; i++)
			if (read(there[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1)
				_exit(1);
		_exit(0);
	}
	begin = 0;
	for (int i = 0; i < 21; i++) {
		if (i == 1)
			begin = now(CLOCK_MONOTONIC);
		if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
			break;
	}
	each = (now(CLOCK_MONOTONIC) - begin) / 20;
	waitpid(pid, &status, 0);
	close(there[0]); close(there[1]); close(back[0]); close(back[1]);
	return each;
}

static double sample_loop(void)
{
	double begin = now(CLOCK_MONOTONIC);

	for (volatile long i = 0; i < 1000000; i++)
		;
	return now(CLOCK_MONOTONIC) - begin;
}

static double sample_fork_exec(void)
{
	double begin = now(CLOCK_MONOTONIC);
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		execl("/init", "init", "--exit", NULL);
		execl("/sbin/init", "init", "--exit", NULL);
		_exit(9);
	}
	waitpid(pid, &status, 0);
	if (status)
		failures++;
	return now(CLOCK_MONOTONIC) - begin;
}

static void measure(void)
{
	printf("# getppid %.2f us\n", least(sample_syscall, 200));
	printf("# page fault %.2f us\n", least(sample_fault, 100));
	printf("# ping-pong between two processes %.2f us\n", least(sample_pipe_switch, 20));
	printf("# 1e6 loop iterations %.0f us\n", least(sample_loop, 20));
}

static void test_fork_exec(int count)
{
	int before = failures;
	double best = least(sample_fork_exec, count);

	report("fork and exec", failures == before, "%d times, %d failed, at best %.3f ms", count, failures - before, best / 1e3);
}

static long option(const char *cmdline, const char *name, long fallback)
{
	const char *found = strstr(cmdline, name);

	return found ? atol(found + strlen(name)) : fallback;
}

int main(int argc, char **argv)
{
	struct utsname names;
	char cmdline[4096] = "";
	int fd;

	if (argc > 1 && !strcmp(argv[1], "--exit"))
		return 0;
	if (getpid() != 1)
		return 1;
	fd = open("/dev/console", O_RDWR);
	if (fd < 0) {
		mkdir("/dev", 0755);
		mount("dev", "/dev", "devtmpfs", 0, NULL);
		fd = open("/dev/console", O_RDWR);
	}
	for (int i = 0; fd >= 0 && i < 3; i++)
		dup2(fd, i);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("init runs at %.4f s of guest time\n", now(CLOCK_BOOTTIME));
	mkdir("/proc", 0755);
	if (mount("proc", "/proc", "proc", 0, NULL) == 0) {
		fd = open("/proc/cmdline", O_RDONLY);
		if (read(fd, cmdline, sizeof cmdline - 1) < 0)
			cmdline[0] = 0;
		close(fd);
		umount("/proc");
	}
	if (!strstr(cmdline, "selftest=none")) {
		uname(&names);
		printf("# %s %s\n", names.release, names.version);
		test_mounts();
		show("/proc/meminfo", 60);
		show("/proc/interrupts", 40);
		test_memory_limit();
		test_device_program();
		test_namespaces();
		test_seccomp();
		test_files_and_sockets();
		test_ptp();
		test_clocks();
		test_vector_state();
		test_kernel_memory();
		test_stale_translations();
		measure();
		test_fork_exec(option(cmdline, "selftest.forks=", 1000));
		if (strstr(cmdline, "selftest=slab"))
			show("/proc/slabinfo", 200);
		printf("selftest: %d failures\n", failures);
	}
	fflush(stdout);
	sync();
	reboot(RB_AUTOBOOT);
	return 0;
}
