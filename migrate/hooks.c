#include "migrate/hooks.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include "wire/link.h"

static int not_a_stage(const char *text, uint32_t may, struct cr_err *err)
{
	char all[256] = "";

	for (enum msg_hook i = 0; i < MSG_HOOK_END; i++)
		if (may & hook_bit(i))
			snprintf(all + strlen(all), sizeof(all) - strlen(all), "%s%s",
				 *all ? ", " : "", msg_hook_name(i));
	return cr_err_set(err, CR_ERR_INPUT, EINVAL,
			  "--hook %.100s: STAGE=CMD is expected, STAGE being one of %s", text, all);
}

int hooks_add(struct hooks *h, const char *text, uint32_t may, struct cr_err *err)
{
	const char *eq = strchr(text, '=');

	for (enum msg_hook i = 0; eq && eq[1] && i < MSG_HOOK_END; i++) {
		const char *name = msg_hook_name(i);

		if (!(may & hook_bit(i)) || strlen(name) != (size_t)(eq - text) ||
		    strncmp(name, text, (size_t)(eq - text)))
			continue;
		struct hook *k = vec_push(&h->list);
		if (!k)
			return cr_err_oom(err);
		*k = (struct hook){i, eq + 1};
		return 0;
	}
	return not_a_stage(text, may, err);
}

uint32_t hooks_stages(const struct hooks *h)
{
	uint32_t stages = 0;

	vec_foreach (k, &h->list)
		stages |= hook_bit(k->stage);
	return stages;
}

/* In the child. */
static void become(const struct hooks *h, const struct hook *k, bool undo)
{
	char pid[16];
	sigset_t none;

	/* the caller's own dispositions are none of its business */
	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	snprintf(pid, sizeof(pid), "%d", h->pid);
	setenv("CR_HOOK_STAGE", msg_hook_name(k->stage), 1);
	setenv("CR_PID", pid, 1);
	setenv("CR_IMAGE", h->image ? h->image : "", 1);
	setenv("CR_SOURCE", h->source ? h->source : "", 1);
	setenv("CR_DESTINATION", h->dest ? h->dest : "", 1);
	setenv("CR_UNDO", undo ? "1" : "0", 1);
	execl("/bin/sh", "sh", "-c", k->command, (char *)NULL);
	_exit(127);
}

static int run_one(const struct hooks *h, const struct hook *k, bool undo, struct cr_err *err)
{
	const char *stage = msg_hook_name(k->stage);
	int st;

	fflush(stdout); /* what was said before comes before what it says */
	pid_t pid = fork();

	if (pid < 0)
		return cr_err_sys(err, "hook %s", stage);
	if (!pid)
		become(h, k, undo);
	while (waitpid(pid, &st, 0) < 0)
		if (errno != EINTR)
			return cr_err_sys(err, "hook %s", stage);
	if (WIFEXITED(st) && !WEXITSTATUS(st))
		return 0;
	return cr_err_set(err, CR_ERR_INPUT, ECANCELED, "hook %s (%.200s) %s %d", stage, k->command,
			  WIFEXITED(st) ? "exited with" : "was ended by signal",
			  WIFEXITED(st) ? WEXITSTATUS(st) : WTERMSIG(st));
}

int hooks_run(const struct hooks *h, enum msg_hook stage, bool undo, struct cr_err *err)
{
	int r = 0;

	vec_foreach (k, &h->list)
		if (!r && k->stage == stage)
			r = run_one(h, k, undo, err);
	return r;
}

int hooks_answer(struct hooks *h, struct link *engine, const struct msg_run_hook *rq,
		 struct cr_err *err)
{
	struct msg reply = msg_of(MSG_OK);
	struct cr_err why = {0};

	if (!h->pid)
		h->pid = rq->pid;
	if (hooks_run(h, rq->stage, rq->undo, &why)) {
		reply = msg_of(MSG_ERROR);
		reply.error = why;
	}
	return link_send(engine, &reply, err);
}
