#include <grp.h>
#include <pwd.h>
#include <sys/capability.h>
#include <sys/prctl.h>
#include "base/log.h"
#include "pageserver/server.h"

/* process_vm_writev() into tasks of any uid needs CAP_SYS_PTRACE (ptrace(2), access mode checks);
 * nothing else that is done after the sockets are bound needs a capability. */
static const cap_value_t kept = CAP_SYS_PTRACE;

enum { NOBODY = 65534 };

static void capsp_free(cap_t *c)
{
	if (*c)
		cap_free(*c);
}

struct ids {
	uid_t uid;
	gid_t gid;
};

static int become(const struct ids *who)
{
	return setgroups(0, NULL) || setresgid(who->gid, who->gid, who->gid) ||
	       setresuid(who->uid, who->uid, who->uid);
}

/* who: NULL: who we are. */
static int drop(bool trace, const struct ids *who, struct cr_err *err)
{
	_cleanup_(capsp_free) cap_t now = cap_get_proc();
	_cleanup_(capsp_free) cap_t want = cap_init();
	cap_flag_value_t have = CAP_CLEAR, may_bound = CAP_CLEAR;

	if (!now || !want)
		return cr_err_sys(err, "capabilities");
	cap_get_flag(now, kept, CAP_PERMITTED, &have);
	cap_get_flag(now, CAP_SETPCAP, CAP_EFFECTIVE, &may_bound);
	/* first: giving up the bounding set takes CAP_SETPCAP */
	for (cap_value_t c = 0; may_bound == CAP_SET && CAP_IS_SUPPORTED(c); c++)
		if (cap_drop_bound(c) < 0)
			return cr_err_sys(err, "drop capability %d from the bounding set", c);
	/* after that: it takes all that is effective */
	if (who && become(who))
		return cr_err_sys(err, "becoming user %d", who->uid);
	if (cap_reset_ambient() < 0)
		return cr_err_sys(err, "clear ambient capabilities");
	if (trace && have == CAP_SET &&
	    (cap_set_flag(want, CAP_PERMITTED, 1, &kept, CAP_SET) < 0 ||
	     cap_set_flag(want, CAP_EFFECTIVE, 1, &kept, CAP_SET) < 0))
		return cr_err_sys(err, "capabilities");
	if (cap_set_proc(want) < 0)
		return cr_err_sys(err, "give up capabilities");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return cr_err_sys(err, "PR_SET_NO_NEW_PRIVS");
	/* other people's memory passes through here: none of it into core files */
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return cr_err_sys(err, "PR_SET_DUMPABLE");
	if (trace && have != CAP_SET)
		log_warn("no CAP_SYS_PTRACE: only processes of this user can be written to");
	return 0;
}

int privilege_drop(bool trace, const char *user, struct cr_err *err)
{
	const struct passwd *pw = user ? getpwnam(user) : NULL;

	if (user && !pw)
		return cr_err_set(err, CR_ERR_INPUT, ENOENT, "--user %s: no such user", user);
	const struct ids who = {pw ? pw->pw_uid : 0, pw ? pw->pw_gid : 0};
	return drop(trace, user ? &who : NULL, err);
}

int privilege_drop_all(struct cr_err *err)
{
	const struct ids nobody = {NOBODY, NOBODY};

	return drop(false, geteuid() ? NULL : &nobody, err);
}
