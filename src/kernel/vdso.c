#include "kernel/vdso.h"

#include <string.h>
#include <sys/uio.h>
#include <xxhash.h>
#include "kernel/procfs.h"

enum { TORN_READS = 20 };

enum { VDSO_BYTES_MAX = 65536 };

static int read_vdso(pid_t pid, uint64_t start, uint64_t end, uint8_t **ret, size_t *ret_len,
		     struct cr_err *err)
{
	size_t bytes = end - start;
	_cleanup_free_ uint8_t *buf = malloc(bytes < VDSO_BYTES_MAX ? bytes : VDSO_BYTES_MAX);

	if (!buf)
		return cr_err_oom(err);
	if (bytes > VDSO_BYTES_MAX)
		bytes = VDSO_BYTES_MAX;
	struct iovec local = {buf, bytes}, remote = {(void *)start, bytes};
	ssize_t n = process_vm_readv(pid, &local, 1, &remote, 1, 0);
	if (n < 0)
		return cr_err_sys(err, "reading the vdso of %d", pid);
	*ret = take_ptr(buf);
	*ret_len = (size_t)n;
	return 0;
}

/* Of a task that runs: what it maps meanwhile may show torn, and then is read again. */
static int read_maps(pid_t pid, struct proc_maps *maps, struct cr_err *err)
{
	for (int i = 0;; i++) {
		_cleanup_free_ char *text = NULL;
		ssize_t n = proc_read(pid, "maps", &text, err);
		int r = n < 0 ? (int)n : proc_maps_parse(text, maps, err);

		if (r != -EBADMSG || i == TORN_READS)
			return r;
		cr_err_clear(err);
	}
}

int vdso_describe(pid_t pid, uint64_t *ret_start, uint64_t *ret_end, uint8_t ret_digest[16],
		  struct cr_err *err)
{
	_cleanup_free_ uint8_t *code = NULL;
	struct proc_maps maps = {0};
	XXH128_canonical_t canon;
	size_t len;

	*ret_start = *ret_end = 0;
	int r = read_maps(pid, &maps, err);
	if (r)
		return r;
	vec_foreach (m, &maps.list)
		if (!strcmp(m->name, "[vdso]")) {
			*ret_start = m->start;
			*ret_end = m->end;
		}
	proc_maps_done(&maps);
	if (!*ret_start)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOENT, "process %d has no vdso", pid);
	r = read_vdso(pid, *ret_start, *ret_end, &code, &len, err);
	if (r)
		return r;
	XXH128_canonicalFromHash(&canon, XXH3_128bits(code, len));
	memcpy(ret_digest, canon.digest, 16);
	return 0;
}

int vdso_syscall_insn(pid_t pid, uint64_t start, uint64_t end, uint64_t *ret, struct cr_err *err)
{
	_cleanup_free_ uint8_t *code = NULL;
	size_t len;
	int r = read_vdso(pid, start, end, &code, &len, err);

	if (r)
		return r;
	for (size_t i = 0; i + 1 < len; i++)
		if (code[i] == 0x0f && code[i + 1] == 0x05) {
			*ret = start + i;
			return 0;
		}
	return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOENT,
			  "no system-call instruction in the vdso of %d", pid);
}
