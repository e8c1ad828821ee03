#include "remote/sigframe.h"

#include <cpuid.h>
#include <string.h>
#include <ucontext.h>
#include <asm/sigcontext.h>

enum {
	XSAVE_LEGACY_BYTES = 576, /* FXSAVE area and header */
	SW_RESERVED_OFFSET = 464, /* struct _fpx_sw_bytes inside the FXSAVE area */
	XFEATURES_OFFSET = 512,   /* xstate_bv of the header */
	FP_OFFSET = 1024, /* of the xsave area in our buffer: 64-byte aligned, above the frame */
	UC_FP_XSTATE_ = 1,
	UC_SIGCONTEXT_SS_ = 2,
	UC_STRICT_RESTORE_SS_ = 4,
};
#define XFEATURES_AMX (3ull << 17)

size_t xstate_used_bytes(uint64_t xfeatures)
{
	/* asked again and again, and CPUID traps in a virtual machine: 30 us */
	static _Thread_local uint32_t ends[63];
	size_t max = XSAVE_LEGACY_BYTES;

	for (unsigned int i = 2; i < ARRAY_SIZE(ends); i++) {
		unsigned int size, offset, c, d;

		if (!(xfeatures >> i & 1))
			continue;
		if (!ends[i]) {
			__cpuid_count(0xd, i, size, offset, c, d);
			ends[i] = offset + size;
		}
		if (ends[i] > max)
			max = ends[i];
	}
	return max;
}

size_t sigframe_xstate_bytes(uint64_t xfeatures)
{
	return xstate_used_bytes(xfeatures & ~XFEATURES_AMX);
}

uint64_t xstate_features(const void *xstate)
{
	uint64_t v;

	memcpy(&v, (const uint8_t *)xstate + XFEATURES_OFFSET, sizeof(v));
	return v;
}

/* The kernel's struct rt_sigframe without siginfo, which sigreturn does not read. */
struct frame {
	uint64_t pretcode;
	uint64_t uc_flags, uc_link;
	uint64_t ss_sp;
	int32_t ss_flags, ss_pad;
	uint64_t ss_size;
	struct sigcontext_64 mc;
	uint64_t sigmask;
};

static void fill_regs(struct sigcontext_64 *mc, const struct user_regs_struct *gp)
{
	mc->r8 = gp->r8;
	mc->r9 = gp->r9;
	mc->r10 = gp->r10;
	mc->r11 = gp->r11;
	mc->r12 = gp->r12;
	mc->r13 = gp->r13;
	mc->r14 = gp->r14;
	mc->r15 = gp->r15;
	mc->di = gp->rdi;
	mc->si = gp->rsi;
	mc->bp = gp->rbp;
	mc->bx = gp->rbx;
	mc->dx = gp->rdx;
	mc->ax = gp->rax;
	mc->cx = gp->rcx;
	mc->sp = gp->rsp;
	mc->ip = gp->rip;
	mc->flags = gp->eflags;
	mc->cs = (uint16_t)gp->cs;
	mc->ss = (uint16_t)gp->ss;
}

int sigframe_build(void *buf, size_t room, uint64_t buf_va, const struct thread_state *st,
		   uint64_t *ret_sp, struct cr_err *err)
{
	struct frame *f = buf;
	uint8_t *fp = (uint8_t *)buf + FP_OFFSET;

	_Static_assert(sizeof(struct frame) < FP_OFFSET, "the frame lies below its xsave area");
	memset(buf, 0, FP_OFFSET);
	fill_regs(&f->mc, &st->gp);
	f->uc_flags = UC_FP_XSTATE_ | UC_SIGCONTEXT_SS_ | UC_STRICT_RESTORE_SS_;
	f->sigmask = st->sigmask;
	f->ss_sp = st->altstack_sp;
	f->ss_size = st->altstack_size;
	f->ss_flags = st->altstack_flags;
	/* the return address is popped before sigreturn looks at the frame */
	*ret_sp = buf_va + offsetof(struct frame, uc_flags);
	if (!st->xstate || st->xstate_len < XSAVE_LEGACY_BYTES)
		return cr_err_set(err, CR_ERR_BUG, EINVAL, "no extended state for a signal frame");

	uint64_t xfeatures = xstate_features(st->xstate) & ~XFEATURES_AMX;
	size_t bytes = sigframe_xstate_bytes(xfeatures);
	if (FP_OFFSET + bytes + FP_XSTATE_MAGIC2_SIZE > room || bytes > st->xstate_len)
		return cr_err_set(err, CR_ERR_BUG, ENOSPC,
				  "a signal frame of %zu bytes does not fit", bytes);
	memcpy(fp, st->xstate, bytes);
	memcpy(fp + XFEATURES_OFFSET, &xfeatures, sizeof(xfeatures));
	struct _fpx_sw_bytes sw = {
	    .magic1 = FP_XSTATE_MAGIC1,
	    .extended_size = (uint32_t)bytes + FP_XSTATE_MAGIC2_SIZE,
	    .xfeatures = xfeatures,
	    .xstate_size = (uint32_t)bytes,
	};
	memcpy(fp + SW_RESERVED_OFFSET, &sw, sizeof(sw));
	uint32_t magic2 = FP_XSTATE_MAGIC2;
	memcpy(fp + bytes, &magic2, sizeof(magic2));
	f->mc.fpstate = buf_va + FP_OFFSET;
	return 0;
}
