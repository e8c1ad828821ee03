/* Credentials: ids, groups, capabilities, securebits. The raw system calls act on one thread, so
 * every thread of a process runs the same list. */
#include "resource/attrs_internal.h"

#include <linux/capability.h>
#include <linux/prctl.h>
#include <linux/securebits.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { SECURE_LOCKS = SECURE_ALL_LOCKS };
#define CAPBIT(cap) (1ull << (cap))

struct cap_arg { /* capset(2), version 3 */
	struct __user_cap_header_struct hdr;
	struct __user_cap_data_struct data[2];
};

static void cap_arg_fill(struct cap_arg *a, pid_t tid, const struct attrs_caps *caps)
{
	*a = (struct cap_arg){.hdr = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = tid}};
	for (int i = 0; i < 2; i++) {
		a->data[i].effective = (uint32_t)(caps->eff >> (32 * i));
		a->data[i].permitted = (uint32_t)(caps->prm >> (32 * i));
		a->data[i].inheritable = (uint32_t)(caps->inh >> (32 * i));
	}
}

int attrs_capget(pid_t tid, struct attrs_caps *ret)
{
	struct cap_arg a = {.hdr = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = tid}};

	if (syscall(SYS_capget, &a.hdr, a.data))
		return -errno;
	ret->eff = a.data[0].effective | (uint64_t)a.data[1].effective << 32;
	ret->prm = a.data[0].permitted | (uint64_t)a.data[1].permitted << 32;
	ret->inh = a.data[0].inheritable | (uint64_t)a.data[1].inheritable << 32;
	return 0;
}

bool attrs_have_cap(int cap)
{
	struct attrs_caps caps;

	return !attrs_capget(0, &caps) && caps.eff & CAPBIT(cap);
}

/* The calling thread's bounding set; *ret_known: all capabilities that this kernel knows. Other
 * bits cannot be set here, so they are not compared either. */
static uint64_t own_bounding_set(uint64_t *ret_known)
{
	uint64_t set = 0;

	*ret_known = 0;
	for (int cap = 0; cap < 64; cap++) {
		int r = prctl(PR_CAPBSET_READ, cap);

		if (r < 0)
			break;
		*ret_known |= CAPBIT(cap);
		set |= r ? CAPBIT(cap) : 0;
	}
	return set;
}

static uint64_t own_ambient_set(uint64_t inh)
{
	uint64_t set = 0;

	/* ambient ones are always inheritable too: mostly there are none to ask for */
	for (int cap = 0; cap < 64; cap++)
		if (inh & CAPBIT(cap) &&
		    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) == 1)
			set |= CAPBIT(cap);
	return set;
}

static bool own_ids_differ(const struct creds *cr)
{
	uid_t r, e, s;

	/* an invalid id changes nothing: setfsuid(2), setfsgid(2) */
	if (getresuid(&r, &e, &s) || r != cr->uid || e != cr->euid || s != cr->suid ||
	    (uid_t)setfsuid((uid_t)-1) != cr->fsuid)
		return true;
	return getresgid(&r, &e, &s) || r != cr->gid || e != cr->egid || s != cr->sgid ||
	       (gid_t)setfsgid((gid_t)-1) != cr->fsgid;
}

static bool own_groups_differ(const struct creds *cr)
{
	int n = getgroups(0, NULL);

	if (n < 0 || (size_t)n != cr->n_groups)
		return true;
	if (!n)
		return false;
	_cleanup_free_ gid_t *have = calloc((size_t)n, sizeof(*have));
	return !have || getgroups(n, have) != n ||
	       memcmp(have, cr->groups, (size_t)n * sizeof(*have));
}

static bool own_bounding_differs(const struct creds *cr)
{
	uint64_t known, set = own_bounding_set(&known);

	return set != (cr->cap_bnd & known);
}

bool attrs_creds_differ(const struct creds *cr)
{
	struct attrs_caps own;

	return own_ids_differ(cr) || attrs_capget(0, &own) || own.inh != cr->cap_inh ||
	       own.prm != cr->cap_prm || own.eff != cr->cap_eff || own_bounding_differs(cr) ||
	       own_ambient_set(own.inh) != cr->cap_amb ||
	       (uint32_t)prctl(PR_GET_SECUREBITS) != cr->securebits || own_groups_differ(cr);
}

/* ---- rebuild ---- */

static int queue_capset(struct rtask *rt, const char *what, const struct attrs_caps *caps,
			struct cr_err *err)
{
	struct cap_arg a;
	uint64_t va;

	cap_arg_fill(&a, 0, caps);
	if (!attrs_scratch_copy(rt, &a, sizeof(a), &va, err))
		return -err->code;
	rqueue(rt, what, SYS_capset, va, va + offsetof(struct cap_arg, data));
	return 0;
}

static int queue_ids(struct rtask *rt, const struct creds *cr, struct cr_err *err)
{
	uint64_t va = 0;

	if (cr->n_groups &&
	    !attrs_scratch_copy(rt, cr->groups, cr->n_groups * sizeof(*cr->groups), &va, err))
		return -err->code;
	/* groups while CAP_SETGID is there for sure; the fs ids follow the effective ones, so after
	 */
	rqueue(rt, "setgroups", SYS_setgroups, cr->n_groups, va);
	rqueue(rt, "setresgid", SYS_setresgid, cr->gid, cr->egid, cr->sgid);
	rqueue(rt, NULL, SYS_setfsgid, cr->fsgid); /* returns the old one, whatever happens */
	rqueue(rt, "setresuid", SYS_setresuid, cr->uid, cr->euid, cr->suid);
	rqueue(rt, NULL, SYS_setfsuid, cr->fsuid);
	return 0;
}

