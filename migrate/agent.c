#include "migrate/agent.h"

#include <unistd.h>

int agent_connect(struct link **ret, const char *host, const char *address, const struct mig_id *id,
		  const struct mig_token *token, int timeout_ms, struct cr_err *err)
{
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg_hello hello = {.version = MSG_VERSION, .role = MSG_ROLE_QUERY};
	struct msg reply;
	char name[256] = "";
	int r;

	if (gethostname(name, sizeof(name) - 1) == 0)
		hello.host = name;
	if (id && token) {
		hello.role = MSG_ROLE_MIGRATE;
		hello.id = *id;
		hello.token = *token;
	}
	if ((r = link_connect(&l, address, timeout_ms, err)) < 0)
		return cr_err_ctx(err, "the agent of %s", host);
	if ((r = link_hello(l, &hello, timeout_ms, &reply, err)) < 0)
		return cr_err_ctx(err, "the agent of %s", host);
	msg_free(&reply);
	*ret = take_ptr(l);
	return 0;
}
