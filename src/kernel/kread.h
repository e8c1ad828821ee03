/* The kernel's own memory, read by a BPF program (BPF_PROG_TYPE_SYSCALL, 5.14; an array that may be
 * mapped, 5.5): for what no interface tells. Needs CAP_BPF and CAP_PERFMON, and is forbidden where
 * the kernel is locked down for confidentiality (kernel_lockdown(7)). */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

struct btf;
struct kread;

int kread_new(struct kread **ret, const struct btf *btf, struct cr_err *err) must_check;
/* One that reads bytes only, kread_at(): takes no milliseconds. */
int kread_bytes_new(struct kread **ret, struct cr_err *err) must_check;
/* A process of its own, or a thread, needs one of its own to read with; this takes no milliseconds.
 */
int kread_another(struct kread **ret, const struct kread *known, struct cr_err *err) must_check;
void kread_free(struct kread *k); /* takes NULL */
/* KERNEL, -EFAULT: there is nothing. What lies there may change while it is read. */
int kread_at(const struct kread *k, uint64_t address, void *buf, size_t len,
	     struct cr_err *err) must_check;
/* Of a page that a struct page tells of: what begins offset bytes behind its start. */
int kread_page(const struct kread *k, uint64_t page, uint64_t offset, void *buf, size_t len,
	       struct cr_err *err) must_check;
