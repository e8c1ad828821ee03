#include "remote/detour.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>

/* What the code below loads, at DETOUR_VALUES from its start. */
struct values {
	uint64_t all; /* every signal */
	uint64_t sigmask;
	uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, rsp, rip;
	uint64_t eflags;
};
enum { DETOUR_VALUES = 320 };
_Static_assert(DETOUR_VALUES + sizeof(struct values) <= DETOUR_BYTES, "code and values fit");

extern const uint8_t detour_code[], detour_code_end[];

/* Signals are blocked while the stack pointer is not the task's own, for popf. From there on
 * nothing changes the flags: neither mov, nor syscall, which keeps them (in r11, and clobbers rcx).
 * 14 is rt_sigprocmask(2), its first argument 2 SIG_SETMASK. */
#define VALUE(n) "(.Ldetour + 320 + 8 * " #n ")(%rip)"
__asm__(".pushsection .rodata\n"
	".balign 16\n"
	".globl detour_code, detour_code_end\n"
	"detour_code:\n.Ldetour:\n"
	"	syscall\n"
	"	mov $14, %eax; mov $2, %edi; lea " VALUE(
	    0) ", %rsi\n"
	       "	mov $0, %edx; mov $8, %r10d; syscall\n"
	       "	lea " VALUE(19) ", %rsp; popfq; mov " VALUE(
		   17) ", %rsp\n"
		       "	mov $14, %eax; mov $2, %edi; lea " VALUE(
			   1) ", %rsi\n"
			      "	mov $0, %edx; mov $8, %r10d; syscall\n"
			      "	mov " VALUE(2) ", %r15; mov " VALUE(3) ", %r14; mov " VALUE(
				  4) ", %r13\n"
				     "	mov " VALUE(5) ", %r12; mov " VALUE(6) ", %rbp; mov " VALUE(
					 7) ", %rbx\n"
					    "	mov " VALUE(8) ", %r11; mov " VALUE(
						9) ", %r10; mov " VALUE(10) ", %r9\n"
									    "	mov " VALUE(
										11) ", "
										    "%r"
										    "8;"
										    " m"
										    "ov"
										    " " VALUE(12) ", %rax; mov " VALUE(
											13) ", "
											    "%rcx\n"
											    "	mov"
											    " " VALUE(14) ", %rdx; mov " VALUE(15) ", %rsi; mov " VALUE(
												16) ", %rdi\n"
												    "	jmp *" VALUE(
													18) "\n"
													    "detour_code_end:\n"
													    ".org .Ldetour + 320\n"
													    ".popsection\n");

static size_t code_bytes(void)
{
	return (size_t)(detour_code_end - detour_code);
}

static bool is_free(const uint8_t *p)
{
	static const uint8_t zeros[DETOUR_BYTES];

	return !memcmp(p, zeros, sizeof(zeros)) || !memcmp(p, detour_code, code_bytes());
}

/* 1: free; 0: not. */
static int look_at(pid_t pid, uint64_t va, struct cr_err *err)
{
	uint8_t buf[DETOUR_BYTES];
	struct iovec local = {buf, sizeof(buf)}, remote = {(void *)va, sizeof(buf)};

	if (process_vm_readv(pid, &local, 1, &remote, 1, 0) != (ssize_t)sizeof(buf))
		return cr_err_sys(err, "reading the vdso of %d", pid);
	return is_free(buf);
}

int detour_find(pid_t pid, uint64_t start, uint64_t end, uint64_t *ret, struct cr_err *err)
{
	uint64_t va = end - DETOUR_BYTES;
	int r = end - start > DETOUR_BYTES ? look_at(pid, va, err) : 0;

	*ret = r > 0 ? va : 0;
	return r < 0 ? r : 0;
}

uint64_t detour_syscall_va(uint64_t va)
{
	return va;
}

/* Not process_vm_writev(2): the page is read-only. The tracer may write it, as for a breakpoint. */
static int write_memory(pid_t pid, uint64_t va, const void *buf, size_t bytes, struct cr_err *err)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	_cleanup_fd_ int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || pwrite(fd, buf, bytes, (off_t)va) != (ssize_t)bytes)
		return cr_err_sys(err, "writing to the vdso of %d", pid);
	return 0;
}

int detour_write(pid_t pid, uint64_t va, const struct user_regs_struct *gp, uint64_t sigmask,
		 struct cr_err *err)
{
	uint8_t buf[DETOUR_BYTES] = {0};
	const struct values v = {
	    .all = ~0ull,
	    .sigmask = sigmask,
	    .r15 = gp->r15,
	    .r14 = gp->r14,
	    .r13 = gp->r13,
	    .r12 = gp->r12,
	    .rbp = gp->rbp,
	    .rbx = gp->rbx,
	    .r11 = gp->r11,
	    .r10 = gp->r10,
	    .r9 = gp->r9,
	    .r8 = gp->r8,
	    .rax = gp->rax,
	    .rcx = gp->rcx,
	    .rdx = gp->rdx,
	    .rsi = gp->rsi,
	    .rdi = gp->rdi,
	    .rsp = gp->rsp,
	    .rip = gp->rip,
	    .eflags = gp->eflags,
	};

	int r = look_at(pid, va, err);

	if (r < 0)
		return r;
	if (!r || code_bytes() > DETOUR_VALUES)
		return cr_err_set(err, CR_ERR_KERNEL, EAGAIN,
				  "the vdso of %d is not what it was; try again", pid);
	memcpy(buf, detour_code, code_bytes());
	memcpy(buf + DETOUR_VALUES, &v, sizeof(v));
	return write_memory(pid, va, buf, sizeof(buf), err);
}

int detour_wipe(pid_t pid, uint64_t va, struct cr_err *err)
{
	static const uint8_t zeros[DETOUR_BYTES];

	return write_memory(pid, va, zeros, sizeof(zeros), err);
}
