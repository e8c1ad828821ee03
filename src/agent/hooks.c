#include "agent/hooks.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

static const char *const stages[] = {"pre-dump",       "post-dump",   "network-lock",
				     "network-unlock", "pre-restore", "post-restore",
				     "pre-resume",     "post-resume", "network-switch"};

int hooks_add(struct hooks *h, const char *text, struct cr_err *err)
{
	const char *eq = strchr(text, '=');

	for (size_t i = 0; eq && eq[1] && i < ARRAY_SIZE(stages); i++) {
		if (strlen(stages[i]) != (size_t)(eq - text) ||
		    strncmp(stages[i], text, (size_t)(eq - text)))
			continue;
		struct hook *k = vec_push(&h->list);
		if (!k)
			return cr_err_oom(err);
		*k = (struct hook){stages[i], eq + 1};
		return 0;
	}
	return cr_err_set(err, CR_ERR_INPUT, EINVAL,
			  "--hook %s: STAGE=CMD is expected, STAGE being pre-dump, post-dump, "
			  "network-lock, network-unlock, pre-restore, post-restore, pre-resume, "
			  "post-resume or network-switch",
			  text);
}

/* In the child. */
static void become(const struct hooks *h, const struct hook *k)
{
	char pid[16];
	sigset_t none;

	/* the agent's own dispositions are none of its business */
	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	snprintf(pid, sizeof(pid), "%d", h->pid);
	setenv("CR_STAGE", k->stage, 1);
	setenv("CR_IMAGE", h->image ? h->image : "", 1);
	setenv("CR_PID", pid, 1);
	execl("/bin/sh", "sh", "-c", k->command, (char *)NULL);
	_exit(127);
}

static int run_one(const struct hooks *h, const struct hook *k, struct cr_err *err)
{
	int st;
	pid_t pid = fork();

	if (pid < 0)
		return cr_err_sys(err, "hook %s", k->stage);
	if (!pid)
		become(h, k);
	while (waitpid(pid, &st, 0) < 0)
		if (errno != EINTR)
			return cr_err_sys(err, "hook %s", k->stage);
	if (WIFEXITED(st) && !WEXITSTATUS(st))
		return 0;
	return cr_err_set(err, CR_ERR_INPUT, ECANCELED, "hook %s (%.200s) %s %d", k->stage,
			  k->command, WIFEXITED(st) ? "exited with" : "was ended by signal",
			  WIFEXITED(st) ? WEXITSTATUS(st) : WTERMSIG(st));
}

int hooks_run(void *arg, const char *stage, struct cr_err *err)
{
	struct hooks *h = arg;
	int r = 0;

	vec_foreach (k, &h->list)
		if (!r && !strcmp(k->stage, stage))
			r = run_one(h, k, err);
	return r;
}