static void queue_bounding_drops(struct rtask *rt, const struct creds *cr)
{
	for (int cap = 0; cap < 64; cap++) {
		if (cr->cap_bnd & CAPBIT(cap))
			continue;
		int r = prctl(PR_CAPBSET_READ, cap); /* the shell's is ours */

		if (r < 0)
			break;
		if (r)
			rqueue(rt, "PR_CAPBSET_DROP", SYS_prctl, PR_CAPBSET_DROP, cap);
	}
}

static void queue_ambient(struct rtask *rt, const struct creds *cr)
{
	rqueue(rt, "PR_CAP_AMBIENT_CLEAR_ALL", SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL);
	for (int cap = 0; cap < 64; cap++)
		if (cr->cap_amb & CAPBIT(cap))
			rqueue(rt, "PR_CAP_AMBIENT_RAISE", SYS_prctl, PR_CAP_AMBIENT,
			       PR_CAP_AMBIENT_RAISE, cap);
}

/* The order, and what breaks otherwise (capabilities(7), credentials(7)):
 *  1. NO_SETUID_FIXUP: else the change of uid clears the capabilities that the rest needs.
 *  2. ids, with all capabilities still there.
 *  3. inheritable: may only get what the bounding set still has, and ambient needs it.
 *  4. ambient: the final securebits may forbid to raise it (NO_CAP_AMBIENT_RAISE).
 *  5. bounding set: needs CAP_SETPCAP.
 *  6. securebits, with CAP_SETPCAP for the last time.
 *  7. permitted and effective: what is dropped here is gone. */
int attrs_creds_queue(struct rtask *rt, const struct creds *cr, struct cr_err *err)
{
	struct attrs_caps caps, final = {cr->cap_inh, cr->cap_prm, cr->cap_eff};
	int own = prctl(PR_GET_SECUREBITS), r;

	if (own < 0 || attrs_capget(0, &caps))
		return cr_err_sys(err, "own capabilities");
	caps.inh = cr->cap_inh;
	if (!(own & SECBIT_NO_SETUID_FIXUP))
		rqueue(rt, "PR_SET_SECUREBITS", SYS_prctl, PR_SET_SECUREBITS,
		       own | SECBIT_NO_SETUID_FIXUP);
	r = queue_ids(rt, cr, err);
	if (!r)
		r = queue_capset(rt, "capset (inheritable)", &caps, err);
	if (r)
		return r;
	queue_ambient(rt, cr);
	queue_bounding_drops(rt, cr);
	if (cr->securebits != (uint32_t)(own | SECBIT_NO_SETUID_FIXUP))
		rqueue(rt, "PR_SET_SECUREBITS", SYS_prctl, PR_SET_SECUREBITS, cr->securebits);
	return queue_capset(rt, "capset", &final, err);
}

/* ---- preflight ---- */

static void list_caps(char *text, size_t room, uint64_t caps)
{
	size_t len = 0;

	text[0] = '\0';
	for (int cap = 0; cap < 64 && len < room; cap++)
		if (caps & CAPBIT(cap))
			len +=
			    (size_t)snprintf(text + len, room - len, "%s%d", len ? ", " : "", cap);
}

static void refuse_caps(struct refusals *refused, pid_t pid, const char *set, uint64_t missing)
{
	char what[48], list[120];

	if (!missing)
		return;
	snprintf(what, sizeof(what), "%s capabilities", set);
	list_caps(list, sizeof(list), missing);
	refuse(refused, pid, what,
	       "number %s (linux/capability.h) cannot be given: the agent on this host lacks it",
	       list);
}

void attrs_creds_check(const struct process *p, struct refusals *refused)
{
	const struct creds *cr = &p->creds;
	uint64_t need = CAPBIT(CAP_SETUID) | CAPBIT(CAP_SETGID) | CAPBIT(CAP_SETPCAP);
	uint64_t known, bnd = own_bounding_set(&known);
	struct attrs_caps own = {0};
	int bits = prctl(PR_GET_SECUREBITS);

	if (!attrs_creds_differ(cr))
		return;
	if (attrs_capget(0, &own) || need & ~own.eff) {
		refuse(refused, p->pid, "credentials",
		       "the agent on this host needs CAP_SETUID, CAP_SETGID and CAP_SETPCAP to set "
		       "them");
		return;
	}
	if (cr->n_groups * sizeof(*cr->groups) > RTASK_SCRATCH_BYTES)
		refuse(refused, p->pid, "supplementary groups",
		       "%zu are more than can be set (%zu)", cr->n_groups,
		       RTASK_SCRATCH_BYTES / sizeof(*cr->groups));
	refuse_caps(refused, p->pid, "permitted", cr->cap_prm & ~own.prm);
	refuse_caps(refused, p->pid, "inheritable", cr->cap_inh & ~(own.inh | bnd));
	refuse_caps(refused, p->pid, "bounding set", cr->cap_bnd & known & ~bnd);
	if (cr->cap_bnd & ~known)
		refuse_warn(refused, p->pid, "bounding set",
			    "this kernel knows fewer capabilities");
	/* a lock cannot be undone, nor what it locks be changed */
	if (bits < 0 || (bits & SECURE_LOCKS && (uint32_t)bits != cr->securebits))
		refuse(refused, p->pid, "securebits",
		       "%#x cannot be set: those of the agent on this host are locked at %#x",
		       cr->securebits, bits);
}
